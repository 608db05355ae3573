"""Lengths and areas at circles: tangents, chords, arcs and sectors."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from megatron_apo.data.tasks.geometry.answers import number, root, times_pi
from megatron_apo.data.tasks.geometry.figure import Figure, direction
from megatron_apo.data.tasks.geometry.problem import Family, Problem

CENTRE = "O is the centre of the circle."


def tangent_length(draw: Random) -> Problem:
    """A tangent, the radius and the way to the centre make a right triangle."""
    radius, away = draw.randint(3, 15), draw.randint(7, 36)
    while not 1.5 * radius < away < 3 * radius:
        radius, away = draw.randint(3, 15), draw.randint(7, 36)
    square = away**2 - radius**2
    touching = direction(math.degrees(math.acos(radius / away))) * radius
    figure = Figure({"O": 0j, "A": touching, "P": complex(away)}).circle("OA").lines("OA PA OP").right("OAP")
    figure.length("OA", radius).length("OP", away)
    answer = root(square)
    return Problem(
        figure,
        "PA touches the circle with centre O at A. Find the length of PA.",
        ("length", "PA"),
        answer,
        (
            "∠OAP = 90°, for a tangent is perpendicular to the radius.",
            f"PA² = OP² - OA² = {away}² - {radius}² = {square}, so PA = {answer.text}.",
        ),
        (number(away - radius), root(away**2 + radius**2), number(square)),
        (radius, away),
    )


def chord_distance(draw: Random) -> Problem:
    """A chord, its distance from the centre, and the radius."""
    distance, half = draw.randint(3, 15), draw.randint(3, 20)
    while not 0.4 < distance / half < 1.5:
        distance, half = draw.randint(3, 15), draw.randint(3, 20)
    square = distance**2 + half**2
    ask_radius = math.isqrt(square) ** 2 != square or draw.random() < 0.3
    a, b = complex(-half, -distance), complex(half, -distance)
    figure = Figure({"O": 0j, "A": a, "B": b, "M": -1j * distance}).circle("OA").lines("AM MB OM OA").right("OMA")
    figure.length("OM", distance)
    text = f"{CENTRE} OM is perpendicular to the chord AB."
    if ask_radius:
        radius = root(square)
        figure.length("AB", 2 * half, named=True)
        steps = (
            f"M is the midpoint of AB, so AM = {2 * half} : 2 = {half}.",
            f"OA² = {distance}² + {half}² = {square}, so OA = {radius.text}.",
        )
        wrong = (root(distance**2 + 4 * half**2), number(distance + half), number(distance + 2 * half))
        return Problem(
            figure, f"{text} Find the radius OA.", ("length", "OA"), radius, steps, wrong, (distance, half, 0)
        )
    radius_value = math.isqrt(square)
    figure.length("OA", radius_value)
    steps = (
        f"AM² = OA² - OM² = {radius_value}² - {distance}² = {half**2}, so AM = {half}.",
        f"M is the midpoint of AB, so AB = 2 · {half} = {2 * half}.",
    )
    wrong = (number(half), number(radius_value + distance), number(2 * radius_value))
    return Problem(
        figure,
        f"{text} Find the length of AB.",
        ("length", "AB"),
        number(2 * half),
        steps,
        wrong,
        (distance, half, 1),
    )


def whole_circle(draw: Random) -> Problem:
    """Circumference or area, from the radius or the diameter."""
    radius, from_diameter, ask_area = draw.randint(2, 60), draw.random() < 0.5, draw.random() < 0.5
    a = radius * direction(draw.uniform(0, 360))
    figure = Figure({"O": 0j, "A": a}).circle("OA")
    if from_diameter:
        figure.points["B"] = -a
        figure.lines("AO OB").length("AB", 2 * radius, named=True)
        start = f"The diameter AB is {2 * radius}, so the radius is {radius}."
    else:
        figure.lines("OA").length("OA", radius)
        start = f"The radius is {radius}."
    area, around = times_pi(radius**2), times_pi(2 * radius)
    last = (
        f"The area is {radius}² · π = {area.text}."
        if ask_area
        else f"The circumference is 2 · {radius} · π = {around.text}."
    )
    return Problem(
        figure,
        f"{CENTRE} Find its {'area' if ask_area else 'circumference'}, as a multiple of π.",
        ("disc" if ask_area else "circumference", "OA"),
        area if ask_area else around,
        (start, last),
        (area, around, times_pi(radius), times_pi(4 * radius**2)),
        (radius, int(from_diameter), int(ask_area)),
    )


def circle_part(draw: Random, ask_area: bool) -> Problem:
    """Arc or area of a sector."""
    radius, angle = draw.randint(2, 24), draw.choice([40, 45, 50, 60, 72, 75, 80, 90, 100, 108, 120, 135, 144, 150])
    figure = Figure({"O": 0j, "A": radius + 0j, "B": radius * direction(angle)}).sector("OAB").lines("OA OB")
    figure.angle("AOB", angle).length("OA", radius)
    part = Fraction(angle, 360)
    area, arc = times_pi(part * radius**2), times_pi(part * 2 * radius)
    whole = f"{radius}² · π" if ask_area else f"2 · {radius} · π"
    answer = area if ask_area else arc
    return Problem(
        figure,
        f"AOB is a sector of a circle with centre O. Find "
        f"{'its area' if ask_area else 'the length of its arc'}, as a multiple of π.",
        ("sector" if ask_area else "arc", "OAB"),
        answer,
        (
            f"The sector is {angle} : 360 of the whole circle.",
            f"{'Its area' if ask_area else 'The arc'} is {angle} : 360 · {whole} = {answer.text}.",
        ),
        (area, arc, times_pi(2 * radius), times_pi(part * radius)),
        (radius, angle),
    )


def arc_length(draw: Random) -> Problem:
    """The length of an arc."""
    return circle_part(draw, ask_area=False)


def sector_area(draw: Random) -> Problem:
    """The area of a sector."""
    return circle_part(draw, ask_area=True)


def crossing_chords(draw: Random) -> Problem:
    """Both chords through a point have the same product of parts."""
    while True:
        first, second, third = (draw.randint(2, 12) for _ in range(3))
        fourth = Fraction(first * second, third)
        parts = (first, second, third, fourth)
        if fourth.denominator == 1 and all(one <= 3 * other for one in parts for other in parts):
            break
    way = direction(draw.randint(60, 120))
    p, a, b, c, d = 0j, complex(-first), complex(second), -third * way, float(fourth) * way
    # The centre is as far from A and B as from C and D: above the middle of AB, at the height that C asks for.
    middle = (second - first) / 2
    height = (abs(c) ** 2 - first * second - 2 * c.real * middle) / (2 * c.imag)
    figure = Figure({"P": p, "A": a, "B": b, "C": c, "D": d, "o": complex(middle, height)}).circle("oA")
    figure.lines("AP PB CP PD").length("AP", first).length("PB", second).length("CP", third)
    answer = number(fourth)
    return Problem(
        figure,
        "The chords AB and CD cross at P. Find the length of PD.",
        ("length", "PD"),
        answer,
        (
            "Triangles APC and DPB are similar, so AP · PB = CP · PD.",
            f"PD = {first} · {second} : {third} = {answer.text}.",
        ),
        (number(first + second - third if first + second != third else 1), number(third), number(first)),
        (first, second, third),
    )


CIRCLE_LENGTHS: dict[str, Family] = {
    "circumference and area": Family("easy", whole_circle),
    "tangent length": Family("medium", tangent_length),
    "chord and distance": Family("medium", chord_distance),
    "arc length": Family("medium", arc_length),
    "sector area": Family("medium", sector_area),
    "crossing chords": Family("hard", crossing_chords),
}
