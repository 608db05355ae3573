"""What every task writes: rows as JSON lines, their pictures, and ``task.json``, which says how they were made.

A task gives a function from (split, number) to a row and its picture; row ``number`` of a split depends on nothing
else, so a larger task begins with the rows of a smaller one and rows can be drawn by several processes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

SPLITS = ("train", "validation", "test")
# Of the problems of a task, how many in a hundred belong to validation and to test; the others are for training.
_VALIDATION_PERCENT, _TEST_PERCENT = 10, 10

DrawRow = Callable[[str, int], tuple[dict[str, Any], Image.Image]]


def split_of(problem: str, *, seed: int) -> str:
    """The one split that a problem belongs to, by its description: 80 % training, 10 % validation, 10 % test."""
    digest = hashlib.sha256(f"split {seed} {problem}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    if place < _VALIDATION_PERCENT:
        return "validation"
    return "test" if place < _VALIDATION_PERCENT + _TEST_PERCENT else "train"


def check_split(split: str, known: tuple[str, ...] = SPLITS) -> None:
    """ValueError for a split that the task does not have."""
    if split not in known:
        raise ValueError(f"split={split!r}: must be one of {', '.join(known)}")


def counted_rows(
    train_rows: int, validation_rows: int, test_rows: int, demonstration_rows: int, **more: int
) -> dict[str, int]:
    """Rows of each split, ``more`` being the task's further splits; ValueError for numbers that cannot be.

    The three splits have at least one row; a further one may have none, and is left out then.
    """
    rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    for split, count in rows.items():
        if count < 1:
            raise ValueError(f"{split}_rows={count}: must be at least 1")
    for split, count in more.items():
        if count < 0:
            raise ValueError(f"{split}_rows={count}: must be 0 or more")
    if not 0 <= demonstration_rows <= train_rows:
        raise ValueError(
            f"demonstration_rows={demonstration_rows}: must be from 0 to train_rows={train_rows}, for they are "
            "training rows"
        )
    return rows | {split: count for split, count in more.items() if count}


def write_task(
    directory: str | Path,
    settings: Mapping[str, Any],
    draw: DrawRow,
    *,
    assumed: Mapping[str, Any] | None = None,
    compress_level: int = 6,
    workers: int = 1,
) -> Path:
    """Writes a JSON-lines file for each split, ``images/*.png`` and ``task.json``; returns the directory.

    ``settings`` go to ``task.json`` with the files' SHA-256; of them ``task``, ``rows`` (a number for each split) and
    ``demonstration_rows`` are read here. Above 0 the last also writes ``demonstrations.jsonl``, the first so many
    training rows: what a warm start imitates, while reinforcement learning goes on with all of ``train.jsonl``.
    ``draw`` makes row ``number`` of a split as it stands in the file, with its picture (it must be a function of a
    module, or a partial of one, when ``workers`` is above 1). ``assumed``: settings that an older task does not name.
    ``compress_level`` 0 stores a picture as it is, so that its bytes do not depend on the machine's zlib.

    The same task already there is left as it is. ValueError for a directory that holds anything else, which is not
    touched, and for a number of workers below 1.
    """
    directory = Path(directory)
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        _check_same_task(directory, settings, dict(assumed or {}))
        return directory

    # Made beside its place and renamed, so an interrupted run leaves nothing that looks like a task.
    building = directory.with_name(f".{directory.name}.incomplete")
    shutil.rmtree(building, ignore_errors=True)
    (building / "images").mkdir(parents=True)
    with _mapping(workers) as mapped:
        for split, count in settings["rows"].items():
            write = partial(_write_row, split, draw=draw, directory=building, compress_level=compress_level)
            bar = tqdm(total=count, desc=f"drawing {split}", unit="image", delay=2, leave=False, disable=None)
            lines = []
            with bar:
                for line in mapped(write, range(count)):
                    lines.append(line)
                    bar.update()
            _write_lines(building / f"{split}.jsonl", lines)
            if split == "train" and settings["demonstration_rows"]:
                _write_lines(building / "demonstrations.jsonl", lines[: settings["demonstration_rows"]])
    description = {**settings, "sha256": _content_hash(building)}
    (building / "task.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if directory.exists():
        directory.rmdir()
    building.rename(directory)
    return directory


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[str]]]:
    """``map``, here or in so many processes; the order is that of the arguments either way."""
    if workers == 1:
        yield map
        return
    # Processes that start afresh: a fork of a process with threads (BLAS, a progress bar) can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)


def _write_row(split: str, number: int, *, draw: DrawRow, directory: Path, compress_level: int) -> str:
    """Saves the picture of a row; its line of JSON."""
    fields, picture = draw(split, number)
    picture.save(directory / fields["images"][0], compress_level=compress_level)
    return json.dumps(fields)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _content_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of everything but ``task.json``."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "task.json":
            digest.update(f"{path.relative_to(directory).as_posix()}\n{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_same_task(directory: Path, settings: Mapping[str, Any], assumed: dict[str, Any]) -> None:
    remedy = "choose another directory, or remove this one"
    description_file = directory / "task.json"
    if not description_file.is_file():
        raise ValueError(f"directory={directory}: holds something that is not a {settings['task']} task; {remedy}")
    try:
        description = json.loads(description_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"directory={directory}: task.json is not readable ({error}); {remedy}") from error
    found = {**assumed, **description} if isinstance(description, dict) else {}
    different = [key for key, value in settings.items() if found.get(key) != value]
    if different:
        shown = ", ".join(f"{key} is {found.get(key)!r}, not {settings[key]!r}" for key in different)
        raise ValueError(f"directory={directory}: holds another task ({shown}); {remedy}")
    if found.get("sha256") != _content_hash(directory):
        raise ValueError(f"directory={directory}: the files of this task were changed since it was made; {remedy}")
