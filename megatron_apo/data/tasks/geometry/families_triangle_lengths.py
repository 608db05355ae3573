"""Lengths and areas of triangles."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees, number, root
from megatron_apo.data.tasks.geometry.figure import Figure, direction, triangle
from megatron_apo.data.tasks.geometry.problem import Family, Problem


def pythagoras(draw: Random) -> Problem:
    """The third side of a right triangle."""
    first, second = sorted(draw.sample(range(3, 21), 2))
    while second > 2.5 * first:
        first += 1
    c, a, b = 0j, complex(first), complex(0, second)
    square = first**2 + second**2
    ask_leg = math.isqrt(square) ** 2 == square and draw.random() < 0.6
    figure = Figure({"A": a, "B": b, "C": c}).lines("AB BC CA").right("ACB").length("AC", first)
    if ask_leg:
        longest = math.isqrt(square)
        figure.length("AB", longest)
        asked, answer = "BC", number(second)
        steps = (f"BC² = AB² - AC² = {longest}² - {first}² = {second**2}.", f"BC = {second}.")
        mistakes = (number(longest - first), root(longest**2 + first**2), number(longest + first))
    else:
        figure.length("BC", second)
        asked, answer = "AB", root(square)
        steps = (f"AB² = AC² + BC² = {first}² + {second}² = {square}.", f"AB = {answer.text}.")
        mistakes = (number(first + second), number(square), root(second**2 - first**2))
    return Problem(
        figure,
        f"Triangle ABC has a right angle at C. Find the length of {asked}.",
        ("length", asked),
        answer,
        steps,
        mistakes,
        (first, second, int(ask_leg)),
    )


def special_triangle(draw: Random) -> Problem:
    """Right triangles with 30° and 60°, or 45° twice."""
    half, kind = draw.randint(2, 45), draw.randrange(3)
    longest, angle = 2 * half, 45 if kind == 2 else 30
    b = 2 * half * math.sin(math.radians(angle)) * 1j
    a = complex(2 * half * math.cos(math.radians(angle)))
    figure = Figure({"A": a, "B": b, "C": 0j}).lines("AB BC CA").right("ACB").angle("BAC", angle).length("AB", longest)
    short, long, even = number(half), root(3 * half * half), root(2 * half * half)
    asked, answer, why = (
        ("BC", short, f"The leg opposite 30° is half the hypotenuse: {longest} : 2 = {half}."),
        ("AC", long, f"BC = {half}, half the hypotenuse, and AC = √3 · BC = {long.text}."),
        ("BC", even, f"Both legs are equal: BC² = {longest}² : 2 = {2 * half * half}, so BC = {even.text}."),
    )[kind]
    return Problem(
        figure,
        f"Triangle ABC has a right angle at C. Find the length of {asked}.",
        ("length", asked),
        answer,
        (f"∠BAC = {angle}° and AB = {longest}.", why),
        (short, long, even, number(longest)),
        (half, kind),
    )


def right_median(draw: Random) -> Problem:
    """The median to the hypotenuse is half of it, so it makes two isosceles triangles."""
    angle, kind = draw.randint(28, 62), draw.randrange(4)
    size = draw.randint(5, 60)
    b, a = complex(0, size * math.sin(math.radians(angle))), complex(size * math.cos(math.radians(angle)))
    figure = Figure({"A": a, "B": b, "C": 0j, "M": (a + b) / 2}).lines("AM MB BC CA CM").right("ACB").equal("AM MB")
    text = "Triangle ABC has a right angle at C, and M is the midpoint of AB."
    why = "The median to the hypotenuse is half of it: CM = AM = BM."
    if kind == 3:
        half = number(Fraction(size, 2))
        figure.length("AB", size, named=True)
        steps = (why, f"CM = {size} : 2 = {half.text}.")
        mistakes = (number(size), number(2 * size), number(Fraction(size, 2) + 1))
        return Problem(figure, f"{text} Find the length of CM.", ("length", "CM"), half, steps, mistakes, (size, kind))
    figure.angle("BAC", angle)
    asked, value, last = (
        ("CMB", 2 * angle, f"∠ACM = ∠BAC = {angle}°, and ∠CMB = 2 · {angle}° = {2 * angle}°."),
        ("BCM", 90 - angle, f"∠ACM = ∠BAC = {angle}°, and ∠BCM = 90° - {angle}° = {90 - angle}°."),
        ("AMC", 180 - 2 * angle, f"∠ACM = ∠BAC = {angle}°, and ∠AMC = 180° - 2 · {angle}° = {180 - 2 * angle}°."),
    )[kind]
    figure.angle(asked, "?", rings=2)
    every = (degrees(angle), degrees(90 - angle), degrees(2 * angle), degrees(180 - 2 * angle))
    return Problem(
        figure,
        f"{text} Find ∠{asked} in degrees.",
        ("angle", asked),
        degrees(value),
        (why, last),
        every,
        (angle, kind),
    )


def similar_triangles(draw: Random) -> Problem:
    """A parallel to a side cuts off a triangle of the same shape."""
    upper, lower = draw.randint(2, 9), draw.randint(2, 9)
    unit = draw.randint(1, 3)
    short, long = upper * unit, (upper + lower) * unit
    whole = upper + lower
    # AB = whole and BC = long: the angle at B is free.
    a = whole * direction(draw.randint(55, 100))
    b, c = 0j, complex(long)
    share = upper / whole
    figure = Figure({"A": a, "B": b, "C": c, "D": a + (b - a) * share, "E": a + (c - a) * share})
    figure.lines("AD DB BC CA DE").parallel("DE BC").length("AD", upper).length("DB", lower).length("DE", short)
    return Problem(
        figure,
        "D lies on AB and E on AC, and DE is parallel to BC. Find the length of BC.",
        ("length", "BC"),
        number(long),
        (
            f"Triangles ADE and ABC are similar, with AB = {upper} + {lower} = {whole}.",
            f"BC : DE = AB : AD = {whole} : {upper}.",
            f"BC = {short} · {whole} : {upper} = {long}.",
        ),
        (number(short + lower), number(Fraction(short * lower, upper)), number(short * 2)),
        (upper, lower, unit),
    )


def midline(draw: Random) -> Problem:
    """The line between two midpoints is half the third side."""
    half, ask_half = draw.randint(3, 60), draw.random() < 0.5
    b, c, a = triangle(draw.randint(45, 75), draw.randint(45, 75), 2 * half)
    figure = Figure({"A": a, "B": b, "C": c, "M": (a + b) / 2, "N": (a + c) / 2})
    figure.lines("AM MB BC CN NA MN").equal("AM MB").equal("AN NC", ticks=2)
    figure.length("BC", 2 * half) if ask_half else figure.length("MN", half)
    asked, answer = ("MN", half) if ask_half else ("BC", 2 * half)
    step = f"MN = {2 * half} : 2 = {half}." if ask_half else f"BC = 2 · {half} = {2 * half}."
    return Problem(
        figure,
        f"M and N are the midpoints of AB and AC. Find the length of {asked}.",
        ("length", asked),
        number(answer),
        ("The midline MN is half of BC.", step),
        (number(half), number(2 * half), number(3 * half), number(4 * half)),
        (half, int(ask_half)),
    )


def altitude_theorem(draw: Random) -> Problem:
    """The altitude on the hypotenuse is the geometric mean of the parts."""
    first, second = draw.randint(2, 20), draw.randint(2, 20)
    while max(first, second) > 4 * min(first, second):
        first, second = draw.randint(2, 20), draw.randint(2, 20)
    height = math.sqrt(first * second)
    figure = Figure({"A": complex(-first), "B": complex(second), "C": 1j * height, "D": 0j})
    figure.lines("AD DB BC CA CD").right("ACB", "ADC").length("AD", first).length("DB", second)
    answer = root(first * second)
    return Problem(
        figure,
        "∠ACB is a right angle, and CD is perpendicular to AB. Find the length of CD.",
        ("length", "CD"),
        answer,
        (
            f"AD = {first} and DB = {second}.",
            "Triangles ACD and CBD are similar, so CD : AD = DB : CD.",
            f"CD² = {first} · {second} = {first * second}, so CD = {answer.text}.",
        ),
        (number(Fraction(first + second, 2)), number(first * second), root(first**2 + second**2)),
        (first, second),
    )


def triangle_area(draw: Random) -> Problem:
    """Half the base times the height."""
    base, height = draw.randint(4, 24), draw.randint(4, 24)
    while not 0.4 < height / base < 1.6:
        base, height = draw.randint(4, 24), draw.randint(4, 24)
    foot = base * draw.uniform(0.25, 0.75)
    figure = Figure({"A": complex(foot, height), "B": 0j, "C": complex(base), "D": complex(foot)})
    figure.lines("AB BC CA").lines("AD", dashed=True).right("ADB").length("BC", base, named=True).length("AD", height)
    answer = number(Fraction(base * height, 2))
    return Problem(
        figure,
        "AD is perpendicular to BC. Find the area of triangle ABC.",
        ("area", "ABC"),
        answer,
        (f"BC = {base} and AD = {height}.", f"The area is {base} · {height} : 2 = {answer.text}."),
        (number(base * height), number(base + height), number(2 * base * height)),
        (base, height),
    )


TRIANGLE_LENGTHS: dict[str, Family] = {
    "midline": Family("easy", midline),
    "triangle area": Family("easy", triangle_area),
    "Pythagoras": Family("medium", pythagoras),
    "special right triangle": Family("medium", special_triangle),
    "median of a right triangle": Family("medium", right_median),
    "similar triangles": Family("medium", similar_triangles),
    "altitude theorem": Family("hard", altitude_theorem),
}
