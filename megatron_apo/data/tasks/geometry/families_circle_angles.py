"""Angles at circles: inscribed and central ones, tangents, chords."""

from __future__ import annotations

import math
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees
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


CIRCLE_ANGLES: dict[str, Family] = {
    "inscribed and central angle": Family("easy", inscribed_angle),
    "Thales": Family("easy", thales),
    "cyclic quadrilateral": Family("easy", cyclic_quadrilateral),
    "two tangents": Family("medium", two_tangents),
    "tangent and chord": Family("hard", tangent_chord),
    "radii and chord": Family("hard", radii_and_chord),
}
