"""Questions about a scene, answered from what is in it: numbers of things, and comparisons of two numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from megatron_apo.data.tasks.counting.placement import across
from megatron_apo.data.tasks.counting.scene import (
    COLOURS,
    FURTHER_COLOURS,
    MATERIALS,
    SIZES,
    SOLIDS,
    VEHICLES,
    Scene,
    Thing,
    plural,
)

ATTRIBUTES = ("size", "colour", "material", "shape")  # in the order in which they are said
_FROM_SCENE = 0.85  # share of the attributes asked for that some thing of the scene has
_ASIDE = 14.0  # pixels, least that a thing lies left or right of the one a question measures by


@dataclass(frozen=True)
class Question:
    """``kind`` names it; ``thought`` leads to the answer, a number or an option's letter."""

    kind: str
    text: str
    thought: str
    answer: str


@dataclass(frozen=True)
class Filter:
    """Attributes that a thing must have; none: every thing."""

    wanted: dict[str, str]

    def __call__(self, thing: Thing) -> bool:
        return all(getattr(thing, name) == value for name, value in self.wanted.items())

    def phrase(self, *, one: bool = False) -> str:
        """Such as "small red cubes" or "metal objects"."""
        noun = self.wanted.get("shape", "object")
        words = [self.wanted[name] for name in ATTRIBUTES[:-1] if name in self.wanted]
        return " ".join([*words, noun if one else plural(noun)])


class Asker:
    """Makes questions about one scene; ``shifted`` says which words there are to ask with."""

    def __init__(self, scene: Scene, generator: random.Random, *, shifted: bool) -> None:
        self.generator = generator
        places = sorted(zip(across(scene), scene.things, strict=True), key=lambda pair: pair[0])
        self.things = [thing for _, thing in places]  # from left to right
        self.across = [x for x, _ in places]
        self.words = {
            "size": list(SIZES),
            "colour": list(COLOURS | FURTHER_COLOURS if shifted else COLOURS),
            "material": list(MATERIALS),
            "shape": list(VEHICLES if shifted else SOLIDS),
        }

    @property
    def inventory(self) -> str:
        """All things with their numbers, from left to right: how every thought begins."""
        listed = ", ".join(f"({number}) {thing}" for number, thing in enumerate(self.things, start=1))
        return f"From left to right: {listed}."

    def filter(self, *names: str) -> Filter:
        """Values for these attributes, most often those of some thing."""
        if self.generator.random() < _FROM_SCENE:
            thing = self.generator.choice(self.things)
            return Filter({name: getattr(thing, name) for name in names})
        return Filter({name: self.generator.choice(self.words[name]) for name in names})

    def found(self, what: str, matches: Callable[[Thing], bool]) -> tuple[int, str]:
        """How many things match, and the sentence that lists them."""
        numbers = [str(number) for number, thing in enumerate(self.things, start=1) if matches(thing)]
        listed = f"({'), ('.join(numbers)})" if numbers else "none"
        return len(numbers), f"{what}: {listed}, that is {len(numbers)}."

    def counted(self, kind: str, text: str, what: str, matches: Callable[[Thing], bool]) -> Question:
        """A question whose answer is the number of things that match."""
        count, sentence = self.found(what, matches)
        return Question(kind, text, f"{self.inventory} {sentence}", str(count))


def how_many(asker: Asker) -> Question:
    """All objects."""
    return asker.counted("all", "How many objects are there?", "Objects", Filter({}))


def with_attributes(asker: Asker, count: int) -> Question:
    """Objects with so many attributes given."""
    chosen = asker.filter(*asker.generator.sample(ATTRIBUTES, count))
    phrase = chosen.phrase()
    kind = "one attribute" if count == 1 else f"{('two', 'three')[count - 2]} attributes"
    return asker.counted(kind, f"How many {phrase} are there?", phrase.capitalize(), chosen)


def without_attribute(asker: Asker) -> Question:
    """Objects that are not of a colour or shape."""
    name = asker.generator.choice(("colour", "shape"))
    chosen = asker.filter(name)
    value = chosen.wanted[name]
    said = value if name == "colour" else plural(value)
    return asker.counted(
        "negation",
        f"How many objects are not {said}?",
        f"Objects that are not {said}",
        lambda thing: not chosen(thing),
    )


