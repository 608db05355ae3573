"""A contact sheet: pictures of a task with question and answer under each, on one page."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from megatron_apo.data.images import load_image

_PAPER, _FRAME, _INK, _ANSWER = (255, 255, 255), (205, 208, 214), (40, 42, 48), (10, 90, 160)
_GAP, _LINE, _FONT = 14, 17, 13  # pixels: between cells, from line to line, and the font's size
_LETTER = 6.6  # pixels, an average letter of the font: where lines are wrapped
# What Pillow's own font has no letters for.
_WRITTEN_OUT = {"∠": "angle ", "π": "pi", "²": "^2", "√": "root of ", "\\pi": "pi", "$": ""}


def read_rows(directories: Sequence[str | Path], splits: Sequence[str]) -> list[dict[str, Any]]:
    """The tasks' rows, with a ``picture``'s path; ValueError where there is no such task or split."""
    found = []
    for file in (Path(directory) / f"{split}.jsonl" for directory in directories for split in splits):
        if not file.is_file():
            raise ValueError(f"{file}: does not exist; give a task's directory, and one of its splits as --split")
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.append({**row, "picture": file.parent / row["images"][0]})
    return found


def varied(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows of as many categories as there are: the first of each, then the second of each, and so on."""
    seen: dict[str, int] = {}
    order = []
    for place, row in enumerate(rows):
        turn = seen.get(row["category"], 0)
        seen[row["category"]] = turn + 1
        order.append((turn, place))
    return [rows[place] for _, place in sorted(sorted(order)[:count], key=lambda pair: pair[1])]


def contact_sheet(rows: list[dict[str, Any]], *, columns: int, width: int) -> Image.Image:
    """The rows side by side, each picture ``width`` pixels wide; a small one is enlarged by a whole factor."""
    cells = [_cell(row, width) for row in rows]
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    size = (columns * (width + _GAP) + _GAP, sum(heights) + (len(lines) + 1) * _GAP)
    page = Image.new("RGB", size, _PAPER)
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for place, cell in enumerate(line):
            page.paste(cell, (_GAP + place * (width + _GAP), top))
        top += height + _GAP
    return page


def write_sheet(
    directories: Sequence[str | Path],
    file: str | Path,
    *,
    splits: Sequence[str],
    rows: int,
    columns: int,
    width: int,
    colours: int = 0,
) -> Path:
    """Writes the sheet of one or more tasks as a PNG; ``colours`` above 0: with at most so many, a smaller file.

    ValueError for numbers that cannot be, where there is no task, and for another format.
    """
    for name, value in (("rows", rows), ("columns", columns), ("width", width)):
        if value < 1:
            raise ValueError(f"--{name}={value}: must be at least 1")
    if not 0 <= colours <= 256:
        raise ValueError(f"--colours={colours}: must be from 1 to 256, or 0 for all")
    if width < 56:
        raise ValueError(f"--width={width}: must be at least 56, for the words under a picture")
    page = contact_sheet(varied(read_rows(directories, splits), rows), columns=columns, width=width)
    file = Path(file)
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: the sheet is written as PNG; give a name that ends in .png")
    if colours:
        page = page.quantize(colours)
    page.save(file, optimize=True)
    return file


def _cell(row: dict[str, Any], width: int) -> Image.Image:
    picture = load_image(row["picture"])
    factor = width / picture.width
    if factor >= 2:
        picture = picture.resize((picture.width * int(factor), picture.height * int(factor)), Image.Resampling.NEAREST)
    elif factor != 1:
        picture = picture.resize((width, round(picture.height * factor)), Image.Resampling.LANCZOS)
    asked = _wrapped(row["question"], width)
    answered = _wrapped(row["answer"], width)
    cell = Image.new("RGB", (width, picture.height + 6 + _LINE * (len(asked) + len(answered))), _PAPER)
    cell.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(cell)
    pen.rectangle((0, 0, width - 1, picture.height - 1), outline=_FRAME)
    font = ImageFont.load_default(size=_FONT)
    for place, (text, colour) in enumerate([(t, _INK) for t in asked] + [(t, _ANSWER) for t in answered]):
        pen.text((2, picture.height + 4 + place * _LINE), text, fill=colour, font=font)
    return cell


def _wrapped(text: str, width: int) -> list[str]:
    text = re.sub(r"(\d?)\\sqrt\{([^{}]*)\}", lambda found: f"{found[1]} root {found[2]}".lstrip(), text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1/\2)", text)
    for sign, words in _WRITTEN_OUT.items():
        text = text.replace(sign, words)
    return [part for line in text.split("\n") for part in textwrap.wrap(line, max(8, int(width / _LETTER)))]
