"""Handwritten numbers compared: which of two is larger, and the largest of three.

The scans, their splits and their look are those of the sums (`megatron_apo.data.tasks.digits`); a gap stands between
the numbers. Two numbers ask for a side, an option letter; three ask for the largest itself.

    easy     one-digit numbers at least three apart (of three: the largest from the next)
    medium   one-digit numbers, any that differ
    hard     two-digit numbers, half of them with the same first digit
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_apo.data.tasks.digits import (
    DIGIT_SIZE,
    IMAGE_HEIGHT,
    WIDTH_OF_DIGIT,
    picture_of,
    scans_by_digit,
)
from megatron_apo.data.tasks.files import check_split, counted_rows, write_task

LEVELS = ("easy", "medium", "hard")
NUMBERS = {"comparison": 2, "largest": 3}  # kind of question: how many numbers it shows
QUESTIONS = {
    "comparison": "Which number is larger, the left one or the right one?\n(A) left\n(B) right",
    "largest": "What is the largest of the three numbers?",
}
CHOICES = ("left", "right")
FORMAT_VERSION = 1
_EASY_DISTANCE = 3
_SAME_FIRST_DIGIT = 0.5  # share of the hard rows
_GAP = WIDTH_OF_DIGIT  # pixels between two numbers, and a digit's room beside its box within its part


@dataclass(frozen=True)
class ComparisonRow:
    """What one row shows, from left to right: numbers, and the scans of their digits with top left corners (x, y)."""

    id: str
    kind: str
    level: str
    numbers: tuple[int, ...]
    scans: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]
    width: int

    @property
    def answer(self) -> str:
        largest = max(self.numbers)
        return "AB"[self.numbers.index(largest)] if self.kind == "comparison" else str(largest)

    @property
    def demonstration(self) -> str:
        """The numbers as they are read, compared one after the other, then the answer."""
        largest, thoughts = self.numbers[0], []
        for number in self.numbers[1:]:
            sign = "<" if largest < number else ">" if largest > number else "="
            thoughts.append(f"{largest}{sign}{number}")
            largest = max(largest, number)
        if self.kind == "comparison":
            thoughts.append(f"the {CHOICES[self.numbers.index(largest)]} one")
        return f"<think>{', '.join(thoughts)}</think><answer>{self.answer}</answer>"


def draw_comparison(split: str, number: int, *, seed: int, kind: str, level: str) -> ComparisonRow:
    """Row ``number`` of a split, independent of every other row. ValueError for an unknown split, kind or level."""
    check_split(split)
    if kind not in NUMBERS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(NUMBERS)}")
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(LEVELS)}")
    generator = random.Random(f"digit {kind} {level} {seed} {split} {number}")
    numbers = _numbers(generator, NUMBERS[kind], level)
    by_digit = scans_by_digit(split, seed)
    scans, corners, left = [], [], 0
    for value in numbers:
        for digit in str(value):
            scans.append(generator.choice(by_digit[int(digit)]))
            corners.append(
                (
                    left + generator.randint(0, WIDTH_OF_DIGIT - DIGIT_SIZE),
                    generator.randint(0, IMAGE_HEIGHT - DIGIT_SIZE),
                )
            )
            left += WIDTH_OF_DIGIT
        left += _GAP
    return ComparisonRow(
        id=f"{split}-{number:05d}",
        kind=kind,
        level=level,
        numbers=numbers,
        scans=tuple(scans),
        corners=tuple(corners),
        width=left - _GAP,
    )


def _numbers(generator: random.Random, count: int, level: str) -> tuple[int, ...]:
    """Numbers of a level, the largest of them once."""
    while True:
        if level == "hard":
            first = generator.randint(1, 9) if generator.random() < _SAME_FIRST_DIGIT else 0
            numbers = [10 * (first or generator.randint(1, 9)) + generator.randrange(10) for _ in range(count)]
        else:
            numbers = [generator.randrange(10) for _ in range(count)]
        *_, second, largest = sorted(numbers)
        if largest - second >= (_EASY_DISTANCE if level == "easy" else 1):
            return tuple(numbers)


def write_comparison_task(
    directory: str | Path,
    *,
    kind: str,
    level: str,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    demonstration_rows: int = 0,
) -> Path:
    """Writes the task as `megatron_apo.data.tasks.files.write_task` has it; ``kind`` is a key of ``NUMBERS``."""
    rows = counted_rows(train_rows, validation_rows, test_rows, demonstration_rows)
    draw_comparison("train", 0, seed=seed, kind=kind, level=level)  # says at once what cannot be drawn
    settings = {
        "task": "digits",
        "question": kind,
        "level": level,
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "rows": rows,
        "demonstration_rows": demonstration_rows,
    }
    return write_task(directory, settings, partial(_drawn, seed=seed, kind=kind, level=level), compress_level=0)


def _drawn(split: str, number: int, *, seed: int, kind: str, level: str) -> tuple[dict[str, Any], Image.Image]:
    row = draw_comparison(split, number, seed=seed, kind=kind, level=level)
    fields = {
        "id": row.id,
        "images": [f"images/{row.id}.png"],
        "question": QUESTIONS[kind],
        "answer": row.answer,
        "demonstration": row.demonstration,
        "category": f"{kind}, {level}",
    }
    return fields, picture_of(row.scans, row.corners, width=row.width)
