"""From the settings to the prompts of a run: bad rows are left out and told, and too many of them stop the start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_apo.data.examiners import ImageExaminers
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.scan import CheckGold, PromptSet, Scan, SkippedRow
from megatron_apo.observability.console import say
from megatron_apo.wording import counted

MANIFEST, SKIPPED = "data.json", "skipped_rows.jsonl"  # in a run's directory
_MAX_REPORTED = 10


def read_data(
    builder: PromptBuilder,
    files: Sequence[str],
    *,
    setting: str,
    check_gold: CheckGold,
    image_root: str | None = None,
    demonstrations: bool = False,
    limit: int = 0,
) -> PromptSet:
    """The good rows of the data files that ``setting`` names, as ``builder.data`` wants them read.

    See ``Scan`` for the other arguments. What is skipped is said on the terminal. Raises ValueError for a file that
    cannot be read, when no row is good, and when the share of bad ones exceeds ``data.max_bad_share``.
    """
    data = builder.data
    with ImageExaminers(data.workers) as examiners:
        prompts = Scan(
            builder,
            examiners,
            check_gold,
            image_root=data.image_root if image_root is None else image_root,
            cache=data.cache,
            format=data.format,
            formats=data.formats,
            demonstrations=demonstrations,
            limit=limit,
        ).run(files)
    _judge(prompts, setting, data.max_bad_share)
    for file in prompts.files:
        if file.unused:
            say(f"{setting}: {file.path}: nothing reads the keys {', '.join(sorted(file.unused))}")
    if prompts.skipped:
        rows = sum(file.rows for file in prompts.files)
        are = "is" if len(prompts.skipped) == 1 else "are"
        say(f"{setting}: {len(prompts.skipped):,} of {counted(rows, 'row', 'rows')} {are} skipped:\n{_listed(prompts)}")
    return prompts


def _judge(prompts: PromptSet, setting: str, max_bad_share: float) -> None:
    rows, bad = sum(file.rows for file in prompts.files), len(prompts.skipped)
    names = ", ".join(file.path for file in prompts.files)
    if not rows:
        raise ValueError(f"{names}: holds no rows; expected rows with images, question and answer ({setting})")
    if bad > max_bad_share * rows:
        raise ValueError(
            f"{names}: {bad:,} of {counted(rows, 'row', 'rows')} {'is' if bad == 1 else 'are'} bad, more than "
            f"data.max_bad_share={max_bad_share:g} allows "
            f"({setting}); correct or remove them, or raise it:\n{_listed(prompts)}"
        )
    if not len(prompts):
        raise ValueError(f"{names}: no row is good ({setting}):\n{_listed(prompts)}")


def _listed(prompts: PromptSet) -> str:
    lines = [f"  {skipped}" for skipped in prompts.skipped[:_MAX_REPORTED]]
    if len(prompts.skipped) > _MAX_REPORTED:
        lines.append(f"  … and {len(prompts.skipped) - _MAX_REPORTED:,} more")
    return "\n".join(lines)


def write_data_files(directory: Path, read: Mapping[str, PromptSet]) -> None:
    """Writes what each setting read into a run's directory: ``data.json`` and, if any, ``skipped_rows.jsonl``."""
    (directory / MANIFEST).write_text(json.dumps(_manifest(read), indent=2, ensure_ascii=False), encoding="utf-8")
    write_skipped(directory / SKIPPED, {setting: prompts.skipped for setting, prompts in read.items()})


def write_skipped(path: Path, skipped: Mapping[str, Sequence[SkippedRow]]) -> None:
    """A line for each skipped row, with the ``part`` of the data that it belongs to; without any there is no file."""
    lines = [
        json.dumps({"part": part, **asdict(row)}, ensure_ascii=False) + "\n"
        for part, rows in skipped.items()
        for row in rows
    ]
    if lines:
        path.write_text("".join(lines), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def check_unchanged(directory: Path, read: Mapping[str, PromptSet]) -> None:
    """ValueError when a resumed run would go on with other data than its directory says that it began with."""
    path = directory / MANIFEST
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # a run from before data was recorded
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); restore it, or start a new run") from error
    now = _manifest(read)
    for setting in now.keys() & before.keys():
        old, new = before[setting], now[setting]
        files = {file["path"]: file["sha256"] for file in old["files"]}
        for file in read[setting].files:
            if files.get(file.path) != file.sha256:
                raise ValueError(
                    f"{setting}: {file.path} is not what the run began with (SHA-256 {file.sha256}, recorded "
                    f"{files.get(file.path)}); restore it, or start a new run in another directory"
                )
        if old["rows_sha256"] != new["rows_sha256"]:
            raise ValueError(
                f"{setting}: its files are those the run began with, its good rows are not ({new['good']:,}, recorded "
                f"{old['good']:,}): a picture changed, see {directory / SKIPPED}; restore it, or start a new run"
            )


def _manifest(read: Mapping[str, PromptSet]) -> dict[str, dict[str, object]]:
    return {
        setting: {
            "files": [asdict(file) for file in prompts.files],
            "good": len(prompts),
            "rows_sha256": prompts.rows_sha256,
        }
        for setting, prompts in read.items()
    }
