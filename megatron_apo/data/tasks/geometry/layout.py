"""Where a figure's strokes and letters go on a picture: scaled to fit, every text clear of lines and other texts.

Pixel coordinates are complex numbers too, x + iy with y downwards.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import ImageFont

from megatron_apo.data.tasks.geometry.figure import Angle, Figure, Sector, Segment

NAME_SIZE, VALUE_SIZE = 18, 16  # font sizes of point names and of what is written at angles and lengths
_MARGIN = 30.0  # pixels between the figure and the border, for the names
_CLEAR = 2.0  # pixels between a text and the nearest stroke
_STEP = 1.5  # pixels between the points that stand for a stroke when texts look for room
_RADIUS, _RING = 20.0, 4.0  # pixels: an angle's arc, and from one of its rings to the next
_SQUARE = 11.0  # pixels: side of the mark of a right angle
_TICK, _ARROW = 5.0, 6.0  # pixels: half a tick, and the arms of a parallel mark


@dataclass(frozen=True)
class Text:
    """A text with the centre and half the size of its box."""

    text: str
    centre: complex
    half: complex
    size: int


@dataclass
class Drawing:
    """``points`` in pixels, ``lines`` (dashed ones apart), thin ``marks``, filled ``areas``, ``texts``, and ``lone``,
    the names of points that lie on no line."""

    points: dict[str, complex]
    lines: list[np.ndarray] = field(default_factory=list)
    dashed: list[np.ndarray] = field(default_factory=list)
    marks: list[np.ndarray] = field(default_factory=list)
    areas: list[np.ndarray] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    lone: frozenset[str] = frozenset()


def laid_out(figure: Figure, width: int, height: int) -> Drawing | None:
    """The figure on a picture of that size, or None when a text finds no room."""
    ends = {name for line in figure.segments for name in (line.start, line.end)}
    lone = frozenset(name for name in figure.points if name.isupper() and name not in ends)
    drawing = Drawing(_fitted(figure, width, height), lone=lone)
    places = drawing.points
    for line in figure.segments:
        (drawing.dashed if line.dashed else drawing.lines).append(np.array([places[line.start], places[line.end]]))
        drawing.marks += _line_marks(places[line.start], places[line.end], line)
    for circle in figure.circles:
        radius = abs(places[circle.on] - places[circle.centre])
        drawing.lines.append(_arc(places[circle.centre], radius, 0.0, 2 * math.pi))
    for sector in figure.sectors:
        arc = _sector_arc(places, sector)
        drawing.lines.append(arc)
        drawing.areas.append(np.concatenate([[places[sector.centre]], arc]))
    for angle in figure.angles:
        drawing.marks += _angle_marks(places, angle)
    return drawing if _write_texts(figure, drawing, width, height) else None


def _fitted(figure: Figure, width: int, height: int) -> dict[str, complex]:
    low, high = figure.extent()
    for sector in figure.sectors:
        arc = _sector_arc(figure.points, sector)
        low = complex(min(low.real, arc.real.min()), min(low.imag, arc.imag.min()))
        high = complex(max(high.real, arc.real.max()), max(high.imag, arc.imag.max()))
    span = high - low
    scale = min((width - 2 * _MARGIN) / max(span.real, 1e-9), (height - 2 * _MARGIN) / max(span.imag, 1e-9))
    middle = (low + high) / 2
    centre = complex(width, height) / 2
    return {name: centre + ((place - middle) * scale).conjugate() for name, place in figure.points.items()}


def _sector_arc(places: dict[str, complex], sector: Sector) -> np.ndarray:
    """From start to end, the shorter way round."""
    centre = places[sector.centre]
    start = places[sector.start] - centre
    sweep = cmath.phase((places[sector.end] - centre) / start)
    return _arc(centre, abs(start), cmath.phase(start), sweep)


def _arc(centre: complex, radius: float, start: float, sweep: float) -> np.ndarray:
    count = max(8, math.ceil(abs(sweep) * radius / 2))
    return centre + radius * np.exp(1j * (start + sweep * np.linspace(0, 1, count)))


def _line_marks(start: complex, end: complex, line: Segment) -> Iterator[np.ndarray]:
    way = (end - start) / abs(end - start)
    middle = (start + end) / 2
    for place in range(line.ticks):
        at = middle + way * 4.0 * (place - (line.ticks - 1) / 2)
        yield np.array([at + 1j * way * _TICK, at - 1j * way * _TICK])
    for place in range(line.arrows):
        tip = start + (end - start) * 0.62 + way * 6.0 * place
        yield np.array([tip + way * _ARROW * cmath.exp(2.5j), tip, tip + way * _ARROW * cmath.exp(-2.5j)])


def _angle_marks(places: dict[str, complex], angle: Angle) -> Iterator[np.ndarray]:
    vertex, first, sweep, arm = _opening(places, angle)
    if angle.right:
        side = min(_SQUARE, 0.4 * arm)
        one, other = side * cmath.exp(1j * first), side * cmath.exp(1j * (first + sweep))
        yield np.array([vertex + one, vertex + one + other, vertex + other])
        return
    for ring in range(angle.rings):
        yield _arc(vertex, _angle_radius(arm) + ring * _RING, first, sweep)


def _opening(places: dict[str, complex], angle: Angle) -> tuple[complex, float, float, float]:
    """The vertex, the first arm's direction, the signed angle to the second, and the shorter arm in pixels."""
    vertex = places[angle.vertex]
    one, other = places[angle.start] - vertex, places[angle.end] - vertex
    return vertex, cmath.phase(one), cmath.phase(other / one), min(abs(one), abs(other))


