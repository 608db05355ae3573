"""Solids as a ray meets them: sphere, box, cylinder and cone of unit size, stretched, turned and put somewhere.

A point of space goes to the solid's own coordinates by ``inverse @ (point - centre)``; there every solid lies within
-1 to 1. A ray's parameter t is the same in both, so nothing has to be rescaled. Arrays of vectors are [3, …].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_apo.data.tasks.counting.scene import COLOURS, FURTHER_COLOURS, SIZES, Colour, Thing

_TYRE: Colour = (0.02, 0.02, 0.022)
_GLASS: Colour = (0.05, 0.08, 0.11)
_STEEL: Colour = (0.45, 0.45, 0.46)
_EPSILON = 1e-6


@dataclass(frozen=True)
class Solid:
    """One stretched unit solid. ``owner`` is the index of its thing; ``look`` is matte, metal or glass."""

    kind: str
    centre: np.ndarray  # [3]
    matrix: np.ndarray  # [3, 3], from its own coordinates to those of the world
    owner: int
    colour: Colour
    look: str

    @cached_property
    def inverse(self) -> np.ndarray:
        """[3, 3], from the world to its own coordinates."""
        return np.linalg.inv(self.matrix).astype(np.float32)

    @cached_property
    def radius(self) -> float:
        """Of a ball about the centre that holds it."""
        return float(np.linalg.norm(self.matrix))

    def corners(self) -> np.ndarray:
        """The eight corners of its box, [3, 8]."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float32).T
        return self.centre[:, None] + self.matrix @ signs

    def entry(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The parameter t at which each ray (world coordinates, [3, …] that broadcast) enters; inf where it misses or
        the solid lies behind its start."""
        inverse = self.inverse
        start = _apply(inverse, origins - self.centre.reshape(3, *[1] * (origins.ndim - 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return _ENTRIES[self.kind](start, _apply(inverse, directions))

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Unit normals at points of its surface, [3, N] each."""
        inverse = self.inverse
        normals = inverse.T @ _NORMALS[self.kind](inverse @ (points - self.centre[:, None]))
        return normals / np.sqrt(dot(normals, normals))


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of vectors along the first axis."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrix @ vectors.reshape(3, -1)).reshape(vectors.shape)


def _sphere_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
    inside = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (t > 0), t, np.inf)


def _box_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    inverse = 1 / np.where(np.abs(d) < _EPSILON, _EPSILON, d)
    one, other = (-1 - o) * inverse, (1 - o) * inverse
    near, far = np.minimum(one, other).max(axis=0), np.maximum(one, other).min(axis=0)
    return np.where((near < far) & (near > 0), near, np.inf)


def _cylinder_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    a = d[0] * d[0] + d[1] * d[1] + _EPSILON
    b, c = o[0] * d[0] + o[1] * d[1], o[0] * o[0] + o[1] * o[1] - 1
    inside = b * b - a * c
    width = np.sqrt(np.maximum(inside, 0))
    inverse = 1 / np.where(np.abs(d[2]) < _EPSILON, _EPSILON, d[2])
    one, other = (-1 - o[2]) * inverse, (1 - o[2]) * inverse
    near = np.maximum((-b - width) / a, np.minimum(one, other))
    far = np.minimum((-b + width) / a, np.maximum(one, other))
    return np.where((inside > 0) & (near < far) & (near > 0), near, np.inf)