def either(asker: Asker) -> Question:
    """Objects that have one attribute or another."""
    one, other = (asker.filter(name) for name in asker.generator.sample(ATTRIBUTES, 2))
    said = " or ".join(
        plural(value) if name == "shape" else value for part in (one, other) for name, value in part.wanted.items()
    )
    return asker.counted(
        "either",
        f"How many objects are {said} (or both)?",
        f"Objects that are {said}",
        lambda thing: one(thing) or other(thing),
    )


def beside(asker: Asker) -> Question:
    """Objects left or right of one that can be told from all others; other questions where there is none."""
    references = []
    for place, thing in enumerate(asker.things):
        gaps = [abs(x - asker.across[place]) for index, x in enumerate(asker.across) if index != place]
        for names in (("shape",), ("colour", "shape"), ATTRIBUTES):
            description = Filter({name: getattr(thing, name) for name in names})
            if min(gaps) >= _ASIDE and sum(map(description, asker.things)) == 1:
                references.append((place, description.phrase(one=True)))
                break
    if not references:
        return either(asker)
    place, reference = asker.generator.choice(references)
    side = asker.generator.choice(("left", "right"))
    beside_it = asker.things[:place] if side == "left" else asker.things[place + 1 :]
    chosen = asker.filter(asker.generator.choice(("colour", "shape", "size"))) if len(beside_it) > 3 else Filter({})
    phrase = chosen.phrase()
    return asker.counted(
        "beside",
        f"How many {phrase} are to the {side} of the {reference}?",
        f"{phrase.capitalize()} to the {side} of the {reference} ({place + 1})",
        lambda thing: chosen(thing) and any(thing is other for other in beside_it),
    )


def _two_groups(asker: Asker) -> tuple[Filter, Filter]:
    """Two values of one attribute, most often both of some thing of the scene."""
    name = asker.generator.choice(("colour", "shape", "shape", "size", "material"))
    one = asker.filter(name)
    other = asker.filter(name)
    if other == one:
        (value,) = one.wanted.values()
        other = Filter({name: asker.generator.choice([word for word in asker.words[name] if word != value])})
    # The second is rarer where it was drawn again: without a swap, "A" would be right more often than "B".
    return (one, other) if asker.generator.random() < 0.5 else (other, one)


def difference(asker: Asker) -> Question:
    """How many more of one group than of another."""
    one, other = _two_groups(asker)
    if sum(map(one, asker.things)) < sum(map(other, asker.things)):
        one, other = other, one
    more, first = asker.found(one.phrase().capitalize(), one)
    less, second = asker.found(other.phrase().capitalize(), other)
    return Question(
        "difference",
        f"How many more {one.phrase()} than {other.phrase()} are there?",
        f"{asker.inventory} {first} {second} {more} - {less} = {more - less}.",
        str(more - less),
    )


def comparison(asker: Asker) -> Question:
    """Which of two groups is larger."""
    one, other = _two_groups(asker)
    first_count, first = asker.found(one.phrase().capitalize(), one)
    second_count, second = asker.found(other.phrase().capitalize(), other)
    answer = "A" if first_count > second_count else "B" if first_count < second_count else "C"
    return Question(
        "comparison",
        f"Which are there more of?\n(A) {one.phrase()}\n(B) {other.phrase()}\n(C) equally many of both",
        f"{asker.inventory} {first} {second}",
        answer,
    )


QUESTIONS: dict[str, tuple[Callable[[Asker], Question], ...]] = {
    "easy": (how_many, lambda asker: with_attributes(asker, 1)),
    "medium": (lambda asker: with_attributes(asker, 1), lambda asker: with_attributes(asker, 2), without_attribute),
    "hard": (lambda asker: with_attributes(asker, 2), either, beside, difference, comparison),
}


def ask(scene: Scene, generator: random.Random, level: str, *, shifted: bool) -> Question:
    """A question of a level, its kind drawn too."""
    return generator.choice(QUESTIONS[level])(Asker(scene, generator, shifted=shifted))
