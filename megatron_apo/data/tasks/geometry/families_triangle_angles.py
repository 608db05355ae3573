"""Angles of triangles."""

from __future__ import annotations

import math
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees
from megatron_apo.data.tasks.geometry.figure import Figure, direction, triangle
from megatron_apo.data.tasks.geometry.problem import Family, Problem


def angle_sum(draw: Random) -> Problem:
    """The third angle of a triangle."""
    at_a, at_b = draw.randint(35, 80), draw.randint(35, 80)
    answer = 180 - at_a - at_b
    a, b, c = triangle(at_a, at_b)
    figure = Figure({"A": a, "B": b, "C": c}).lines("AB BC CA")
    figure.angle("BAC", at_a).angle("ABC", at_b).angle("ACB", "?")
    return Problem(
        figure,
        "Find ∠ACB in degrees.",
        ("angle", "ACB"),
        degrees(answer),
        (
            f"∠BAC = {at_a}° and ∠ABC = {at_b}°.",
            "The angles of a triangle add up to 180°.",
            f"∠ACB = 180° - {at_a}° - {at_b}° = {answer}°.",
        ),
        (degrees(at_a + at_b), degrees(180 - at_a), degrees(180 - at_b)),
        (at_a, at_b),
    )


def exterior_angle(draw: Random) -> Problem:
    """The exterior angle is the sum of the two others."""
    at_a, at_b = draw.randint(35, 80), draw.randint(35, 70)
    b, c, a = triangle(at_b, 180 - at_a - at_b)
    figure = Figure({"A": a, "B": b, "C": c, "D": c + 0.6}).lines("AB AC BD")
    figure.angle("BAC", at_a).angle("ABC", at_b).angle("ACD", "?", rings=2)
    return Problem(
        figure,
        "C lies on BD. Find ∠ACD in degrees.",
        ("angle", "ACD"),
        degrees(at_a + at_b),
        (
            "∠ACD is an exterior angle of triangle ABC: the sum of the angles at A and B.",
            f"∠ACD = {at_a}° + {at_b}° = {at_a + at_b}°.",
        ),
        (degrees(180 - at_a - at_b), degrees(180 - at_a), degrees(180 - at_b)),
        (at_a, at_b),
    )


def isosceles(draw: Random) -> Problem:
    """Equal sides face equal angles: from the apex to the base or back."""
    base, from_apex = draw.randint(34, 73), draw.random() < 0.5
    apex = 180 - 2 * base
    b, c, a = triangle(base, base)
    figure = Figure({"A": a, "B": b, "C": c}).lines("AB BC CA").equal("AB AC")
    if from_apex:
        figure.angle("BAC", apex).angle("ABC", "?")
        asked, answer = "ABC", base
        steps = (f"∠BAC = {apex}°.", f"∠ABC = ∠ACB = (180° - {apex}°) : 2 = {base}°, for AB = AC.")
    else:
        figure.angle("ABC", base).angle("BAC", "?")
        asked, answer = "BAC", apex
        steps = (f"∠ACB = ∠ABC = {base}°, for AB = AC.", f"∠BAC = 180° - 2 · {base}° = {apex}°.")
    return Problem(
        figure,
        f"In triangle ABC, AB = AC. Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        steps,
        (degrees(180 - answer), degrees(apex if from_apex else base), degrees(180 - base)),
        (base, int(from_apex)),
    )


def angle_bisector(draw: Random) -> Problem:
    """A bisector's angle with the opposite side."""
    half, at_b = draw.randint(25, 45), draw.randint(35, 70)
    at_c = 180 - 2 * half - at_b
    b, c, a = triangle(at_b, at_c)
    d = b + (c - b) * abs(a - b) / (abs(a - b) + abs(a - c))  # the bisector divides BC as the sides are
    figure = Figure({"A": a, "B": b, "C": c, "D": d}).lines("AB BC CA AD")
    figure.angle("ABC", at_b).angle("ACB", at_c, rings=2).angle("ADC", "?")
    return Problem(
        figure,
        "AD bisects ∠BAC. Find ∠ADC in degrees.",
        ("angle", "ADC"),
        degrees(half + at_b),
        (
            f"∠BAC = 180° - {at_b}° - {at_c}° = {2 * half}°, so ∠BAD = {half}°.",
            f"∠ADC is an exterior angle of triangle ABD: {at_b}° + {half}° = {half + at_b}°.",
        ),
        (degrees(180 - half - at_b), degrees(2 * half), degrees(90 + half)),
        (half, at_b),
    )