def _angle_radius(arm: float) -> float:
    return min(_RADIUS, 0.4 * arm)


def _write_texts(figure: Figure, drawing: Drawing, width: int, height: int) -> bool:
    """Finds each text its place, the most bound ones first; False when one has none."""
    strokes = _strokes(drawing)
    places = drawing.points
    wanted = []
    for angle in figure.angles:
        if angle.text:
            wanted.append((angle.text, VALUE_SIZE, list(_beside_angle(places, angle))))
    for mark in figure.lengths:
        ends = places[mark.start], places[mark.end]
        wanted.append((mark.written, VALUE_SIZE, list(_beside_line(*ends, _half_box(mark.written, VALUE_SIZE)))))
    middle = complex(width, height) / 2
    for name, place in places.items():
        if name.isupper():
            wanted.append((name, NAME_SIZE, list(_around_point(place, middle))))
    border = complex(width, height)
    for text, size, candidates in wanted:
        half = _half_box(text, size)
        found = _first_free(np.array(candidates), half, strokes, drawing.texts, border)
        if found is None:
            return False
        drawing.texts.append(Text(text, found, half, size))
    return True


def _beside_angle(places: dict[str, complex], angle: Angle) -> Iterator[complex]:
    """Along the middle of the angle, from the arc outwards, then a little aside."""
    vertex, first, sweep, arm = _opening(places, angle)
    start = _angle_radius(arm) + (angle.rings - 1) * _RING + 8
    for far in range(0, 34, 2):
        for aside in (0.5, 0.42, 0.58, 0.34, 0.66):
            yield vertex + (start + far) * cmath.exp(1j * (first + aside * sweep))


def _beside_line(start: complex, end: complex, half: complex) -> Iterator[complex]:
    """Beside the middle of the line on either side, as near as the box allows, then along the line."""
    way = (end - start) / abs(end - start)
    normal = 1j * way
    room = abs(normal.real) * half.real + abs(normal.imag) * half.imag + _CLEAR
    for along in (0.5, 0.43, 0.57, 0.36, 0.64, 0.3, 0.7):
        for gap in (2.0, 4.0, 7.0):
            for side in (1, -1):
                yield start + (end - start) * along + side * normal * (room + gap)


def _around_point(place: complex, middle: complex) -> Iterator[complex]:
    """Around the point, the direction away from the middle of the picture first."""
    away = cmath.phase(place - middle) if abs(place - middle) > 1 else -2.0
    for far in (13.0, 16.0, 19.0, 22.0):
        for turn in range(12):
            aside = (turn + 1) // 2 * (1 if turn % 2 else -1)
            yield place + far * cmath.exp(1j * (away + aside * math.pi / 6))


def _first_free(
    candidates: np.ndarray, half: complex, strokes: np.ndarray, texts: list[Text], border: complex
) -> complex | None:
    """The first centre whose box lies inside the picture and touches neither strokes nor texts."""
    x, y = candidates.real[:, None], candidates.imag[:, None]
    wide, tall = half.real + _CLEAR, half.imag + _CLEAR
    touched = ((abs(strokes.real - x) < wide) & (abs(strokes.imag - y) < tall)).any(axis=1)
    for other in texts:
        apart = candidates - other.centre
        together = half + other.half + complex(3, 2)
        touched |= (abs(apart.real) < together.real) & (abs(apart.imag) < together.imag)
    inside = (abs(candidates.real - border.real / 2) + half.real < border.real / 2 - 2) & (
        abs(candidates.imag - border.imag / 2) + half.imag < border.imag / 2 - 2
    )
    free = np.flatnonzero(inside & ~touched)
    return complex(candidates[free[0]]) if len(free) else None


def _strokes(drawing: Drawing) -> np.ndarray:
    """Points along everything that is drawn, close enough that no text slips between two of them."""
    parts = [np.array(list(drawing.points.values()))]
    for line in [*drawing.lines, *drawing.dashed, *drawing.marks]:
        for start, end in zip(line[:-1], line[1:], strict=True):
            count = max(2, math.ceil(abs(end - start) / _STEP) + 1)
            parts.append(start + (end - start) * np.linspace(0, 1, count))
    return np.concatenate(parts)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that pictures do not depend on the fonts of a machine."""
    found = ImageFont.load_default(size=size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install a wheel from PyPI: pip install pillow")
    return found


@cache
def _half_box(text: str, size: int) -> complex:
    left, top, right, bottom = font(size).getbbox(text, anchor="mm")
    return complex(max(-left, right), max(-top, bottom))
