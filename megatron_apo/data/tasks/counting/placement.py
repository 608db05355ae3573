"""Draws scenes: what is in them, and places where everything can be seen.

A thing is placed so that it stands apart from the others, lies within the picture, and keeps a share of its own area
visible, which is measured on the picture's own samples, not guessed from distances.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from megatron_apo.data.tasks.counting.camera import HEIGHT, WIDTH, Camera, look
from megatron_apo.data.tasks.counting.ground import PATTERNS
from megatron_apo.data.tasks.counting.scene import (
    COLOURS,
    FURTHER_COLOURS,
    MATERIALS,
    SIZES,
    SOLIDS,
    VEHICLES,
    Colour,
    Ground,
    Scene,
    Thing,
    View,
)
from megatron_apo.data.tasks.counting.solids import reach, solids_of

Kind = tuple[str, str, str, str]  # size, colour, material, shape


@dataclass(frozen=True)
class Level:
    """``things``: fewest and most of a scene; ``visible``: least share of its own area that each thing shows."""

    things: tuple[int, int]
    visible: float


LEVELS = {
    "easy": Level(things=(2, 4), visible=0.85),
    "medium": Level(things=(3, 7), visible=0.60),
    "hard": Level(things=(5, 10), visible=0.35),
}
_MORE_WHEN_SHIFTED = 2  # things than the level has
_GAP = 0.15  # between two things, in units of the ground
_BORDER = 6  # pixels between a thing and the picture's edge
_LEAST_PIXELS = 70  # of every thing that are seen
_SPARE = 0.03  # of the visible share: it is measured once a pixel here, and may differ from what is drawn
_DRAWS, _MOVES = 60, 25  # tries at a place for a thing, and at another one for the thing that is hidden most
_GROUNDS: tuple[Colour, ...] = ((0.33, 0.33, 0.34), (0.38, 0.37, 0.35), (0.29, 0.31, 0.33))
_PATTERN_COLOURS: tuple[tuple[Colour, Colour], ...] = (
    ((0.40, 0.37, 0.32), (0.19, 0.17, 0.15)),
    ((0.30, 0.20, 0.12), (0.12, 0.075, 0.04)),
    ((0.34, 0.38, 0.41), (0.16, 0.20, 0.24)),
    ((0.16, 0.26, 0.11), (0.30, 0.34, 0.17)),
)


def draw_kinds(generator: random.Random, level: str, *, shifted: bool) -> tuple[Kind, ...]:
    """What is in a scene, before it has a place."""
    fewest, most = LEVELS[level].things
    count = generator.randint(fewest, most) + (_MORE_WHEN_SHIFTED if shifted else 0)
    colours = list(COLOURS | FURTHER_COLOURS if shifted else COLOURS)
    shapes = VEHICLES if shifted else SOLIDS
    return tuple(
        (
            generator.choice(list(SIZES)),
            generator.choice(colours),
            generator.choice(MATERIALS),
            generator.choice(shapes),
        )
        for _ in range(count)
    )


def place_things(generator: random.Random, kinds: tuple[Kind, ...], level: str, *, shifted: bool) -> Scene | None:
    """A scene of these kinds in which each can be seen; None when no place was found for one."""
    view = View(
        distance=generator.uniform(10.6, 11.2) + (1.0 if shifted else 0.0),
        elevation=generator.uniform(38, 46) if shifted else generator.uniform(29, 35),
        light_azimuth=generator.choice([generator.uniform(110, 160), generator.uniform(200, 250)]),
        light_elevation=generator.uniform(48, 62),
    )
    camera = Camera.of(view)
    things: list[Thing] = []
    for kind in kinds:
        thing = _placed(generator, camera, kind, things)
        if thing is None:
            return None
        things.append(thing)
    for _ in range(_MOVES):
        hidden = _most_hidden(camera, things, LEVELS[level].visible + _SPARE)
        if hidden is None:
            return Scene(tuple(things), _ground(generator, shifted=shifted), view)
        others = things[:hidden] + things[hidden + 1 :]
        moved = _placed(generator, camera, kinds[hidden], others)
        if moved is None:
            return None
        things[hidden] = moved
    return None


def _ground(generator: random.Random, *, shifted: bool) -> Ground:
    turn, scale = generator.uniform(0, 90), generator.uniform(0.9, 1.5)
    if not shifted:
        colour = generator.choice(_GROUNDS)
        return Ground("plain", colour, colour, scale, turn)
    return Ground(generator.choice(PATTERNS), *generator.choice(_PATTERN_COLOURS), scale, turn)


def _placed(generator: random.Random, camera: Camera, kind: Kind, others: list[Thing]) -> Thing | None:
    size, colour, material, shape = kind
    for _ in range(_DRAWS):
        place = generator.uniform(-4.2, 4.2), generator.uniform(-3.4, 3.6)
        thing = Thing(shape, colour, size, material, place, generator.uniform(0, 360))
        apart = all(math.dist(place, o.place) > reach(thing) + reach(o) + _GAP for o in others)
        if apart and _inside(camera, thing):
            return thing
    return None


def _inside(camera: Camera, thing: Thing) -> bool:
    corners = np.concatenate([solid.corners() for solid in solids_of(thing, 0)], axis=1)
    x, y = camera.project(corners)
    return bool(x.min() > _BORDER and x.max() < WIDTH - _BORDER and y.min() > _BORDER and y.max() < HEIGHT - _BORDER)


def _most_hidden(camera: Camera, things: list[Thing], least: float) -> int | None:
    """The thing that shows too little of itself, the least if several do; None when all show enough."""
    solids = [solid for owner, thing in enumerate(things) for solid in solids_of(thing, owner)]
    buffers = look(camera, solids, len(things), 1)
    shares = np.where(buffers.visible < _LEAST_PIXELS, 0.0, buffers.visible_shares)
    worst = int(np.argmin(shares))
    return worst if shares[worst] < least else None


def across(scene: Scene) -> list[float]:
    """Where the middle of each thing lies in the picture, in pixels from the left."""
    middles = np.array([[*thing.place, SIZES[thing.size]] for thing in scene.things], dtype=np.float32).T
    return [float(x) for x in Camera.of(scene.view).project(middles)[0]]
