"""Angles and lengths in triangles."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from megatron_apo.data.tasks.geometry.answers import degrees, number, root
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
    half_b, half_c = draw.randint(20, 36), draw.randint(20, 36)
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
        (half_b, half_c),
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
        ("BC", even, f"Both legs are equal: 2 BC² = {longest}², so BC² = {2 * half * half} and BC = {even.text}."),
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
        figure.length("AB", size)
        steps = (why, f"CM = {size} : 2 = {half.text}.")
        mistakes = (number(size), number(2 * size), number(Fraction(size, 2) + 1))
        return Problem(
            figure, f"{text} Find the length of CM.", ("length", "CM"), half, steps, mistakes, (size, kind)
        )
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
    figure.length(*(("BC", 2 * half) if ask_half else ("MN", half)))
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
    figure.lines("AB BC CA").lines("AD", dashed=True).right("ADB").length("BC", base).length("AD", height)
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


TRIANGLES: dict[str, Family] = {
    "triangle angle sum": Family("easy", angle_sum),
    "exterior angle": Family("easy", exterior_angle),
    "isosceles triangle": Family("easy", isosceles),
    "midline": Family("easy", midline),
    "triangle area": Family("easy", triangle_area),
    "angle bisector": Family("medium", angle_bisector),
    "isosceles part": Family("medium", isosceles_within),
    "Pythagoras": Family("medium", pythagoras),
    "half square, half equilateral": Family("medium", special_triangle),
    "median of a right triangle": Family("medium", right_median),
    "similar triangles": Family("medium", similar_triangles),
    "two bisectors": Family("hard", incentre),
    "altitude and bisector": Family("hard", altitude_and_bisector),
    "altitude theorem": Family("hard", altitude_theorem),
}
