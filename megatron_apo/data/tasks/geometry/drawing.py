"""A laid-out figure as a picture: crisp lines, drawn four times as large and reduced, texts at their final size."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from megatron_apo.data.tasks.geometry.layout import NAME_SIZE, Drawing, font

_LARGER = 4
_LINE, _MARK = 1.8, 1.2  # pixels
_DASH, _DASH_GAP = 6.0, 4.0  # pixels
_DOT = 2.6  # pixels, radius


@dataclass(frozen=True)
class Style:
    """Colours as (red, green, blue), and whether all points are dotted."""

    paper: tuple[int, int, int]
    ink: tuple[int, int, int]
    mark: tuple[int, int, int]
    area: tuple[int, int, int]
    dots: bool


STYLES = (
    Style(paper=(255, 255, 255), ink=(20, 20, 24), mark=(20, 20, 24), area=(228, 232, 240), dots=False),
    Style(paper=(255, 255, 255), ink=(22, 42, 110), mark=(178, 34, 52), area=(220, 230, 248), dots=True),
    Style(paper=(252, 249, 240), ink=(40, 40, 44), mark=(0, 96, 122), area=(238, 228, 206), dots=True),
    Style(paper=(246, 248, 250), ink=(24, 70, 60), mark=(170, 80, 10), area=(214, 232, 224), dots=False),
)


def drawn(drawing: Drawing, size: tuple[int, int], style: Style) -> Image.Image:
    """An RGB picture of ``size`` (width, height) pixels."""
    large = Image.new("RGB", (size[0] * _LARGER, size[1] * _LARGER), style.paper)
    pen = ImageDraw.Draw(large)
    for area in drawing.areas:
        pen.polygon(_places(area), fill=style.area)
    for mark in drawing.marks:
        _line(pen, mark, style.mark, _MARK)
    for line in drawing.lines:
        _line(pen, line, style.ink, _LINE)
    for line in drawing.dashed:
        for dash in _dashes(*line):
            _line(pen, dash, style.ink, _LINE)
    for name, place in drawing.points.items():
        if name in drawing.lone or (style.dots and name.isupper()):
            _dot(pen, place, style.ink, _DOT)
    picture = large.reduce(_LARGER)
    pen = ImageDraw.Draw(picture)
    for text in drawing.texts:
        colour = style.ink if text.size == NAME_SIZE else style.mark
        pen.text((text.centre.real, text.centre.imag), text.text, fill=colour, font=font(text.size), anchor="mm")
    return picture


def draw_style(generator: random.Random) -> Style:
    """One of ``STYLES``."""
    return generator.choice(STYLES)


def _line(pen: ImageDraw.ImageDraw, line: np.ndarray, colour: tuple[int, int, int], width: float) -> None:
    pen.line(_places(line), fill=colour, width=round(width * _LARGER), joint="curve")
    for end in (line[0], line[-1]):  # round ends, so that lines that meet leave no notch
        _dot(pen, end, colour, width / 2)


def _dot(pen: ImageDraw.ImageDraw, place: complex, colour: tuple[int, int, int], radius: float) -> None:
    x, y, r = place.real * _LARGER, place.imag * _LARGER, radius * _LARGER
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _places(line: np.ndarray) -> list[tuple[float, float]]:
    return [(place.real * _LARGER, place.imag * _LARGER) for place in line]


def _dashes(start: complex, end: complex) -> list[np.ndarray]:
    length = abs(end - start)
    way = (end - start) / length
    count = math.ceil(length / (_DASH + _DASH_GAP))
    starts = [start + way * (_DASH + _DASH_GAP) * place for place in range(count)]
    return [np.array([at, at + way * min(_DASH, length - abs(at - start))]) for at in starts]