def incentre(draw: Random) -> Problem:
    """The angle between two bisectors."""
    half_b, half_c = draw.randint(18, 37), draw.randint(18, 37)
    b, c, a = triangle(2 * half_b, 2 * half_c)
    _, _, centre = triangle(half_b, half_c)
    answer = 180 - half_b - half_c
    figure = Figure({"A": a, "B": b, "C": c, "I": centre}).lines("AB BC CA BI CI")
    figure.angle("BAC", 180 - 2 * half_b - 2 * half_c).angle("BIC", "?", rings=2)
    at_a = 180 - 2 * half_b - 2 * half_c
    both = 2 * (half_b + half_c)
    return Problem(
        figure,
        "BI bisects ∠ABC and CI bisects ∠ACB. Find ∠BIC in degrees.",
        ("angle", "BIC"),
        degrees(answer),
        (
            f"∠ABC + ∠ACB = 180° - {at_a}° = {both}°.",
            f"∠IBC + ∠ICB is half of it, {both // 2}°.",
            f"∠BIC = 180° - {both // 2}° = {answer}°.",
        ),
        (degrees(2 * at_a), degrees(180 - at_a), degrees(both // 2)),
        (half_b + half_c,),
    )


def isosceles_within(draw: Random) -> Problem:
    """An isosceles part of a triangle gives an exterior angle, that the third angle."""
    at_b, rest = draw.randint(25, 40), draw.randint(25, 60)
    at_c = 180 - 2 * at_b - rest
    b, d = 0j, 1.0 + 0j
    a = d + direction(2 * at_b)  # as far from D as B is, and ∠ADC is 2 ∠B
    c = d + math.sin(math.radians(rest)) / math.sin(math.radians(at_c))
    figure = Figure({"A": a, "B": b, "C": c, "D": d}).lines("AB BD DC CA AD").equal("AD BD")
    figure.angle("ABC", at_b).angle("ACB", at_c).angle("DAC", "?", rings=2)
    return Problem(
        figure,
        "D lies on BC, and AD = BD. Find ∠DAC in degrees.",
        ("angle", "DAC"),
        degrees(rest),
        (
            f"∠BAD = ∠ABD = {at_b}°, for AD = BD.",
            f"∠ADC = {at_b}° + {at_b}° = {2 * at_b}°, an exterior angle of triangle ABD.",
            f"∠DAC = 180° - {2 * at_b}° - {at_c}° = {rest}°.",
        ),
        (degrees(180 - at_b - at_c), degrees(2 * at_b), degrees(180 - at_c)),
        (at_b, at_c),
    )


def altitude_and_bisector(draw: Random) -> Problem:
    """Half the difference of the base angles."""
    at_c = draw.randint(30, 44)
    at_b = at_c + 2 * draw.randint(13, 20)
    half = (180 - at_b - at_c) // 2  # whole: the two differ by an even number
    b, c, a = triangle(at_b, at_c)
    foot = complex(a.real, 0)
    e = b + (c - b) * abs(a - b) / (abs(a - b) + abs(a - c))
    figure = Figure({"A": a, "B": b, "C": c, "D": foot, "E": e}).lines("AB BC CA AD AE").right("ADB")
    figure.angle("ABC", at_b).angle("ACB", at_c)
    answer = half - (90 - at_b)
    return Problem(
        figure,
        "AD is perpendicular to BC, and AE bisects ∠BAC. Find ∠DAE in degrees.",
        ("angle", "DAE"),
        degrees(answer),
        (
            f"∠BAC = 180° - {at_b}° - {at_c}° = {2 * half}°, so ∠BAE = {half}°.",
            f"∠BAD = 90° - {at_b}° = {90 - at_b}°.",
            f"∠DAE = {half}° - {90 - at_b}° = {answer}°.",
        ),
        (degrees(2 * answer), degrees(90 - at_b), degrees(half)),
        (at_b, at_c),
    )


TRIANGLE_ANGLES: dict[str, Family] = {
    "triangle angle sum": Family("easy", angle_sum),
    "exterior angle": Family("easy", exterior_angle),
    "isosceles triangle": Family("easy", isosceles),
    "angle bisector": Family("medium", angle_bisector),
    "isosceles part": Family("medium", isosceles_within),
    "two bisectors": Family("hard", incentre),
    "altitude and bisector": Family("hard", altitude_and_bisector),
}
