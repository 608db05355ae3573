"""What a counting scene holds: things on a ground plane, seen by a camera, before they are drawn.

Training, validation and test scenes show solids on plain ground. The ``shifted`` test scenes show other things
(vehicles put together from several solids), further colours, more of them, and patterned ground: as SuperCLEVR's
scenes differ from CLEVR's.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[float, float, float]  # linear red, green, blue from 0 to 1

SOLIDS = ("cube", "sphere", "cylinder", "cone")
VEHICLES = ("car", "bus", "truck", "plane")
SIZES = {"small": 0.40, "large": 0.72}  # half the height of a solid, in units of the ground plane
MATERIALS = ("matte", "metal")
COLOURS: dict[str, Colour] = {
    "gray": (0.24, 0.24, 0.25),
    "red": (0.60, 0.03, 0.03),
    "blue": (0.04, 0.11, 0.62),
    "green": (0.03, 0.30, 0.05),
    "brown": (0.24, 0.10, 0.03),
    "purple": (0.28, 0.05, 0.45),
    "cyan": (0.05, 0.50, 0.58),
    "yellow": (0.85, 0.66, 0.03),
}
FURTHER_COLOURS: dict[str, Colour] = {
    "orange": (0.90, 0.24, 0.01),
    "pink": (0.90, 0.25, 0.42),
    "white": (0.85, 0.85, 0.82),
    "lime": (0.38, 0.75, 0.05),
}
PLURALS = {"bus": "buses"}  # of names that take more than an s


@dataclass(frozen=True)
class Thing:
    """One object. ``place`` is (x, y) on the ground, ``turn`` in degrees about the vertical; x runs to the right of
    the picture and y away from the camera."""

    shape: str
    colour: str
    size: str
    material: str
    place: tuple[float, float]
    turn: float

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What a question may name, without the place."""
        return self.size, self.colour, self.material, self.shape

    def __str__(self) -> str:
        return " ".join(self.kind)


@dataclass(frozen=True)
class Ground:
    """The plane's pattern (plain, checks, planks, tiles or blotches), its two colours and the size of a part."""

    pattern: str
    first: Colour
    second: Colour
    scale: float
    turn: float


@dataclass(frozen=True)
class View:
    """The camera's distance from the middle of the ground, its elevation in degrees, and where the light comes from:
    azimuth (0 to the right, 90 away from the camera) and elevation in degrees."""

    distance: float
    elevation: float
    light_azimuth: float
    light_elevation: float


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn."""

    things: tuple[Thing, ...]
    ground: Ground
    view: View


def plural(name: str) -> str:
    """The name for several."""
    return PLURALS.get(name, f"{name}s")
