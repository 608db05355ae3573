"""The ground's colour: plain, or patterned in the shifted scenes."""

from __future__ import annotations

import math

import numpy as np

from megatron_apo.data.tasks.counting.camera import HEIGHT, WIDTH, Camera
from megatron_apo.data.tasks.counting.scene import Ground

PATTERNS = ("checks", "planks", "tiles", "blotches")
_SAMPLES = 2  # of the pattern, side by side in a pixel


def ground_colour(ground: Ground, camera: Camera, points: np.ndarray) -> np.ndarray:
    """Linear colour [3, HEIGHT, WIDTH] where each pixel sees the ground at ``points`` [3, HEIGHT, WIDTH]."""
    first = np.array(ground.first, dtype=np.float32).reshape(3, 1, 1)
    if ground.pattern == "plain":
        return np.broadcast_to(first, points.shape)
    second = np.array(ground.second, dtype=np.float32).reshape(3, 1, 1)
    rays = camera.rays(0, 0, WIDTH * _SAMPLES, HEIGHT * _SAMPLES, _SAMPLES)
    scale = -camera.eye[2] / rays[2]
    x, y = camera.eye[0] + rays[0] * scale, camera.eye[1] + rays[1] * scale
    cosine, sine = math.cos(math.radians(ground.turn)), math.sin(math.radians(ground.turn))
    u, v = (cosine * x + sine * y) / ground.scale, (cosine * y - sine * x) / ground.scale
    share = _share_of_second(ground.pattern, u, v).reshape(HEIGHT, _SAMPLES, WIDTH, _SAMPLES).mean(axis=(1, 3))
    return first + (second - first) * share.astype(np.float32)


def _share_of_second(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """From 0 to 1 at ground coordinates counted in parts of the pattern."""
    if pattern == "checks":
        return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    if pattern == "tiles":
        joint = (u - np.floor(u) < 0.06) | (v - np.floor(v) < 0.06)
        return np.where(joint, 1.0, 0.25 * _chance(np.floor(u), np.floor(v)))
    if pattern == "planks":
        row = np.floor(v)
        along = u / 5 + _chance(row, row)
        joint = (v - row < 0.05) | (along - np.floor(along) < 0.008)
        grain = 0.12 * np.sin(11 * v + 3 * np.sin(0.9 * u + 5 * row))
        return np.where(joint, 1.0, 0.2 + 0.4 * _chance(row, np.floor(along)) + grain)
    waves = sum(np.sin(a * u + b * v + c) for a, b, c in ((2.1, 1.3, 0), (-1.7, 2.9, 1), (3.7, -0.6, 2), (0.8, 4.3, 3)))
    return 1 / (1 + np.exp(-2.2 * waves))


def _chance(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 for each pair of whole numbers, the same everywhere."""
    mixed = np.sin(i * 12.9898 + j * 78.233) * 43758.5453
    return mixed - np.floor(mixed)
