"""The counting task: a rendered scene, a question about numbers of things, and the answer from the scene itself.

A scene belongs to one split by what is in it: no inventory of a validation or test scene is that of a training scene.
The split ``shifted`` is a second test: vehicles, more colours, more things, patterned ground, a higher camera.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from megatron_apo.data.tasks.counting.camera import HEIGHT, WIDTH
from megatron_apo.data.tasks.counting.placement import LEVELS as SCENE_LEVELS
from megatron_apo.data.tasks.counting.placement import draw_kinds, place_things
from megatron_apo.data.tasks.counting.questions import Question, ask
from megatron_apo.data.tasks.counting.render import render
from megatron_apo.data.tasks.counting.scene import Scene
from megatron_apo.data.tasks.files import SPLITS, check_split, counted_rows, split_of, write_task

LEVELS = (*SCENE_LEVELS, "mixed")
SHIFTED = "shifted"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CountingRow:
    """What one row shows and asks."""

    id: str
    level: str
    scene: Scene
    question: Question

    @property
    def demonstration(self) -> str:
        return f"<think>{self.question.thought}</think><answer>{self.question.answer}</answer>"


def draw_row(split: str, number: int, *, seed: int, level: str = "mixed") -> CountingRow:
    """Row ``number`` of a split, independent of every other row. ValueError for an unknown split or level."""
    check_split(split, (*SPLITS, SHIFTED))
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(LEVELS)}")
    generator = random.Random(f"counting {seed} {split} {number}")
    chosen = generator.choice(list(SCENE_LEVELS)) if level == "mixed" else level
    shifted = split == SHIFTED
    while True:
        kinds = draw_kinds(generator, chosen, shifted=shifted)
        if not shifted and split_of(f"counting {sorted(kinds)}", seed=seed) != split:
            continue
        scene = place_things(generator, kinds, chosen, shifted=shifted)
        if scene is not None:
            question = ask(scene, generator, chosen, shifted=shifted)
            return CountingRow(f"{split}-{number:05d}", chosen, scene, question)


def write_counting_task(
    directory: str | Path,
    *,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    seed: int,
    shifted_rows: int = 0,
    level: str = "mixed",
    demonstration_rows: int = 0,
    workers: int = 1,
) -> Path:
    """Writes the task as `megatron_apo.data.tasks.files.write_task` has it, ``shifted.jsonl`` where it has rows."""
    rows = counted_rows(train_rows, validation_rows, test_rows, demonstration_rows, **{SHIFTED: shifted_rows})
    draw_row("train", 0, seed=seed, level=level)  # says at once what cannot be drawn
    settings = {
        "task": "counting",
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "level": level,
        "rows": rows,
        "demonstration_rows": demonstration_rows,
        "image": [WIDTH, HEIGHT],
    }
    return write_task(directory, settings, partial(_drawn, seed=seed, level=level), workers=workers)


def _drawn(split: str, number: int, *, seed: int, level: str) -> tuple[dict[str, Any], Image.Image]:
    row = draw_row(split, number, seed=seed, level=level)
    fields = {
        "id": row.id,
        "images": [f"images/{row.id}.png"],
        "question": row.question.text,
        "answer": row.question.answer,
        "demonstration": row.demonstration,
        "category": f"{row.level}: {row.question.kind}",
    }
    return fields, render(row.scene)
