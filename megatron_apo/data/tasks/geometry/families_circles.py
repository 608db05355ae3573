"""Angles at circles; tangents and chords; lengths and areas of circles and their parts."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees, number, root, times_pi
from megatron_apo.data.tasks.geometry.figure import Figure, direction
from megatron_apo.data.tasks.geometry.problem import Family, Problem

CENTRE = "O is the centre of the circle."


def inscribed_angle(draw: Random) -> Problem:
    """The central angle is twice the inscribed one."""
    inscribed, from_centre = draw.randint(30, 70), draw.random() < 0.5
    a, b = direction(-90 - inscribed), direction(-90 + inscribed)
    figure = Figure({"O": 0j, "A": a, "B": b, "C": direction(90 + draw.randint(-25, 25))}).circle("OA")
    figure.lines("OA OB CA CB")
    if from_centre:
        figure.angle("AOB", 2 * inscribed).angle("ACB", "?", rings=2)
        asked, answer = "ACB", inscribed
        step = f"∠ACB = {2 * inscribed}° : 2 = {inscribed}°."
    else:
        figure.angle("ACB", inscribed).angle("AOB", "?", rings=2)
        asked, answer = "AOB", 2 * inscribed
        step = f"∠AOB = 2 · {inscribed}° = {2 * inscribed}°."
    return Problem(
        figure,
        f"{CENTRE} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        ("The angle at the centre is twice the angle at the circle over the same arc.", step),
        (degrees(180 - answer), degrees(inscribed), degrees(2 * inscribed), degrees(180 - inscribed)),
        (inscribed, int(from_centre)),
    )


def thales(draw: Random) -> Problem:
    """The angle over a diameter is right."""
    angle, kind = draw.randint(27, 63), draw.randrange(3)
    figure = Figure({"O": 0j, "A": -1 + 0j, "B": 1 + 0j, "C": direction(2 * angle)}).circle("OA")
    figure.lines("AO OB CA CB").angle("BAC", angle)
    if kind:
        figure.lines("OC")
    asked, answer, step = (
        ("ABC", 90 - angle, f"∠ABC = 90° - {angle}° = {90 - angle}°."),
        ("BOC", 2 * angle, f"∠OCA = {angle}°, for OA = OC, and ∠BOC = 2 · {angle}° = {2 * angle}°."),
        ("OCB", 90 - angle, f"∠OCA = {angle}°, for OA = OC, and ∠OCB = 90° - {angle}° = {90 - angle}°."),
    )[kind]
    figure.angle(asked, "?", rings=2)
    return Problem(
        figure,
        f"AB is a diameter of the circle with centre O. Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        ("∠ACB = 90°, for AB is a diameter.", step),
        (degrees(angle), degrees(90 - angle), degrees(2 * angle), degrees(180 - angle)),
        (angle, kind),
    )


def cyclic_quadrilateral(draw: Random) -> Problem:
    """Opposite angles of a quadrilateral in a circle add up to 180°."""
    at_a, exterior = draw.choice([*range(62, 89), *range(92, 119)]), draw.random() < 0.5
    # B and D bound the arc that A sees; A and C lie somewhere on the two arcs.
    b, d = direction(-at_a), direction(at_a)
    a, c = direction(180 + draw.randint(-20, 20)), direction(draw.randint(-20, 20))
    figure = Figure({"A": a, "B": b, "C": c, "D": d, "o": 0j}).circle("oA")
    figure.angle("DAB", at_a)
    asked, answer = ("DCE", at_a) if exterior else ("BCD", 180 - at_a)
    steps = [f"∠BCD = 180° - {at_a}° = {180 - at_a}°, for it is opposite to ∠DAB in a cyclic quadrilateral."]
    text = "A, B, C and D lie on the circle."
    if exterior:
        figure.points["E"] = c + (c - b) / abs(c - b) * 0.7
        figure.lines("AB BE CD DA")
        steps.append(f"∠DCE = 180° - {180 - at_a}° = {at_a}°.")
        text = "A, B, C and D lie on the circle, and C lies on BE."
    else:
        figure.lines("AB BC CD DA")
    figure.angle(asked, "?", rings=2)
    return Problem(
        figure,
        f"{text} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        tuple(steps),
        (degrees(180 - answer), degrees(abs(90 - at_a) or 45), degrees(180 - at_a // 2)),
        (at_a, int(exterior)),
    )


def two_tangents(draw: Random) -> Problem:
    """Tangents from one point: right angles at the radii."""
    half, kind = draw.randint(20, 35), draw.randrange(4)
    p = complex(1 / math.sin(math.radians(half)))
    a, b = direction(90 - half), direction(half - 90)
    figure = Figure({"O": 0j, "A": a, "B": b, "P": p}).circle("OA").lines("PA PB OA OB")
    text = "PA and PB touch the circle with centre O at A and B."
    right = "∠OAP = ∠OBP = 90°, for a tangent is perpendicular to the radius."
    around = "The angles of AOBP add up to 360°:"
    at_p, at_o = 2 * half, 180 - 2 * half
    if kind >= 2:
        figure.lines("AB")
    given, asked, answer, steps = (
        (("APB", at_p), "AOB", at_o, (right, f"{around} ∠AOB = 180° - {at_p}° = {at_o}°.")),
        (("AOB", at_o), "APB", at_p, (right, f"{around} ∠APB = 180° - {at_o}° = {at_p}°.")),
        (
            ("APB", at_p),
            "OAB",
            half,
            (f"PA = PB, so ∠PAB = (180° - {at_p}°) : 2 = {90 - half}°.", f"∠OAB = 90° - {90 - half}° = {half}°."),
        ),
        (
            ("OAB", half),
            "APB",
            at_p,
            (f"∠PAB = 90° - {half}° = {90 - half}°.", f"PA = PB, so ∠APB = 180° - 2 · {90 - half}° = {at_p}°."),
        ),
    )[kind]
    figure.angle(*given).angle(asked, "?", rings=2)
    return Problem(
        figure,
        f"{text} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        steps,
        (degrees(half), degrees(90 - half), degrees(at_p), degrees(at_o)),
        (half, kind),
    )


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
        figure.length("AB", 2 * half)
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
        figure.lines("AO OB").length("AB", 2 * radius)
        start = f"The diameter AB is {2 * radius}, so the radius is {radius}."
    else:
        figure.lines("OA").length("OA", radius)
        start = f"The radius is {radius}."
    area, around = times_pi(radius**2), times_pi(2 * radius)
    last = (
        f"The area is {radius}² · π = {area.text}." if ask_area else f"The circumference is 2 · {radius} · π = {around.text}."
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


def tangent_chord(draw: Random) -> Problem:
    """The angle between a tangent and a chord is the inscribed angle over the chord."""
    angle, ask_centre = draw.randint(35, 70), draw.random() < 0.5
    a, b = -1j, direction(2 * angle - 90)
    figure = Figure({"O": 0j, "A": a, "B": b, "T": a + 1.3, "s": a - 0.8}).circle("OA")
    figure.lines("sT AB").angle("TAB", angle)
    text = "The line AT touches the circle with centre O at A."
    if ask_centre:
        figure.lines("OA OB").angle("AOB", "?", rings=2)
        steps = (
            f"∠OAB = 90° - {angle}° = {90 - angle}°, for a tangent is perpendicular to the radius.",
            f"OA = OB, so ∠AOB = 180° - 2 · {90 - angle}° = {2 * angle}°.",
        )
        asked, answer = "AOB", 2 * angle
    else:
        figure.points["C"] = direction(2 * angle - 90 + (360 - 2 * angle) * draw.uniform(0.4, 0.6))
        figure.lines("AC BC").angle("ACB", "?", rings=2)
        steps = (
            "The angle between tangent and chord equals the angle at the circle over that chord.",
            f"∠ACB = ∠TAB = {angle}°.",
        )
        asked, answer = "ACB", angle
    return Problem(
        figure,
        f"{text} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        steps,
        (degrees(angle), degrees(2 * angle), degrees(90 - angle), degrees(180 - angle)),
        (angle, int(ask_centre)),
    )


def radii_and_chord(draw: Random) -> Problem:
    """From the base angle of two radii to the inscribed angle, and back."""
    base, ask_inscribed = draw.randint(20, 55), draw.random() < 0.5
    half = 90 - base
    a, b = direction(-90 - half), direction(-90 + half)
    figure = Figure({"O": 0j, "A": a, "B": b, "C": direction(90 + draw.randint(-25, 25))}).circle("OA")
    figure.lines("OA OB AB CA CB")
    if ask_inscribed:
        figure.angle("OAB", base).angle("ACB", "?", rings=2)
        asked, answer = "ACB", half
        steps = (
            f"OA = OB, so ∠AOB = 180° - 2 · {base}° = {2 * half}°.",
            f"∠ACB is half of the angle at the centre: {2 * half}° : 2 = {half}°.",
        )
    else:
        figure.angle("ACB", half).angle("OAB", "?", rings=2)
        asked, answer = "OAB", base
        steps = (
            f"∠AOB is twice the angle at the circle: 2 · {half}° = {2 * half}°.",
            f"OA = OB, so ∠OAB = (180° - {2 * half}°) : 2 = {base}°.",
        )
    return Problem(
        figure,
        f"{CENTRE} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        steps,
        (degrees(half), degrees(base), degrees(2 * half), degrees(180 - half)),
        (base, int(ask_inscribed)),
    )


def crossing_chords(draw: Random) -> Problem:
    """Both chords through a point have the same product of parts."""
    while True:
        first, second, third = (draw.randint(2, 12) for _ in range(3))
        fourth = Fraction(first * second, third)
        parts = (first, second, third, fourth)
        if fourth.denominator == 1 and max(parts) <= 3 * min(parts):
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


CIRCLES: dict[str, Family] = {
    "inscribed and central angle": Family("easy", inscribed_angle),
    "Thales": Family("easy", thales),
    "cyclic quadrilateral": Family("easy", cyclic_quadrilateral),
    "circumference and area": Family("easy", whole_circle),
    "two tangents": Family("medium", two_tangents),
    "tangent length": Family("medium", tangent_length),
    "chord and distance": Family("medium", chord_distance),
    "arc length": Family("medium", arc_length),
    "sector area": Family("medium", sector_area),
    "tangent and chord": Family("hard", tangent_chord),
    "radii and chord": Family("hard", radii_and_chord),
    "crossing chords": Family("hard", crossing_chords),
}
