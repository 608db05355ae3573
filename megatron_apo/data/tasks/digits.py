"""Sums of handwritten digits: a task of real scans that fits a laptop.

Every row shows two to five of scikit-learn's 1,797 scans of handwritten digits (8 x 8 pixels; E. Alpaydin and
C. Kaynak, Optical Recognition of Handwritten Digits, UCI, CC BY 4.0; they come with scikit-learn, nothing is
downloaded) at random places of one image, and asks for their sum. More than two are added step by step, so that
difficulty and length of the answer grow with their number. The scans are split once into disjoint training, validation
and test scans, so a held-out row shows handwriting that no training row has shown.

Everything is a function of the seed: the same arguments write the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_apo.data.tasks.files import SPLITS, check_split, counted_rows, write_task

WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
# How a demonstration comes to the sum: digit by digit | all at once | from the left, then again from the right.
STYLES = ("steps", "straight", "twice")
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
    check_split(split)
    fewest, most = _checked(digits)
    _, labels = _scans()
    by_digit = scans_by_digit(split, seed)
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
def scans_by_digit(split: str, seed: int) -> tuple[tuple[int, ...], ...]:
    """The split's scans of each digit 0 to 9."""
    _, labels = _scans()
    indices = split_scans(seed)[split]
    return tuple(tuple(index for index in indices if labels[index] == digit) for digit in range(10))


def render(row: DigitRow) -> Image.Image:
    """The row's image: 8-bit grey, white ink on grey paper."""
    return picture_of(row.scans, row.corners, width=len(row.scans) * WIDTH_OF_DIGIT)


def picture_of(scans: tuple[int, ...], corners: tuple[tuple[int, int], ...], *, width: int) -> Image.Image:
    """So many pixels of grey paper with each scan at its top left corner (x, y)."""
    ink, _ = _scans()
    canvas = Image.new("L", (width, IMAGE_HEIGHT), color=PAPER)
    for scan, corner in zip(scans, corners, strict=True):
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
    rows = counted_rows(train_rows, validation_rows, test_rows, demonstration_rows)
    if not styles or not set(styles) <= set(STYLES):
        raise ValueError(f"styles={styles}: must be some of {', '.join(STYLES)}")
    settings = _settings(rows, demonstration_rows, seed, _checked(digits), styles)
    draw = partial(_drawn, seed=seed, digits=digits, styles=styles)
    # A task that names no styles was written before there were any.
    return write_task(directory, settings, draw, assumed={"styles": ["steps"]}, compress_level=0)


def _drawn(
    split: str, number: int, *, seed: int, digits: tuple[int, int], styles: tuple[str, ...]
) -> tuple[dict[str, Any], Image.Image]:
    row = draw_row(split, number, seed=seed, digits=digits)
    return as_json(row, random.Random(f"digits style {seed} {row.id}").choice(styles)), render(row)


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
