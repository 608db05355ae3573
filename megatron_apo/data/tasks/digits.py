"""Sums of handwritten digits: a task of real scans that fits a laptop.

Every row shows two to five of scikit-learn's 1,797 scans of handwritten digits (8 x 8 pixels; E. Alpaydin and
C. Kaynak, Optical Recognition of Handwritten Digits, UCI, CC BY 4.0; they come with scikit-learn, nothing is
downloaded) at random places of one image, and asks for their sum. More than two are added step by step, so that
difficulty and length of the answer grow with their number. The scans are split once into disjoint training, validation
and test scans, so a held-out row shows handwriting that no training row has shown.

Everything is a function of the seed: the same arguments write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
# How a demonstration comes to the sum: digit by digit | all at once | from the left, then again from the right.
STYLES = ("steps", "straight", "twice")
SPLITS = ("train", "validation", "test")
FORMAT_VERSION = 2

IMAGE_HEIGHT = 28  # pixels; multiples of 28 keep their size in Qwen2.5-VL (patches of 14, merged 2 x 2)
WIDTH_OF_DIGIT = 28  # of the image, per digit
DIGIT_SIZE = 24  # pixels a scan's 8 x 8 are enlarged to
PAPER, INK = 118, 255  # grey levels; the processor maps 118 to about zero, so that empty paper is silent
STRAY_LEFT, STRAY_RIGHT = 4, 8  # pixels, most that a digit's box begins left or right of its part of the image
HELD_OUT_SHARE = 0.1  # of the scans of each class, for validation and again for test
SCAN_MAXIMUM = 16  # ink values run from 0 to 16


@dataclass(frozen=True)
class DigitRow:
    """What one row shows, from left to right: scans (indices into scikit-learn's set), their digits and top left
    corners (x, y)."""

    id: str
    scans: tuple[int, ...]
    digits: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]

    @property
    def question(self) -> str:
        return question_about(len(self.digits))

    @property
    def answer(self) -> str:
        return str(sum(self.digits))

    def demonstration(self, style: str = "steps") -> str:
        """The response to imitate: the thought in one of ``STYLES``, then the answer."""
        thought = {
            "steps": added(self.digits),
            "straight": self.answer,
            "twice": f"{added(self.digits)}; {added(self.digits[::-1])}",
        }[style]
        return f"<think>{thought}</think><answer>{self.answer}</answer>"

    @property
    def category(self) -> str:
        if len(self.digits) > 2:
            return f"{WORDS[len(self.digits)]} digits"
        return "one-digit sum" if len(self.answer) == 1 else "two-digit sum"


def added(digits: tuple[int, ...]) -> str:
    """The digits added one by one: ``5+3=8, 8+2=10``."""
    totals = list(accumulate(digits))
    return ", ".join(f"{total}+{digit}={total + digit}" for total, digit in zip(totals, digits[1:], strict=False))


def question_about(digits: int) -> str:
    """What a row of so many digits asks."""
    return f"What is the sum of the {WORDS[digits]} digits?"


@cache
def _scans() -> tuple[np.ndarray, tuple[int, ...]]:
    """The scans as uint8 [1797, 8, 8], 255 for full ink, and their digits."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # takes a second to import

    bunch = load_digits()
    ink = np.rint(bunch.images * (255.0 / SCAN_MAXIMUM)).astype(np.uint8)
    return ink, tuple(int(digit) for digit in bunch.target)


@cache
def split_scans(seed: int) -> dict[str, tuple[int, ...]]:
    """Scan indices of each split, disjoint; of each digit's scans 10 % are validation and 10 % test."""
    _, labels = _scans()
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for digit in range(10):
        indices = [index for index, label in enumerate(labels) if label == digit]
        random.Random(f"digits split {seed} {digit}").shuffle(indices)
        held_out = round(len(indices) * HELD_OUT_SHARE)
        splits["validation"] += indices[:held_out]
        splits["test"] += indices[held_out : 2 * held_out]
        splits["train"] += indices[2 * held_out :]
    return {name: tuple(sorted(indices)) for name, indices in splits.items()}


def draw_row(split: str, number: int, *, seed: int, digits: tuple[int, int] = (2, 2)) -> DigitRow:
    """Row ``number`` of a split, independent of every other row: how many digits, which scans, and where.

    ``digits`` is the fewest and the most; every count between them is as likely. Each digit is drawn uniformly, then a
    scan of it; its box begins after the one before it ends.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    fewest, most = _checked(digits)
    _, labels = _scans()
    by_digit = _scans_by_digit(split, seed)
    generator = random.Random(f"digits row {seed} {split} {number}")
    count = fewest if fewest == most else generator.randint(fewest, most)
    scans = tuple(generator.choice(by_digit[generator.randrange(10)]) for _ in range(count))
    lefts: list[int] = []
    for place in range(count):
        home = place * WIDTH_OF_DIGIT
        first = max(lefts[-1] + DIGIT_SIZE if lefts else 0, home - STRAY_LEFT)
        last = min(count * WIDTH_OF_DIGIT - (count - place) * DIGIT_SIZE, home + STRAY_RIGHT)
        lefts.append(generator.randint(first, last))
    return DigitRow(
        id=f"{split}-{number:05d}",
        scans=scans,
        digits=tuple(labels[scan] for scan in scans),
        corners=tuple((left, generator.randint(0, IMAGE_HEIGHT - DIGIT_SIZE)) for left in lefts),
    )


def _checked(digits: tuple[int, int]) -> tuple[int, int]:
    fewest, most = digits
    if not min(WORDS) <= fewest <= most <= max(WORDS):
        raise ValueError(
            f"digits={tuple(digits)}: must be the fewest and the most of a row, from {min(WORDS)} to {max(WORDS)}"
        )
    return fewest, most


@cache
def _scans_by_digit(split: str, seed: int) -> tuple[tuple[int, ...], ...]:
    _, labels = _scans()
    indices = split_scans(seed)[split]
    return tuple(tuple(index for index in indices if labels[index] == digit) for digit in range(10))


def render(row: DigitRow) -> Image.Image:
    """The row's image: 8-bit grey, white ink on grey paper."""
    ink, _ = _scans()
    canvas = Image.new("L", (len(row.scans) * WIDTH_OF_DIGIT, IMAGE_HEIGHT), color=PAPER)
    for scan, corner in zip(row.scans, row.corners, strict=True):
        levels = np.rint(PAPER + ink[scan] * ((INK - PAPER) / 255)).astype(np.uint8)
        digit = Image.fromarray(levels).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BILINEAR)
        canvas.paste(digit, corner)
    return canvas


