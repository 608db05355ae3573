"""A figure: named points in the plane, what is drawn between them, and what is written at angles and lengths.

Points are complex numbers, x + iy with y upwards, in any unit: a turn is a product, a mirror image a conjugate. A
one-letter name in capitals is written beside its point; other points only hold ends of lines.
"""

from __future__ import annotations

import cmath
import math
import random
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Segment:
    """A line between two points. ``ticks``: short strokes that mark equal lengths; ``arrows``: parallel lines."""

    start: str
    end: str
    dashed: bool = False
    ticks: int = 0
    arrows: int = 0


@dataclass(frozen=True)
class Circle:
    """A circle about ``centre`` through ``on``."""

    centre: str
    on: str


@dataclass(frozen=True)
class Sector:
    """The part of the plane that the radius sweeps, anticlockwise before any mirror, from ``start`` to ``end``."""

    centre: str
    start: str
    end: str


@dataclass(frozen=True)
class Angle:
    """The angle start-vertex-end below 180 degrees, marked by ``rings`` arcs, or by a square (``right``)."""

    start: str
    vertex: str
    end: str
    text: str = ""
    rings: int = 1
    right: bool = False


@dataclass(frozen=True)
class Length:
    """A length written beside the line from ``start`` to ``end``; with its name, "AB = 7", where ``text`` alone could
    be taken for that of a part."""

    start: str
    end: str
    text: str
    named: bool = False

    @property
    def written(self) -> str:
        return f"{self.start}{self.end} = {self.text}" if self.named else self.text


@dataclass
class Figure:
    """What a picture shows; its methods add to it and return it, so that a family reads as a list."""

    points: dict[str, complex]
    segments: list[Segment] = field(default_factory=list)
    circles: list[Circle] = field(default_factory=list)
    sectors: list[Sector] = field(default_factory=list)
    angles: list[Angle] = field(default_factory=list)
    lengths: list[Length] = field(default_factory=list)

    def lines(self, pairs: str, *, dashed: bool = False) -> Figure:
        """Segments between pairs of one-letter points: ``"AB BC"``."""
        self.segments += [Segment(pair[0], pair[1], dashed) for pair in pairs.split()]
        return self

    def equal(self, pairs: str, ticks: int = 1) -> Figure:
        """Marks lines that are drawn already as equally long."""
        for place in self._drawn(pairs):
            self.segments[place] = replace(self.segments[place], ticks=ticks)
        return self

    def parallel(self, pairs: str, arrows: int = 1) -> Figure:
        """Marks lines that are drawn already as parallel; the arrows point from the first to the second point."""
        for pair, place in zip(pairs.split(), self._drawn(pairs), strict=True):
            self.segments[place] = replace(self.segments[place], start=pair[0], end=pair[1], arrows=arrows)
        return self

    def _drawn(self, pairs: str) -> list[int]:
        """Where in ``segments`` the lines between these pairs of points are."""
        found = []
        for pair in pairs.split():
            places = [place for place, line in enumerate(self.segments) if {line.start, line.end} == set(pair)]
            assert len(places) == 1, f"{pair} is drawn {len(places)} times"
            found += places
        return found

    def circle(self, centre_and_point: str) -> Figure:
        """The circle about the first point through the second."""
        self.circles.append(Circle(centre_and_point[0], centre_and_point[1]))
        return self

    def sector(self, centre_start_end: str) -> Figure:
        """A shaded sector, of less or more than half a turn."""
        self.sectors.append(Sector(centre_start_end[0], centre_start_end[1], centre_start_end[2]))
        return self

    def angle(self, corner: str, text: object = "", rings: int = 1) -> Figure:
        """Marks the angle ``"ABC"`` at B; a number is written in degrees."""
        written = f"{text}°" if isinstance(text, int) else str(text)
        self.angles.append(Angle(corner[0], corner[1], corner[2], written, rings))
        return self

    def right(self, *corners: str) -> Figure:
        """Marks right angles by a square."""
        self.angles += [Angle(corner[0], corner[1], corner[2], right=True) for corner in corners]
        return self

    def length(self, pair: str, value: int, *, named: bool = False) -> Figure:
        """Writes a length beside the line between two points, ``named`` where other points lie on it."""
        self.lengths.append(Length(pair[0], pair[1], str(value), named))
        return self

    def turned(self, draw: random.Random) -> Figure:
        """The figure turned by any angle and, half of the time, mirrored."""
        turn = cmath.exp(2j * math.pi * draw.random())
        mirror = draw.random() < 0.5
        return replace(self, points={k: (v.conjugate() if mirror else v) * turn for k, v in self.points.items()})

    def renamed(self, names: dict[str, str]) -> Figure:
        """The figure with other point names; a name that is not in ``names`` stays."""

        def new(name: str) -> str:
            return names.get(name, name)

        return Figure(
            points={new(name): place for name, place in self.points.items()},
            segments=[replace(line, start=new(line.start), end=new(line.end)) for line in self.segments],
            circles=[Circle(new(circle.centre), new(circle.on)) for circle in self.circles],
            sectors=[Sector(new(part.centre), new(part.start), new(part.end)) for part in self.sectors],
            angles=[replace(a, start=new(a.start), vertex=new(a.vertex), end=new(a.end)) for a in self.angles],
            lengths=[replace(mark, start=new(mark.start), end=new(mark.end)) for mark in self.lengths],
        )

    def extent(self) -> tuple[complex, complex]:
        """Lower left and upper right corner of everything drawn."""
        places = list(self.points.values())
        for circle in self.circles:
            centre = self.points[circle.centre]
            radius = abs(self.points[circle.on] - centre)
            places += [centre + radius * way for way in (1, -1, 1j, -1j)]
        xs, ys = [place.real for place in places], [place.imag for place in places]
        return complex(min(xs), min(ys)), complex(max(xs), max(ys))


def direction(degrees: float) -> complex:
    """The unit vector at so many degrees from the x axis."""
    return cmath.exp(1j * math.radians(degrees))


def crossing(start: complex, way: complex, other_start: complex, other_way: complex) -> complex:
    """Where two lines meet, each given by a point and a direction that are not parallel."""
    between = other_start - start
    return start + way * _cross(between, other_way) / _cross(way, other_way)


def _cross(first: complex, second: complex) -> float:
    return (first.conjugate() * second).imag


def triangle(angle_a: float, angle_b: float, base: float = 1.0) -> tuple[complex, complex, complex]:
    """A, B and C anticlockwise, with the angles at A and B in degrees and AB so long."""
    a, b = 0j, complex(base)
    return a, b, crossing(a, direction(angle_a), b, direction(180 - angle_b))
