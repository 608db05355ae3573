"""Angles at crossing and parallel lines."""

from __future__ import annotations

from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees
from megatron_apo.data.tasks.geometry.figure import Figure, direction, triangle
from megatron_apo.data.tasks.geometry.problem import Family, Problem


def vertical_angles(draw: Random) -> Problem:
    """Two lines cross; the opposite angle is as large."""
    angle = draw.choice([*range(30, 85), *range(96, 151)])
    way = direction(angle)
    figure = Figure({"O": 0j, "A": -1.0 + 0j, "B": 1.0 + 0j, "C": -way, "D": way}).lines("AB CD")
    figure.angle("AOC", angle).angle("BOD", "?")
    return Problem(
        figure,
        "Lines AB and CD cross at O. Find ∠BOD in degrees.",
        ("angle", "BOD"),
        degrees(angle),
        (f"∠AOC = {angle}°.", "∠BOD is vertical to ∠AOC, so they are equal."),
        (degrees(180 - angle), degrees(90 + angle // 2), degrees(360 - 2 * angle)),
        (angle,),
    )


def adjacent_angles(draw: Random) -> Problem:
    """Three angles on one side of a line."""
    first, last = draw.randint(30, 75), draw.randint(30, 75)
    answer = 180 - first - last
    points = {"O": 0j, "A": -1.0 + 0j, "B": 1.0 + 0j, "C": direction(180 - first), "D": direction(last)}
    figure = Figure(points).lines("AB OC OD").angle("AOC", first).angle("DOB", last).angle("COD", "?", rings=2)
    return Problem(
        figure,
        "O lies on the line AB. Find ∠COD in degrees.",
        ("angle", "COD"),
        degrees(answer),
        (
            f"∠AOC = {first}° and ∠DOB = {last}°.",
            "The three angles at O make a straight angle of 180°.",
            f"∠COD = 180° - {first}° - {last}° = {answer}°.",
        ),
        (degrees(180 - first), degrees(180 - last), degrees(first + last)),
        (first, last),
    )


def vertical_angle_divided(draw: Random) -> Problem:
    """Part of an angle whose vertical angle is given."""
    whole = draw.randint(70, 140)
    part = draw.randint(30, whole - 30)
    way, ray = direction(whole), direction(part)
    figure = Figure({"O": 0j, "A": -1.0 + 0j, "B": 1.0 + 0j, "C": -way, "D": way, "E": ray}).lines("AB CD OE")
    figure.angle("AOC", whole).angle("BOE", part).angle("EOD", "?", rings=2)
    return Problem(
        figure,
        "Lines AB and CD cross at O, and OE lies within ∠BOD. Find ∠EOD in degrees.",
        ("angle", "EOD"),
        degrees(whole - part),
        (
            f"∠BOD = ∠AOC = {whole}°, for they are vertical.",
            f"∠BOE = {part}°, so ∠EOD = {whole}° - {part}° = {whole - part}°.",
        ),
        (degrees(whole), degrees(180 - whole), degrees(180 - part)),
        (whole, part),
    )


def parallel_lines(draw: Random) -> Problem:
    """Two parallels and a transversal: alternate, corresponding or co-interior angles."""
    kind = draw.randrange(3)
    slope = draw.choice([*range(50, 85), *range(96, 131)])
    way = direction(slope)
    g, h = way / abs(way.imag) * 0.5, -way / abs(way.imag) * 0.5
    points = {"G": g, "H": h, "A": g - 1.1, "B": g + 1.1, "C": h - 1.1, "D": h + 1.1, "E": g + way * 0.6}
    figure = Figure({**points, "F": h - way * 0.6}).lines("AB CD EF").parallel("AB CD")
    given, answer = (slope, slope) if kind < 2 else (180 - slope, slope)
    given_at, asked, why = (
        ("AGH", "DHG", "they are alternate angles of parallel lines"),
        ("EGB", "GHD", "they are corresponding angles of parallel lines"),
        ("BGH", "DHG", "co-interior angles of parallel lines add up to 180°"),
    )[kind]
    figure.angle(given_at, given).angle(asked, "?")
    sum_of_two = f"∠{asked} = 180° - {given}° = {answer}°, for {why}."
    return Problem(
        figure,
        f"AB is parallel to CD, and EF cuts them at G and H. Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        (f"∠{given_at} = {given}°.", sum_of_two if kind == 2 else f"∠{asked} = ∠{given_at}, for {why}."),
        (degrees(180 - answer), degrees(abs(90 - answer) or 90), degrees(answer // 2)),
        (kind, slope),
    )


def parallel_bend(draw: Random) -> Problem:
    """A bent line between two parallels: a further parallel through the bend cuts its angle into the two given ones."""
    upper, lower = draw.randint(25, 65), draw.randint(25, 65)
    rise, fall = direction(180 - upper), direction(180 + lower)
    top, bottom = 1.0 / rise.imag, 0.9 / -fall.imag
    a, c = rise * top, fall * bottom
    right = max(a.real, c.real) + 2.0
    figure = Figure({"P": 0j, "A": a, "C": c, "B": complex(right, a.imag), "D": complex(right, c.imag)})
    figure.lines("AB CD AP PC").parallel("AB CD").angle("BAP", upper).angle("PCD", lower).angle("APC", "?", rings=2)
    answer = upper + lower
    return Problem(
        figure,
        "AB is parallel to CD. Find ∠APC in degrees.",
        ("angle", "APC"),
        degrees(answer),
        (
            f"∠BAP = {upper}° and ∠PCD = {lower}°.",
            f"The parallel to AB through P divides ∠APC into alternate angles of {upper}° and {lower}°.",
            f"∠APC = {upper}° + {lower}° = {answer}°.",
        ),
        (degrees(180 - answer), degrees(180 - upper), degrees(180 - lower)),
        (upper, lower),
    )


def parallel_in_triangle(draw: Random) -> Problem:
    """A parallel to a side: a corresponding angle, then the angle sum."""
    at_b, at_a = draw.randint(40, 75), draw.randint(40, 75)
    b, c, a = triangle(at_b, 180 - at_a - at_b)
    share = draw.uniform(0.4, 0.6)
    figure = Figure({"A": a, "B": b, "C": c, "D": a + (b - a) * share, "E": a + (c - a) * share})
    figure.lines("AB BC CA DE").parallel("DE BC").angle("ADE", at_b).angle("CAB", at_a).angle("ACB", "?", rings=2)
    answer = 180 - at_a - at_b
    return Problem(
        figure,
        "In triangle ABC, D lies on AB and E on AC, and DE is parallel to BC. Find ∠ACB in degrees.",
        ("angle", "ACB"),
        degrees(answer),
        (
            f"∠ABC = ∠ADE = {at_b}°, for they are corresponding angles of parallel lines.",
            f"∠ACB = 180° - {at_a}° - {at_b}° = {answer}°.",
        ),
        (degrees(at_b), degrees(at_a + at_b), degrees(180 - at_b)),
        (at_b, at_a),
    )


LINES: dict[str, Family] = {
    "vertical angles": Family("easy", vertical_angles),
    "adjacent angles": Family("easy", adjacent_angles),
    "parallel lines": Family("easy", parallel_lines),
    "vertical angle divided": Family("medium", vertical_angle_divided),
    "bend between parallels": Family("medium", parallel_bend),
    "parallel in a triangle": Family("medium", parallel_in_triangle),
}
