"""A geometry problem before it is drawn: its figure, what it asks, and how the answer follows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from megatron_apo.data.tasks.geometry.answers import Answer
from megatron_apo.data.tasks.geometry.figure import Figure

# Point names stand alone in capitals, as in "triangle ABC" or "∠ABC"; no sentence here begins with the article "A".
_POINT_NAMES = re.compile(r"(?<![A-Za-z\\])[A-Z]{1,6}(?![A-Za-z])")


@dataclass(frozen=True)
class Problem:
    """``text``: what the figure does not say by itself, then the question; given sizes stand in the figure alone.

    ``asked`` says what would be measured in the figure, for whoever checks the answer: a kind and point names.

        angle ABC         at B, in degrees, below 180      length AB
        area ABCD         of a polygon                     circumference OA  of the circle about O
        disc OA           area of the circle about O       sector OAB        area of the sector
        arc OAB           length of the sector's arc

    ``steps`` lead to the answer. ``mistakes``: values a beginner might give instead, for a multiple-choice form; they
    may hold the answer or repeat. ``values``: the numbers that the problem is made of; with the family they say what a
    split must not share with another.
    """

    figure: Figure
    text: str
    asked: tuple[str, str]
    answer: Answer
    steps: tuple[str, ...]
    mistakes: tuple[Answer, ...]
    values: tuple[int, ...]

    def renamed(self, names: dict[str, str]) -> Problem:
        """The same problem with other point names, in the figure and in every sentence."""

        def new(text: str) -> str:
            return _POINT_NAMES.sub(lambda found: "".join(names.get(letter, letter) for letter in found[0]), text)

        return replace(
            self,
            figure=self.figure.renamed(names),
            text=new(self.text),
            asked=(self.asked[0], new(self.asked[1])),
            steps=tuple(map(new, self.steps)),
        )


@dataclass(frozen=True)
class Family:
    """Problems of one kind: ``draw`` makes one from a generator; ``level`` is easy, medium or hard."""

    level: str
    draw: Callable[[Random], Problem]