def as_json(row: DigitRow, style: str = "steps") -> dict[str, Any]:
    """The row as it stands in the JSON-lines file; the image path is relative to that file's directory."""
    return {
        "id": row.id,
        "images": [f"images/{row.id}.png"],
        "question": row.question,
        "answer": row.answer,
        "demonstration": row.demonstration(style),
        "category": row.category,
    }


def iterate_rows(split: str, rows: int, *, seed: int, digits: tuple[int, int] = (2, 2)) -> Iterator[DigitRow]:
    """Rows 0 to ``rows`` - 1 of a split, made one by one."""
    return (draw_row(split, number, seed=seed, digits=digits) for number in range(rows))


def write_digits_task(
    directory: str | Path,
    *,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    demonstration_rows: int = 0,
    digits: tuple[int, int] = (2, 2),
    styles: tuple[str, ...] = ("steps",),
) -> Path:
    """Writes ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``images/*.png`` and ``task.json``.

    ``demonstration_rows`` above 0 also writes ``demonstrations.jsonl``, the first so many training rows: what a warm
    start imitates, while reinforcement learning goes on with all of ``train.jsonl``. ``digits``: the fewest and the
    most of a row, as in `draw_row`. ``styles``: some of ``STYLES``; each row's demonstration is in one of them, drawn
    by the row's id. The same task already there is left as it is. Raises ValueError for a row count or a style that
    cannot be, and for a directory that holds anything else, which is not touched.
    """
    directory = Path(directory)
    rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    for split, count in rows.items():
        if count < 1:
            raise ValueError(f"{split}_rows={count}: must be at least 1")
    if not 0 <= demonstration_rows <= train_rows:
        raise ValueError(
            f"demonstration_rows={demonstration_rows}: must be from 0 to train_rows={train_rows}, for they are "
            "training rows"
        )
    if not styles or not set(styles) <= set(STYLES):
        raise ValueError(f"styles={styles}: must be some of {', '.join(STYLES)}")
    settings = _settings(rows, demonstration_rows, seed, _checked(digits), styles)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        _check_same_task(directory, settings)
        return directory

    # Made beside its place and renamed, so an interrupted run leaves nothing that looks like a task.
    building = directory.with_name(f".{directory.name}.incomplete")
    shutil.rmtree(building, ignore_errors=True)
    (building / "images").mkdir(parents=True)
    for split, count in rows.items():
        lines = []
        drawn = iterate_rows(split, count, seed=seed, digits=digits)
        for row in tqdm(drawn, total=count, desc=f"drawing {split}", unit="image", delay=2, leave=False, disable=None):
            written = as_json(row, random.Random(f"digits style {seed} {row.id}").choice(styles))
            # Stored, not compressed: the file's bytes do not depend on the machine's zlib.
            render(row).save(building / written["images"][0], compress_level=0)
            lines.append(json.dumps(written))
        _write_lines(building / f"{split}.jsonl", lines)
        if split == "train" and demonstration_rows:
            _write_lines(building / "demonstrations.jsonl", lines[:demonstration_rows])
    description = {**settings, "sha256": _content_hash(building)}
    (building / "task.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if directory.exists():
        directory.rmdir()
    building.rename(directory)
    return directory


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _settings(
    rows: dict[str, int], demonstration_rows: int, seed: int, digits: tuple[int, int], styles: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "task": "digits",
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "rows": rows,
        "demonstration_rows": demonstration_rows,
        "digits": list(digits),
        "styles": list(styles),
        "image": [IMAGE_HEIGHT, WIDTH_OF_DIGIT],
        "digit": DIGIT_SIZE,
        "paper": PAPER,
        "ink": INK,
    }


def _content_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of everything but ``task.json``."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "task.json":
            digest.update(f"{path.relative_to(directory).as_posix()}\n{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_same_task(directory: Path, settings: dict[str, Any]) -> None:
    remedy = "choose another directory, or remove this one"
    description_file = directory / "task.json"
    if not description_file.is_file():
        raise ValueError(f"directory={directory}: holds something that is not a digits task; {remedy}")
    try:
        description = json.loads(description_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"directory={directory}: task.json is not readable ({error}); {remedy}") from error
    # A task that names no styles was written before there were any.
    found = {"styles": ["steps"], **description} if isinstance(description, dict) else {}
    different = [key for key, value in settings.items() if found.get(key) != value]
    if different:
        shown = ", ".join(f"{key} is {found.get(key)!r}, not {settings[key]!r}" for key in different)
        raise ValueError(f"directory={directory}: holds another task ({shown}); {remedy}")
    if found.get("sha256") != _content_hash(directory):
        raise ValueError(f"directory={directory}: the files of this task were changed since it was made; {remedy}")
