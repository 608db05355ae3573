"""Answers as text that the grader reads, with their value: whole numbers, fractions, roots, multiples of pi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Answer:
    """``text`` is a plain number or LaTeX between $ signs, ``value`` what it is worth, ``unit`` "°" or empty."""

    text: str
    value: float
    unit: str = ""

    @property
    def shown(self) -> str:
        """With the unit, as an option or a sentence has it."""
        return self.text + self.unit


def degrees(value: int) -> Answer:
    """A whole number of degrees."""
    return Answer(str(value), value, "°")


def number(value: int | Fraction) -> Answer:
    """A whole number, a finite decimal fraction of one place, or a fraction."""
    value = Fraction(value)
    if value.denominator == 1:
        return Answer(str(value.numerator), float(value))
    if 10 % value.denominator == 0:
        return Answer(f"{float(value):.1f}", float(value))
    return Answer(f"${_fraction(value)}$", float(value))


def root(square: int) -> Answer:
    """The square root of a whole number, with what can be taken out of the root."""
    outside, inside = out_of_root(square)
    if inside == 1:
        return number(outside)
    return Answer(f"${outside if outside > 1 else ''}\\sqrt{{{inside}}}$", math.sqrt(square))


def out_of_root(square: int) -> tuple[int, int]:
    """(a, b) with square = a² b and b free of squares."""
    outside = max(factor for factor in range(1, math.isqrt(square) + 1) if square % (factor * factor) == 0)
    return outside, square // (outside * outside)


def times_pi(factor: int | Fraction) -> Answer:
    """A multiple of pi."""
    factor = Fraction(factor)
    written = "" if factor == 1 else _fraction(factor)
    return Answer(f"${written}\\pi$", float(factor) * math.pi)


def _fraction(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
