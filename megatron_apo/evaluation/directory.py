"""An evaluation's directory, written batch by batch so that it can be interrupted at any moment and gone on with.

``settings.json`` says what was asked of which model, ``responses.jsonl`` holds every response with its verdict,
``results.json`` the numbers (once all rows are answered), ``report.html`` the page.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_apo.evaluation.responses import AnsweredRow, parse_lines, response_lines
from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import evaluation_of
from megatron_apo.records import Prompt

VERSION = 1
SETTINGS, RESPONSES, RESULTS, PAGE = "settings.json", "responses.jsonl", "results.json", "report.html"
# Where things lie may change between two sittings, what they are may not.
_MAY_DIFFER = ("model.path", "data.path")


def check_place(directory: str | Path) -> None:
    """ValueError for a place that holds something else than an evaluation; writes nothing."""
    path = Path(directory)
    if path.exists() and not (path / SETTINGS).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--output {path}: exists already and is no evaluation's directory; give another name")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"--output {path}: {above} is no directory; give another name")


def begin(directory: str | Path, settings: Mapping[str, Any]) -> Path:
    """Makes the directory with its settings, or leaves one as it is that was begun with the same.

    ValueError as ``check_place``, and for one that was begun with other settings, naming each.
    """
    check_place(directory)
    path = Path(directory)
    if (path / SETTINGS).is_file():
        changed = differing(read_settings(path), settings)
        if changed:
            raise ValueError(
                f"--output {path}: this evaluation was begun with other settings, these differ: {'; '.join(changed)}; "
                "put them back to go on with it, or give another directory"
            )
        return path
    path.mkdir(parents=True, exist_ok=True)
    _write(path / SETTINGS, json.dumps({"version": VERSION, **settings}, indent=2, ensure_ascii=False) + "\n")
    return path


def read_settings(directory: str | Path) -> dict[str, Any]:
    """``settings.json``; ValueError when there is none, or it cannot be understood."""
    path = Path(directory) / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        version = settings["version"]
    except OSError as error:
        raise ValueError(
            f"{directory}: holds no {SETTINGS}; give a directory that evaluate --output wrote ({error.strerror})"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the settings of an evaluation ({error!r}); evaluate again") from error
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this program reads {VERSION}; evaluate again with it")
    return dict(settings)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """``key: one -> other`` of the settings that are not the same, the places of model and data aside."""
    one, other = _flat(first), _flat(second)
    keys = sorted(key for key in one.keys() | other.keys() if key not in _MAY_DIFFER and key != "version")
    return [f"{key}: {one.get(key)!r} -> {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)]


@contextmanager
def appending(directory: Path, prompts: Sequence[Prompt], *, batch: int, samples: int) -> Iterator[Appender]:
    """What was answered before, and the means to go on; nobody else can append meanwhile.

    A batch that was not written whole is taken back: what is drawn again is drawn in the batches of an evaluation that
    was never interrupted. Raises ValueError for a file that does not hold the first of these prompts.
    """
    with (directory / RESPONSES).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--output {directory}: another evaluation is writing there; let it end") from error
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]  # what follows the last line's end is half a line
        answered = len(lines) // samples
        whole = answered if answered >= len(prompts) else answered // batch * batch
        kept = lines[: whole * samples]
        file.truncate(sum(len(line) + 1 for line in kept))
        rows = _parsed(directory / RESPONSES, kept)
        for row, prompt in zip(rows, prompts, strict=False):
            if row.id != prompt.id or len(row.responses) != samples:
                raise ValueError(
                    f"{directory / RESPONSES}: has {len(row.responses)} responses to row {row.id!r} where {samples} to "
                    f"{prompt.id!r} belong; it was changed: evaluate anew in another directory"
                )
        if len(rows) != whole or whole > len(prompts):
            raise ValueError(
                f"{directory / RESPONSES}: holds {len(rows)} rows, {min(whole, len(prompts))} belong there; it was "
                "changed: evaluate anew in another directory"
            )
        yield Appender(file, rows)


class Appender:
    """The rows answered so far; ``append`` adds a batch, which outlives this process from then on."""

    def __init__(self, file: Any, rows: list[AnsweredRow]) -> None:
        self._file = file
        self.rows = rows

    def append(self, rows: Sequence[AnsweredRow]) -> None:
        text = "".join(line for row in rows for line in response_lines(row))
        self._file.write(text.encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.extend(rows)


def read_responses(directory: str | Path) -> list[AnsweredRow]:
    """All rows of ``responses.jsonl``; ValueError for a file that is missing, cut short or damaged."""
    path = Path(directory) / RESPONSES
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a directory of evaluate --output") from error
    if lines.pop():
        raise ValueError(f"{path}: ends within a line; run its evaluate command again to go on with it")
    return _parsed(path, lines)


def write_results(directory: Path, evaluation: Evaluation) -> None:
    """Writes ``results.json``: whoever finds it finds all rows answered."""
    _write(directory / RESULTS, json.dumps(asdict(evaluation), indent=2) + "\n")


def read_results(directory: str | Path) -> Evaluation:
    """``results.json``; ValueError when the evaluation has not ended, or the file cannot be understood."""
    path = Path(directory) / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{directory}: holds no {RESULTS}; run its evaluate command again, it goes on where it stopped"
        )
    try:
        return evaluation_of(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an evaluation's results ({error!r}); evaluate again") from error


def _parsed(path: Path, lines: Sequence[bytes]) -> list[AnsweredRow]:
    try:
        return parse_lines(line.decode("utf-8") for line in lines)
    except ValueError as error:
        raise ValueError(f"{path}, {error}; restore the file, or evaluate anew in another directory") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)  # a reader sees the old file or the new one, never half of one
