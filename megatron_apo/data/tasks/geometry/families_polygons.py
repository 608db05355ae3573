"""Angles and lengths in quadrilaterals and other polygons."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees, number, root
from megatron_apo.data.tasks.geometry.figure import Figure, direction, triangle
from megatron_apo.data.tasks.geometry.problem import Family, Problem


def parallelogram(draw: Random) -> Problem:
    """A diagonal makes triangles of a parallelogram."""
    at_a, at_b = draw.randint(55, 105), draw.randint(28, 45)
    a, b, d = triangle(at_a, at_b)
    figure = Figure({"A": a, "B": b, "C": b + d - a, "D": d}).lines("AB BC CD DA BD").parallel("AB DC")
    figure.parallel("AD BC", arrows=2).angle("DAB", at_a).angle("ABD", at_b).angle("DBC", "?", rings=2)
    answer = 180 - at_a - at_b
    return Problem(
        figure,
        "ABCD is a parallelogram. Find ∠DBC in degrees.",
        ("angle", "DBC"),
        degrees(answer),
        (
            f"Neighbouring angles of a parallelogram add up to 180°: ∠ABC = 180° - {at_a}° = {180 - at_a}°.",
            f"∠DBC = {180 - at_a}° - {at_b}° = {answer}°.",
        ),
        (degrees(180 - at_a), degrees(at_b), degrees(at_a - at_b)),
        (at_a, at_b),
    )


def rhombus(draw: Random) -> Problem:
    """The diagonals of a rhombus halve each other at right angles."""
    first, second = draw.randint(3, 20), draw.randint(3, 20)
    while not 0.4 < first / second < 2.5:
        first, second = draw.randint(3, 20), draw.randint(3, 20)
    figure = Figure({"A": complex(-first), "C": complex(first), "B": -1j * second, "D": 1j * second, "O": 0j})
    figure.lines("AB BC CD DA AO OC BO OD").right("AOB").length("OC", first).length("OD", second)
    square = first**2 + second**2
    answer = root(square)
    return Problem(
        figure,
        "ABCD is a rhombus with centre O. Find the length of its side AB.",
        ("length", "AB"),
        answer,
        (
            f"OA = OC = {first}, OB = OD = {second}, and the diagonals meet at right angles.",
            f"AB² = {first}² + {second}² = {square}, so AB = {answer.text}.",
        ),
        (number(first + second), root(4 * square), number(2 * first * second)),
        (first, second),
    )


def trapezoid_midsegment(draw: Random) -> Problem:
    """Half the sum of the parallel sides."""
    short, long = sorted(draw.sample(range(4, 41), 2))
    while long > 3 * short:
        short += 1
    height = draw.uniform(0.4, 0.6) * long
    left = draw.uniform(0.1, 0.9) * (long - short)
    a, b, c, d = 0j, complex(long), complex(left + short, height), complex(left, height)
    figure = Figure({"A": a, "B": b, "C": c, "D": d, "E": (a + d) / 2, "F": (b + c) / 2})
    figure.lines("AB BF FC CD DE EA EF").parallel("AB DC").equal("AE ED").equal("BF FC", ticks=2)
    figure.length("AB", long).length("DC", short)
    answer = number(Fraction(short + long, 2))
    return Problem(
        figure,
        "AB is parallel to DC, and E and F are the midpoints of AD and BC. Find the length of EF.",
        ("length", "EF"),
        answer,
        (
            "The midsegment of a trapezoid is half the sum of the parallel sides.",
            f"EF = ({long} + {short}) : 2 = {answer.text}.",
        ),
        (number(short + long), number(long - short), number(Fraction(long, 2))),
        (short, long),
    )


def trapezoid_height(draw: Random) -> Problem:
    """The height of an isosceles trapezoid, from a leg."""
    aside, height, short = draw.randint(3, 9), draw.randint(5, 14), draw.randint(6, 16)
    square = aside**2 + height**2
    while math.isqrt(square) ** 2 != square and draw.random() < 0.5:
        aside, height = draw.randint(3, 9), draw.randint(5, 14)
        square = aside**2 + height**2
    long, leg = short + 2 * aside, root(square)
    given_leg = math.isqrt(square) ** 2 == square
    a, b = 0j, complex(long)
    d, c = complex(aside, height), complex(aside + short, height)
    figure = Figure({"A": a, "B": b, "C": c, "D": d, "H": complex(aside)}).lines("AB BC CD DA")
    figure.lines("DH", dashed=True).right("AHD").parallel("AB DC").equal("AD BC").length("AB", long, named=True)
    figure.length("DC", short)
    start = f"AH = ({long} - {short}) : 2 = {aside}."
    text = "ABCD is an isosceles trapezoid, AB is parallel to DC, and DH is its height. Find the length of"
    wrong = (number(height + aside), number(long - short), root(4 * square))
    if given_leg:
        figure.length("AD", math.isqrt(square))
        last = f"DH² = {leg.text}² - {aside}² = {height**2}, so DH = {height}."
        return Problem(
            figure, f"{text} DH.", ("length", "DH"), number(height), (start, last), wrong, (aside, height, short)
        )
    figure.length("DH", height)
    last = f"AD² = {aside}² + {height}² = {square}, so AD = {leg.text}."
    return Problem(figure, f"{text} AD.", ("length", "AD"), leg, (start, last), wrong, (aside, height, short))


def rectangle_diagonals(draw: Random) -> Problem:
    """Diagonals of a rectangle are equal, so they make isosceles triangles."""
    angle, kind = draw.randint(25, 60), draw.randrange(3)
    size = direction(angle)
    a, c = -size, size
    figure = Figure({"A": a, "C": c, "B": complex(size.real, -size.imag), "D": complex(-size.real, size.imag), "O": 0j})
    figure.lines("AB BC CD DA AO OC BO OD").angle("OAB", angle)
    asked, answer, last = (
        ("AOB", 180 - 2 * angle, f"∠AOB = 180° - 2 · {angle}° = {180 - 2 * angle}°."),
        ("BOC", 2 * angle, f"∠BOC is an exterior angle of triangle ABO: {angle}° + {angle}° = {2 * angle}°."),
        ("OBC", 90 - angle, f"∠ABC = 90°, so ∠OBC = 90° - {angle}° = {90 - angle}°."),
    )[kind]
    figure.angle(asked, "?", rings=2)
    return Problem(
        figure,
        f"ABCD is a rectangle with centre O. Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        (f"OA = OB, so ∠OBA = ∠OAB = {angle}°.", last),
        (degrees(angle), degrees(90 - angle), degrees(2 * angle), degrees(180 - 2 * angle)),
        (angle, kind),
    )


def polygon_angles(draw: Random, corners: int) -> Problem:
    """All angles of a polygon but one are given."""
    total = 180 * (corners - 2)
    fair = total // corners
    while True:
        angles = [draw.randint(fair - 30, fair + 30) for _ in range(corners - 1)]
        answer = total - sum(angles)
        if abs(answer - fair) <= 40:
            break
    # Tangents of one circle: whatever its angles, such a polygon closes. The turn at each corner is 180° - its angle.
    names, places, normal = "ABCDEF"[:corners], [], 0.0
    for angle in [*angles, answer]:
        turn = 180 - angle
        places.append(direction(normal + turn / 2) / math.cos(math.radians(turn / 2)))
        normal += turn
    figure = Figure(dict(zip(names, places, strict=True)))
    sides = [names[place] + names[(place + 1) % corners] for place in range(corners)]
    figure.lines(" ".join(sides))
    written: list[object] = [*angles, "?"]
    for place, text in enumerate(written):
        figure.angle(names[place - 1] + names[place] + names[(place + 1) % corners], text)
    asked = names[-2] + names[-1] + names[0]
    given = " - ".join(f"{angle}°" for angle in angles)
    return Problem(
        figure,
        f"Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        (
            f"The angles of a polygon of {corners} sides add up to {corners - 2} · 180° = {total}°.",
            f"∠{asked} = {total}° - {given} = {answer}°.",
        ),
        (degrees(180 - answer if answer < 170 else 10), degrees(angles[0]), degrees(angles[-1])),
        tuple(angles),
    )


def quadrilateral_angles(draw: Random) -> Problem:
    """The fourth angle of a quadrilateral."""
    return polygon_angles(draw, 4)


def pentagon_angles(draw: Random) -> Problem:
    """The last angle of a pentagon or hexagon."""
    return polygon_angles(draw, draw.choice([5, 6]))


def square_and_triangle(draw: Random) -> Problem:
    """An isosceles triangle on a side of a square, seen from the next corner."""
    base = draw.choice([*range(50, 60), *range(61, 76)])
    a, b, e = triangle(base, base)
    c, d = b - 1j, a - 1j
    kind = draw.randrange(2)
    figure = Figure({"A": a, "B": b, "C": c, "D": d, "E": e}).lines("AB BC CD DA AE BE").equal("AE BE", ticks=2)
    figure.equal("AB BC CD DA").angle("AEB", 180 - 2 * base)
    asked, corner = (("EBC", "ABC"), ("DAE", "DAB"))[kind]
    figure.angle(asked, "?", rings=2)
    answer = base + 90
    at_base = "ABE" if kind == 0 else "EAB"
    return Problem(
        figure,
        f"ABCD is a square, and AE = BE. Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(answer),
        (
            f"∠{at_base} = (180° - {180 - 2 * base}°) : 2 = {base}°, for AE = BE.",
            f"∠{asked} = ∠{corner} + ∠{at_base} = 90° + {base}° = {answer}°.",
        ),
        (degrees(base), degrees(180 - base), degrees(270 - 2 * base)),
        (base, kind),
    )


POLYGONS: dict[str, Family] = {
    "quadrilateral angle sum": Family("easy", quadrilateral_angles),
    "trapezoid midsegment": Family("easy", trapezoid_midsegment),
    "parallelogram": Family("medium", parallelogram),
    "rhombus": Family("medium", rhombus),
    "rectangle diagonals": Family("medium", rectangle_diagonals),
    "polygon angle sum": Family("medium", pentagon_angles),
    "square and triangle": Family("hard", square_and_triangle),
    "isosceles trapezoid": Family("hard", trapezoid_height),
}
