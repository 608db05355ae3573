"""Scenes as pictures: ray casting with Lambert and specular light, soft shadows and mirrored surroundings.

Solids are sampled nine times a pixel; the ground, where its light changes slowly, once (its pattern four times). A
matte surface has diffuse light and a faint highlight, a metal one mirrors the ground, the sky and the other solids.
Light is counted linearly and turned to sRGB at the end.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from megatron_apo.data.tasks.counting.camera import HEIGHT, WIDTH, Camera, look
from megatron_apo.data.tasks.counting.ground import ground_colour
from megatron_apo.data.tasks.counting.scene import Scene
from megatron_apo.data.tasks.counting.solids import Solid, dot, solids_of

SAMPLES = 3  # side by side in a pixel, and as many one below the other
_SUN = np.array([1.30, 1.25, 1.17], dtype=np.float32)
_SKY = np.array([0.40, 0.43, 0.48], dtype=np.float32)
_BOUNCE = 0.35  # of the ground's light that comes back up
_SPREAD = 0.11  # radius of the sun, seen from the ground, at distance 1
_GROUND_LIGHTS, _SOLID_LIGHTS = 24, 5  # points of the sun that shadows are made of
_LAMPS, _ROOM = 6, 2.2  # what metal mirrors: lamps around the scene, and their distance
_CASTS = 0.3  # radius of the smallest solid whose shadow on others is drawn: wheels stand below their own vehicle
_START = 2e-3  # how far above its surface a shadow ray starts

Array = np.ndarray


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of WIDTH x HEIGHT pixels."""
    camera = Camera.of(scene.view)
    solids = [solid for owner, thing in enumerate(scene.things) for solid in solids_of(thing, owner)]
    buffers = look(camera, solids, len(scene.things), SAMPLES)
    sun = _direction(scene.view.light_azimuth, scene.view.light_elevation)

    light = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    covered = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    rows, columns = np.nonzero(buffers.solid >= 0)
    if len(rows):
        rays = camera.rays(0, 0, WIDTH * SAMPLES, HEIGHT * SAMPLES, SAMPLES)[:, rows, columns]
        points = camera.eye[:, None] + rays * buffers.depth[rows, columns]
        colour = _solids_light(scene, solids, buffers.solid[rows, columns], points, rays, sun)
        pixel = (rows // SAMPLES) * WIDTH + columns // SAMPLES
        share = 1 / SAMPLES**2
        for channel in range(3):
            light[channel] = np.bincount(pixel, colour[channel], HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * share
        covered = np.bincount(pixel, minlength=HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * share
    light += (1 - covered) * _ground_light(scene, camera, solids, sun)
    return Image.fromarray(_as_srgb(light))


def _direction(azimuth: float, elevation: float) -> Array:
    across, rise = math.radians(azimuth), math.radians(elevation)
    return np.array(
        [math.cos(rise) * math.cos(across), math.cos(rise) * math.sin(across), math.sin(rise)], dtype=np.float32
    )


def _sun_points(sun: Array, count: int) -> Array:
    """Directions to ``count`` points of the sun's disc, [3, count]."""
    aside = np.cross(sun, [0, 0, 1.0])
    aside /= np.linalg.norm(aside)
    above = np.cross(aside, sun)
    # A sunflower's seeds: evenly over the disc, whatever their number.
    places = np.arange(count) + 0.5
    radius, turn = _SPREAD * np.sqrt(places / count), places * math.pi * (3 - math.sqrt(5))
    found = sun[:, None] + aside[:, None] * (radius * np.cos(turn)) + above[:, None] * (radius * np.sin(turn))
    return (found / np.linalg.norm(found, axis=0)).astype(np.float32)


def _ground_light(scene: Scene, camera: Camera, solids: list[Solid], sun: Array) -> Array:
    """Light that the ground sends to the camera, [3, HEIGHT, WIDTH]."""
    rays = camera.rays(0, 0, WIDTH, HEIGHT, 1)
    points = camera.eye.reshape(3, 1, 1) - rays * (camera.eye[2] / rays[2])
    lights = _sun_points(sun, _GROUND_LIGHTS)
    under = np.array([0, 0, 0.01], dtype=np.float32).reshape(3, 1, 1, 1)
    lit = np.ones((_GROUND_LIGHTS, HEIGHT, WIDTH), dtype=bool)
    open_sky = np.ones((HEIGHT, WIDTH), dtype=np.float32)
    for solid in solids:
        corners = solid.corners()
        shadows = corners[:, :, None] - lights[:, None, :] * (corners[2][:, None] / lights[2])[None]
        left, top, right, bottom = camera.rectangle(shadows.reshape(3, -1), 1)
        if right > left and bottom > top:
            # From a little below the ground: a point under a solid is in its shadow too.
            here = points[:, None, top:bottom, left:right] - under
            lit[:, top:bottom, left:right] &= np.isinf(solid.entry(here, lights.reshape(3, -1, 1, 1)))
        _darken_around(solid, camera, points, open_sky)
    pool = _pool(points[0], points[1])
    shine = lit.mean(axis=0) * sun[2]
    colour = ground_colour(scene.ground, camera, points)
    return colour * (_SUN.reshape(3, 1, 1) * (shine * pool) + _SKY.reshape(3, 1, 1) * (open_sky * (0.35 + 0.65 * pool)))


def _darken_around(solid: Solid, camera: Camera, points: Array, open_sky: Array) -> None:
    """Takes from the sky over the ground what a ball of the solid's size hides of it."""
    radius = float(np.abs(np.linalg.det(solid.matrix))) ** (1 / 3) * 1.15
    reach = 4 * radius
    x, y = solid.centre[:2]
    around = np.array([[x + i * reach, y + j * reach, 0] for i in (-1, 1) for j in (-1, 1)], dtype=np.float32).T
    left, top, right, bottom = camera.rectangle(around, 1)
    here = points[:, top:bottom, left:right]
    height = max(float(solid.centre[2]), 0.5 * radius)
    square = (here[0] - x) ** 2 + (here[1] - y) ** 2 + height**2
    open_sky[top:bottom, left:right] *= 1 - 0.9 * np.minimum(radius**2 * height / square**1.5, 1)


def _pool(x: Array, y: Array) -> Array:
    """How light the ground is: most in the middle, as under a lamp."""
    return 0.42 + 0.58 * np.exp(-(x**2 + (y - 0.5) ** 2) / 55)


def _solids_light(scene: Scene, solids: list[Solid], index: Array, points: Array, rays: Array, sun: Array) -> Array:
    """Light that samples of solids send to the camera: ``index`` [N] of the solid, points and rays [3, N]."""
    colour = np.empty_like(points)
    rays = rays / np.sqrt(dot(rays, rays))
    order = np.argsort(index, kind="stable")
    bounds = np.searchsorted(index[order], np.arange(len(solids) + 1))
    lights = _sun_points(sun, _SOLID_LIGHTS)
    for number, solid in enumerate(solids):
        mine = order[bounds[number] : bounds[number + 1]]
        if len(mine):
            here, seen_along = points[:, mine], rays[:, mine]
            normals = solid.normals(here)
            lit = np.zeros(len(mine), dtype=np.float32)
            towards = dot(normals, sun[:, None]) > 0
            if towards.any():
                lit[towards] = _lit(solids, number, (here + _START * normals)[:, towards], lights)
            colour[:, mine] = _surface_light(scene, solids, number, here, normals, seen_along, lit, sun)
    return colour


def _lit(solids: list[Solid], number: int, points: Array, lights: Array) -> Array:
    """The share [N] of the sun that each point of a solid sees past the other solids."""
    seen = np.ones((lights.shape[1], points.shape[1]), dtype=bool)
    centre = points.mean(axis=1)
    size = np.sqrt(((points - centre[:, None]) ** 2).sum(axis=0).max())
    middle = lights.mean(axis=1)
    for other, blocker in enumerate(solids):
        if other == number or blocker.radius < _CASTS:
            continue
        between = blocker.centre - centre
        along = float(between @ middle)
        aside = math.sqrt(max(float(between @ between) - along * along, 0))
        room = size + blocker.radius
        if along > -room and aside < room + 2 * _SPREAD * max(along, 0):
            seen &= np.isinf(blocker.entry(points[:, None, :], lights[:, :, None]))
    return seen.mean(axis=0)


def _surface_light(
    scene: Scene,
    solids: list[Solid],
    number: int,
    points: Array,
    normals: Array,
    rays: Array,
    lit: Array,
    sun: Array,
) -> Array:
    solid = solids[number]
    own = np.array(solid.colour, dtype=np.float32)[:, None]
    facing = np.maximum(dot(normals, sun[:, None]), 0) * lit
    up = 0.5 + 0.5 * normals[2]
    # The ground near a solid's foot is dark: less comes back from it.
    ground = np.array(scene.ground.first, dtype=np.float32)[:, None]
    from_below = (1 - up) * _BOUNCE * np.minimum(points[2] / 0.5 + 0.15, 1)
    diffuse = _SUN[:, None] * facing + _SKY[:, None] * up * 0.85 + ground * 2.6 * from_below
    mirrored = rays - 2 * dot(rays, normals) * normals
    glance = np.maximum(dot(mirrored, sun[:, None]), 0)
    if solid.look == "matte":
        return own * diffuse + 0.05 * lit * glance**8 * _SUN[:, None]
    edge = (1 - np.minimum(np.abs(dot(rays, normals)), 1)) ** 5
    mirror = _surroundings(scene, solids, number, points + _START * normals, mirrored)
    spark = lit * glance**160 * 6 * _SUN[:, None]
    if solid.look == "glass":
        return own * diffuse + (0.12 + 0.6 * edge) * mirror + 0.5 * spark
    tint = own * 1.15 + (1 - own) * (0.06 + 0.5 * edge)
    return 0.15 * own * diffuse + 1.1 * tint * mirror + spark * (0.3 + 0.7 * own)


def _surroundings(scene: Scene, solids: list[Solid], number: int, points: Array, rays: Array) -> Array:
    """What a mirror shows: a simple sky, the ground in its first colour, and the other solids without shadows."""
    rise = rays[2]
    # Dark near the horizon, light above, with a ring of lamps that the ground gives back dimly, and so near that they
    # move across a flat side: so that a metal thing looks like one from any side.
    wave = np.sin(_LAMPS * np.arctan2(points[1] + _ROOM * rays[1], points[0] + _ROOM * rays[0]) + 0.6)
    lamps = (wave > 0.45) * np.clip((rise - 0.1) / 0.15, 0, 1)
    sky = np.array([1.0, 1.03, 1.08], dtype=np.float32)[:, None] * (0.12 + 1.1 * np.maximum(rise, 0) + 0.75 * lamps)
    downwards = np.minimum(rise, -1e-3)
    away = -points[2] / downwards
    x, y = points[0] + away * rays[0], points[1] + away * rays[1]
    ground = np.array(scene.ground.first, dtype=np.float32)[:, None]
    foot = solids[number].centre
    near = np.exp(-((x - foot[0]) ** 2 + (y - foot[1]) ** 2) / (2.2 * max(float(foot[2]), 0.2) ** 2))
    below = (
        ground
        * (_SUN[:, None] * 0.7 + _SKY[:, None])
        * (_pool(x, y) * (1 - 0.75 * near) * (0.65 + 1.0 * np.clip((wave - 0.1) / 0.6, 0, 1)))
    )
    seen = np.where(rise > 0, sky, below)
    nearest = np.where(rise > 0, np.inf, away)
    middle = points.mean(axis=1)
    for solid in solids:
        if solid.owner == solids[number].owner:
            continue
        between = solid.centre - middle
        if float(between @ between) > 16 * solid.radius**2 + 4:
            continue  # too small in the mirror to be missed
        t = solid.entry(points, rays)
        hit = t < nearest
        if hit.any():
            nearest = np.where(hit, t, nearest)
            normals = solid.normals(points[:, hit] + rays[:, hit] * t[hit])
            shade = 0.45 + 0.9 * np.maximum(normals[2], 0) + 0.5 * np.maximum(-dot(normals, rays[:, hit]), 0)
            seen[:, hit] = np.array(solid.colour, dtype=np.float32)[:, None] * shade
    return seen


def _as_srgb(light: Array) -> Array:
    """Linear light [3, H, W] as 8-bit sRGB [H, W, 3]; what is brighter than white runs out softly."""
    light = np.maximum(light, 0)
    light = np.where(light > 0.7, 0.7 + 0.3 * (1 - np.exp(-(light - 0.7) / 0.3)), light)
    bright = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return np.ascontiguousarray(np.rint(bright * 255).astype(np.uint8).transpose(1, 2, 0))
