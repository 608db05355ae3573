"""Rows on disk: JSON lines, one question about one or more images each.

    {"id": "train-17", "images": ["images/17.png"], "question": "What is …?", "answer": "9"}

``demonstration`` (the response to imitate, for supervised training) and ``category`` (a label that evaluation groups
by) are optional. Every row is checked before anything is trained: a bad one never gets a default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_REPORTED = 10
_KEYS = ("id", "images", "question", "answer", "demonstration", "category")


@dataclass(frozen=True)
class Row:
    """One question. ``images`` are absolute paths of existing files."""

    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    demonstration: str = ""
    category: str = ""


def read_rows(path: str | Path, image_root: str | Path, check_gold: Callable[[str], None]) -> list[Row]:
    """All rows of a JSON-lines file, in order.

    ``image_root``: directory that relative image paths start from and that every image must lie under; empty: the
    file's own directory. ``check_gold`` raises ValueError for a gold answer that the grader cannot parse.
    Raises ValueError naming up to ten bad rows (line, id, reason), or a file that cannot be read or has no rows.
    """
    path = Path(path)
    root = (Path(image_root) if str(image_root) else path.parent).resolve()
    rows: list[Row] = []
    problems: list[str] = []
    lines_of_ids: dict[str, int] = {}
    gold_problems: dict[str, str] = {}  # parsing an answer is slow, and answers repeat
    found_images: dict[str, str] = {}
    for number, text in _lines(path):
        try:
            fields = _parse(text)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        name = fields.get("id")
        label = f"line {number}, row {name!r}" if isinstance(name, str) and name else f"line {number}"
        try:
            row = _row(fields, root, found_images)
            if row.id in lines_of_ids:
                raise ValueError(f"this id is already taken by line {lines_of_ids[row.id]}; ids must be unique")
            if row.answer not in gold_problems:
                gold_problems[row.answer] = _gold_problem(row.answer, check_gold)
            if gold_problems[row.answer]:
                raise ValueError(gold_problems[row.answer])
        except ValueError as error:
            problems.append(f"{label}: {error}")
            continue
        lines_of_ids[row.id] = number
        rows.append(row)
    if problems:
        shown = "\n  ".join(problems[:_MAX_REPORTED])
        more = f"\n  … and {len(problems) - _MAX_REPORTED} more" if len(problems) > _MAX_REPORTED else ""
        raise ValueError(f"{path}: {len(problems)} bad row(s); correct or remove them:\n  {shown}{more}")
    if not rows:
        raise ValueError(f"{path}: holds no rows; expected one JSON object per line with {', '.join(_KEYS[:4])}")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); check data.train/validation/test"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); expected JSON lines") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, this is a {type(fields).__name__}")
    return fields


def _row(fields: dict[str, Any], root: Path, found_images: dict[str, str]) -> Row:
    unknown = sorted(set(fields) - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown key {', '.join(map(repr, unknown))}; known are {', '.join(_KEYS)}")
    images = fields.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(item, str) and item for item in images):
        raise ValueError(f"images={images!r}: must be a list of at least one file name")
    return Row(
        id=_text(fields, "id"),
        images=tuple(_image(item, root, found_images) for item in images),
        question=_text(fields, "question"),
        answer=_text(fields, "answer"),
        demonstration=_optional_text(fields, "demonstration"),
        category=_optional_text(fields, "category"),
    )


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        raise ValueError(f"{key} is missing")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}={value!r}: must be text that is not empty (write numbers in quotes)")
    return value


def _optional_text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key}={value!r}: must be text")
    return value


def _image(name: str, root: Path, found: dict[str, str]) -> str:
    """Absolute path of an existing image under ``root``; symbolic links are followed before the check."""
    if name not in found:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"image {name!r} lies outside {root}; set data.image_root to a directory that holds it")
        if not path.is_file():
            raise ValueError(f"image {name!r} does not exist under {root}")
        found[name] = str(path)
    return found[name]


def _gold_problem(answer: str, check_gold: Callable[[str], None]) -> str:
    try:
        check_gold(answer)
    except ValueError as error:
        return f"answer={answer!r}: the grader cannot parse it ({error})"
    return ""
