"""The geometry task: a figure with given angles or lengths, a question, and an answer that can be derived.

The figure is drawn to its true values. What is given stands in the figure alone, so that it has to be looked at; the
text says what a figure cannot (that lines are parallel, what touches what) and asks. A problem belongs to one split by
its family and numbers: what a test row asks was not in any training row, in whatever position.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_apo.data.tasks.files import check_split, counted_rows, split_of, write_task
from megatron_apo.data.tasks.geometry.answers import Answer, degrees, number, times_pi
from megatron_apo.data.tasks.geometry.drawing import draw_style, drawn
from megatron_apo.data.tasks.geometry.families_circle_angles import CIRCLE_ANGLES
from megatron_apo.data.tasks.geometry.families_circle_lengths import CIRCLE_LENGTHS
from megatron_apo.data.tasks.geometry.families_lines import LINES
from megatron_apo.data.tasks.geometry.families_polygons import POLYGONS
from megatron_apo.data.tasks.geometry.families_triangle_angles import TRIANGLE_ANGLES
from megatron_apo.data.tasks.geometry.families_triangle_lengths import TRIANGLE_LENGTHS
from megatron_apo.data.tasks.geometry.layout import Drawing, laid_out
from megatron_apo.data.tasks.geometry.problem import Problem

FAMILIES = {**LINES, **TRIANGLE_ANGLES, **TRIANGLE_LENGTHS, **POLYGONS, **CIRCLE_ANGLES, **CIRCLE_LENGTHS}
LEVELS = ("easy", "medium", "hard", "mixed")
FORMAT_VERSION = 1
SIZE = (336, 336)  # pixels; multiples of 28 keep their size in Qwen2.5-VL
_NAMES = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # of points; O stays what it is, a centre
_OWN_NAMES = 0.5  # share of problems whose points keep the names of their family
_DRAWS, _TURNS = 100, 8  # tries at a problem of the split in one family, and at a position in which all texts fit


@dataclass(frozen=True)
class GeometryRow:
    """A problem as one row shows it. ``options`` are the four of the multiple-choice form, or empty."""

    id: str
    family: str
    level: str
    problem: Problem
    drawing: Drawing
    picture: Image.Image
    options: tuple[Answer, ...]

    @property
    def question(self) -> str:
        lines = [f"({letter}) {option.shown}" for letter, option in zip("ABCD", self.options, strict=False)]
        return "\n".join([self.problem.text, *lines])

    @property
    def answer(self) -> str:
        """The value, or the option's letter."""
        if not self.options:
            return self.problem.answer.text
        return "ABCD"[self.options.index(self.problem.answer)]

    @property
    def demonstration(self) -> str:
        steps = [*self.problem.steps, *([f"That is option {self.answer}."] if self.options else [])]
        return f"<think>{' '.join(steps)}</think><answer>{self.answer}</answer>"


def draw_row(split: str, number: int, *, seed: int, level: str = "mixed", choices: bool = False) -> GeometryRow:
    """Row ``number`` of a split, independent of every other row. ValueError for an unknown split or level."""
    check_split(split)
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(LEVELS)}")
    generator = random.Random(f"geometry {seed} {split} {number}")
    names = [name for name, family in FAMILIES.items() if level in ("mixed", family.level)]
    while True:  # a family of few problems may have none in a small split
        family = generator.choice(names)
        for _ in range(_DRAWS):
            problem = FAMILIES[family].draw(generator)
            if split_of(f"{family} {problem.values}", seed=seed) != split:
                continue
            problem = _with_other_names(problem, generator)
            drawing = _positioned(problem, generator)
            if drawing is None:
                continue
            return GeometryRow(
                id=f"{split}-{number:05d}",
                family=family,
                level=FAMILIES[family].level,
                problem=problem,
                drawing=drawing,
                picture=drawn(drawing, SIZE, draw_style(generator)),
                options=_options(problem, generator) if choices else (),
            )


def _with_other_names(problem: Problem, generator: random.Random) -> Problem:
    if generator.random() < _OWN_NAMES:
        return problem
    old = [name for name in problem.figure.points if name.isupper() and name != "O"]
    return problem.renamed(dict(zip(old, generator.sample(_NAMES, len(old)), strict=True)))


def _positioned(problem: Problem, generator: random.Random) -> Drawing | None:
    """The figure turned so that all its texts fit, or None when no turn was found."""
    for _ in range(_TURNS):
        drawing = laid_out(problem.figure.turned(generator), *SIZE)
        if drawing is not None:
            return drawing
    return None


def _options(problem: Problem, generator: random.Random) -> tuple[Answer, ...]:
    """The answer and three other values, in any order: mistakes of beginners first, then values nearby."""
    answer = problem.answer
    options = {answer.text: answer}
    mistakes = generator.sample(problem.mistakes, len(problem.mistakes))
    for option in [*mistakes, *_nearby(answer, generator)]:
        possible = option.value > 0 and (answer.unit != "°" or option.value < 180)
        if possible and all(abs(option.value - known.value) > 1e-9 for known in options.values()):
            options[option.text] = option
        if len(options) == 4:
            break
    found = list(options.values())
    generator.shuffle(found)
    return tuple(found)


def _nearby(answer: Answer, generator: random.Random) -> list[Answer]:
    if answer.unit == "°":
        return [degrees(round(answer.value) + step) for step in generator.sample([-20, -15, -10, 10, 15, 20], 6)]
    steps = generator.sample([1, 2, 3, 4, 5], 5)
    if "pi" in answer.text:
        return [times_pi(round(answer.value / math.pi) + step) for step in steps]
    return [number(round(answer.value) + step) for step in steps]


def write_geometry_task(
    directory: str | Path,
    *,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    level: str = "mixed",
    choices: bool = False,
    demonstration_rows: int = 0,
    workers: int = 1,
) -> Path:
    """Writes the task as `megatron_apo.data.tasks.files.write_task` has it. ``choices``: with options A to D."""
    rows = counted_rows(train_rows, validation_rows, test_rows, demonstration_rows)
    draw_row("train", 0, seed=seed, level=level)  # says at once what cannot be drawn
    settings = {
        "task": "geometry",
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "level": level,
        "choices": choices,
        "rows": rows,
        "demonstration_rows": demonstration_rows,
        "image": list(SIZE),
    }
    return write_task(directory, settings, partial(_drawn, seed=seed, level=level, choices=choices), workers=workers)


def _drawn(split: str, number: int, *, seed: int, level: str, choices: bool) -> tuple[dict[str, Any], Image.Image]:
    row = draw_row(split, number, seed=seed, level=level, choices=choices)
    fields: dict[str, Any] = {
        "id": row.id,
        "images": [f"images/{row.id}.png"],
        "question": row.question,
        "answer": row.answer,
        "demonstration": row.demonstration,
        "category": f"{row.level}: {row.family}",
    }
    return fields, row.picture
