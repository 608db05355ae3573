"""What the camera sees: its rays, the nearest solid along each, and how much of every thing stays visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megatron_apo.data.tasks.counting.scene import View
from megatron_apo.data.tasks.counting.solids import Solid

WIDTH, HEIGHT = 336, 252  # pixels; multiples of 28 keep their size in Qwen2.5-VL
_FIELD = math.tan(math.radians(20.5))  # half the picture's width at distance 1


@dataclass(frozen=True)
class Camera:
    """A pinhole at ``eye`` looking along ``forward``; all vectors [3], float32."""

    eye: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray

    @staticmethod
    def of(view: View) -> Camera:
        """The camera of a view: it looks at a point a little above the middle of the ground, x to the right."""
        rise = math.radians(view.elevation)
        eye = np.array([0, -view.distance * math.cos(rise), view.distance * math.sin(rise) + 0.2])
        forward = np.array([0, math.cos(rise), -math.sin(rise)])
        up = np.array([0, math.sin(rise), math.cos(rise)])
        return Camera(*(v.astype(np.float32) for v in (eye, forward, np.array([1.0, 0, 0]), up)))

    def rays(self, left: int, top: int, right: int, bottom: int, samples: int) -> np.ndarray:
        """Directions [3, rows, columns], not normalised, through samples of a rectangle of the picture's pixels; all
        four are counted in samples, of which ``samples`` lie side by side in a pixel."""
        x = ((np.arange(left, right, dtype=np.float32) + 0.5) / (WIDTH * samples) * 2 - 1) * _FIELD
        y = (HEIGHT - (np.arange(top, bottom, dtype=np.float32) + 0.5) / samples * 2) / WIDTH * _FIELD
        shape = (3, 1, 1)
        across = self.right.reshape(shape) * x[None, None, :] + self.forward.reshape(shape)
        return across + self.up.reshape(shape) * y[None, :, None]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates [2, N], x to the right and y down, of points [3, N] in front of the camera."""
        away = points - self.eye[:, None]
        depth = self.forward @ away
        x = (self.right @ away / (depth * _FIELD) + 1) / 2 * WIDTH
        y = HEIGHT / 2 - self.up @ away / (depth * _FIELD) / 2 * WIDTH
        return np.stack([x, y])

    def rectangle(self, points: np.ndarray, samples: int, margin: float = 1.0) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), in samples, of the part of the picture that holds the points [3, N]."""
        x, y = self.project(points)
        left = max(0, math.floor((x.min() - margin) * samples))
        top = max(0, math.floor((y.min() - margin) * samples))
        right = min(WIDTH * samples, math.ceil((x.max() + margin) * samples))
        bottom = min(HEIGHT * samples, math.ceil((y.max() + margin) * samples))
        return left, top, max(left, right), max(top, bottom)


@dataclass(frozen=True)
class Buffers:
    """For every sample [rows, columns]: the ray parameter of the nearest solid (inf for none) and the solid's index
    (-1). ``alone``: samples each thing would cover if nothing stood before it; ``visible``: those it does cover."""

    depth: np.ndarray
    solid: np.ndarray
    alone: np.ndarray
    visible: np.ndarray

    @property
    def visible_shares(self) -> np.ndarray:
        """Of each thing's own area, what is seen, from 0 to 1."""
        return self.visible / np.maximum(self.alone, 1)


def look(camera: Camera, solids: list[Solid], things: int, samples: int) -> Buffers:
    """Finds the nearest solid at every sample, ``samples`` squared of them in a pixel."""
    depth = np.full((HEIGHT * samples, WIDTH * samples), np.inf, dtype=np.float32)
    nearest = np.full(depth.shape, -1, dtype=np.int16)
    own = np.full(depth.shape, -1, dtype=np.int16)  # the thing whose solids were drawn last here
    alone = np.zeros(things, dtype=np.int64)
    origin = camera.eye.reshape(3, 1, 1)
    for index, solid in enumerate(solids):  # the solids of a thing follow each other
        left, top, right, bottom = camera.rectangle(solid.corners(), samples)
        if right == left or bottom == top:
            continue
        part = (slice(top, bottom), slice(left, right))
        t = solid.entry(origin, camera.rays(left, top, right, bottom, samples))
        hit = np.isfinite(t)
        alone[solid.owner] += np.count_nonzero(hit & (own[part] != solid.owner))
        own[part][hit] = solid.owner
        closer = t < depth[part]
        depth[part][closer] = t[closer]
        nearest[part][closer] = index
    owners = np.array([solid.owner for solid in solids] or [0])
    seen = np.bincount(owners[nearest[nearest >= 0]], minlength=things)
    return Buffers(depth, nearest, alone, seen)