def _cone_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Apex at z = 1, base of radius 1 at z = -1: x² + y² = ((1 - z) / 2)²."""
    height = 1 - o[2]
    a = d[0] * d[0] + d[1] * d[1] - d[2] * d[2] / 4
    b = o[0] * d[0] + o[1] * d[1] + height * d[2] / 4
    c = o[0] * o[0] + o[1] * o[1] - height * height / 4
    a = np.where(np.abs(a) < _EPSILON, _EPSILON, a)
    inside = b * b - a * c
    width = np.sqrt(np.maximum(inside, 0))
    nearest = np.full(inside.shape, np.inf, dtype=np.float32)
    for root in ((-b - width) / a, (-b + width) / a):
        z = o[2] + root * d[2]
        hit = (inside > 0) & (root > 0) & (np.abs(z) < 1)
        nearest = np.where(hit, np.minimum(nearest, root), nearest)
    base = (-1 - o[2]) / np.where(np.abs(d[2]) < _EPSILON, _EPSILON, d[2])
    hit = (base > 0) & ((o[0] + base * d[0]) ** 2 + (o[1] + base * d[1]) ** 2 < 1)
    nearest = np.where(hit, np.minimum(nearest, base), nearest)
    # A ray that starts on the cone or in it leaves it only: like the other solids, it is not entered.
    within = (o[0] * o[0] + o[1] * o[1] < (height / 2) ** 2 * 1.001) & (np.abs(o[2]) < 1)
    return np.where(within, np.inf, nearest)


def _box_normals(p: np.ndarray) -> np.ndarray:
    largest = np.abs(p) >= np.abs(p).max(axis=0)
    return np.where(largest, np.sign(p), 0)


def _cylinder_normals(p: np.ndarray) -> np.ndarray:
    end = np.abs(p[2]) > np.hypot(p[0], p[1])
    return np.stack([np.where(end, 0, p[0]), np.where(end, 0, p[1]), np.where(end, np.sign(p[2]), 0)])


def _cone_normals(p: np.ndarray) -> np.ndarray:
    end = p[2] < -0.999
    slope = np.where(end, -1.0, np.maximum(1 - p[2], 1e-3) / 4)
    return np.stack([np.where(end, 0, p[0]), np.where(end, 0, p[1]), slope])


_ENTRIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sphere": _sphere_entry,
    "box": _box_entry,
    "cylinder": _cylinder_entry,
    "cone": _cone_entry,
}
_NORMALS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sphere": lambda p: p,
    "box": _box_normals,
    "cylinder": _cylinder_normals,
    "cone": _cone_normals,
}

# Vehicles of unit size, their front at positive x: kind, centre, half sizes, and "body" for the thing's own colour. A
# wheel is a cylinder that lies across.
_Part = tuple[str, tuple[float, float, float], tuple[float, float, float], str]


def _wheels(*along: float, aside: float) -> list[_Part]:
    return [("wheel", (x, y, 0.24), (0.24, 0.24, 0.1), "tyre") for x in along for y in (-aside, aside)]


_VEHICLES: dict[str, list[_Part]] = {
    "car": [
        ("box", (0, 0, 0.46), (1.0, 0.46, 0.2), "body"),
        ("box", (-0.1, 0, 0.8), (0.5, 0.4, 0.16), "glass"),
        ("box", (-0.12, 0, 0.98), (0.46, 0.41, 0.05), "body"),
        *_wheels(-0.6, 0.6, aside=0.44),
    ],
    "bus": [
        ("box", (0, 0, 0.82), (1.25, 0.45, 0.6), "body"),
        ("box", (0.06, 0, 1.06), (1.2, 0.46, 0.17), "glass"),
        *_wheels(-0.75, 0.75, aside=0.42),
    ],
    "truck": [
        ("box", (0.9, 0, 0.68), (0.3, 0.42, 0.46), "steel"),
        ("box", (1.0, 0, 0.86), (0.21, 0.43, 0.16), "glass"),
        ("box", (-0.32, 0, 0.92), (0.86, 0.47, 0.62), "body"),
        *_wheels(-0.75, 0.0, 0.85, aside=0.42),
    ],
    "plane": [
        ("sphere", (0, 0, 0.32), (1.25, 0.28, 0.3), "body"),
        ("box", (0.1, 0, 0.32), (0.28, 1.15, 0.045), "body"),
        ("box", (-1.0, 0, 0.42), (0.15, 0.48, 0.04), "body"),
        ("box", (-1.02, 0, 0.66), (0.17, 0.04, 0.3), "body"),
        ("sphere", (0.72, 0, 0.46), (0.24, 0.19, 0.16), "glass"),
    ],
}
_LOOKS: dict[str, tuple[Colour, str]] = {
    "tyre": (_TYRE, "matte"),
    "glass": (_GLASS, "glass"),
    "steel": (_STEEL, "matte"),
}


def solids_of(thing: Thing, owner: int) -> list[Solid]:
    """What a thing is made of, standing on the ground at its place."""
    size = SIZES[thing.size]
    colour = (COLOURS | FURTHER_COLOURS)[thing.colour]
    turn = _turn(math.radians(thing.turn))
    place = np.array([*thing.place, 0.0])
    parts = _VEHICLES.get(thing.shape) or [_solid_part(thing.shape)]
    found = []
    for kind, centre, half, what in parts:
        part_colour, look = (colour, thing.material) if what == "body" else _LOOKS[what]
        lie = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]) if kind == "wheel" else np.eye(3)
        found.append(
            Solid(
                kind="cylinder" if kind == "wheel" else kind,
                centre=(place + size * (turn @ np.array(centre))).astype(np.float32),
                matrix=(size * (turn @ lie @ np.diag(half))).astype(np.float32),
                owner=owner,
                colour=part_colour,
                look=look,
            )
        )
    return found


def _solid_part(shape: str) -> _Part:
    """A solid of half height 1; a cube's sides are shorter, so that it looks no larger than a sphere."""
    half = {"cube": (0.8, 0.8, 0.8), "sphere": (1, 1, 1), "cylinder": (0.8, 0.8, 0.9), "cone": (0.95, 0.95, 1.0)}[shape]
    return "box" if shape == "cube" else shape, (0, 0, half[2]), half, "body"


def _turn(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def reach(thing: Thing) -> float:
    """Radius of the circle on the ground that a thing fits in."""
    return SIZES[thing.size] * (1.34 if thing.shape in _VEHICLES else 1.14 if thing.shape == "cube" else 1.0)
