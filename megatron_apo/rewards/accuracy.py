"""The accuracy reward: the response's one answer against the row's gold answer.

Knows neither torch nor the records' classes, so that a grader process starts in a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megatron_apo.rewards.choices import chosen_options, gold_options, options_of
from megatron_apo.rewards.format import TAGS, visible_text
from megatron_apo.rewards.formulas import (
    FAILURES,
    FormulaError,
    may_be_number,
    numerical_value,
    parse_formula,
    same_formula,
)
from megatron_apo.rewards.guards import text_refusal
from megatron_apo.rewards.reading import Quantity, folded, read_quantity

if TYPE_CHECKING:
    from megatron_apo.records import Outcome

MAX_TEXT = 100  # characters of a gold answer that is compared as text
ROUNDED_DIGITS = 6  # significant digits from which on a decimal may stand for a number that has no end

_PHRASE = re.compile(r"(?=.*(?:[^\W\d_]{2}|[\u3040-\u9fff]))[\w\s\-'’,./&():;%°+=]+")


class GraderError(RuntimeError):
    """The grader could not judge an answer."""


@dataclass(frozen=True)
class Gold:
    """A gold answer as it is compared: as options of the row, as a value, or as text."""

    text: str
    options: tuple[str, ...] = ()
    chosen: frozenset[int] = frozenset()
    quantity: Quantity | None = None


def extract_answer(response_text: str) -> str | None:
    """The content of the response's single ``<answer>…</answer>`` block, or None where it has no such answer.

    None too for several blocks (a response must not answer twice), for an empty one, for one that holds other tags,
    and for a block inside the thinking: within an open ``<think>``, or before a ``</think>``.
    """
    if response_text.count("<answer>") != 1 or response_text.count("</answer>") != 1:
        return None
    before, _, rest = response_text.partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    if not closing or before.rfind("<think>") > before.rfind("</think>"):
        return None
    thinking_ends = after.find("</think>")
    if thinking_ends >= 0 and not 0 <= after.find("<think>") < thinking_ends:
        return None
    if any(tag in answer for tag in TAGS):
        return None
    return answer.strip() if visible_text(answer) else None


def check_gold(gold: str, options: Sequence[str] = ()) -> None:
    """Raises ValueError when the grader cannot read ``gold``: such a row would reward every response alike."""
    _read_gold(gold, tuple(options))


def check_row(gold: str, question: str, choices: Sequence[str]) -> None:
    """``check_gold`` of a row, whose options are its ``choices`` or stand in its question."""
    check_gold(gold, options_of(question, choices))


def is_plain_words(gold: str, question: str, choices: Sequence[str]) -> bool:
    """Whether a row's gold answer is neither a value nor one of its options, and so paid in its own words alone."""
    wanted = _read_gold(gold, tuple(options_of(question, choices)))
    return not wanted.chosen and wanted.quantity is None


def grade(answer: str, gold: str, options: Sequence[str] = (), tolerance: float = 0.0) -> Outcome:
    """ "correct" or "wrong" for an extracted answer; GraderError where the two cannot be compared.

    ``options``: texts of the row's options A, B, … (``choices.options_of``). ``tolerance``: relative, for measured
    values (decimals, values with a unit). An answer that a limit refuses or that does not parse is wrong; a gold
    answer that does not parse is an error of the data, a ValueError.
    """
    wanted = _read_gold(gold, tuple(options))
    if text_refusal(answer):
        return "wrong"
    try:
        return "correct" if _matches(answer, wanted, tolerance) else "wrong"
    except FAILURES as error:
        raise GraderError(f"comparing answer {answer[:80]!r} with gold {gold[:80]!r}: {error!r}") from error


@lru_cache(maxsize=65536)
def _read_gold(gold: str, options: tuple[str, ...]) -> Gold:
    text = visible_text(gold)
    refusal = text_refusal(text) or ("" if text else "it is empty")
    if not refusal:
        chosen = gold_options(text, options, _same_text)
        if chosen:
            return Gold(text, options, chosen)
        quantity = read_quantity(text)
        refusal = "" if quantity is None else _unreadable(quantity)
        if quantity is not None and not refusal:
            return Gold(text, options, quantity=quantity)
        if len(text) <= MAX_TEXT and _PHRASE.fullmatch(folded(text)):
            return Gold(text, options)
        refusal = refusal or "neither a value, an option nor plain words"
    raise ValueError(
        f"answer={gold[:80]!r}{'…' * (len(gold) > 80)}: the grader reads no number, formula, set, option letter or "
        f"plain words in it ({refusal}); correct the row, write a formula as LaTeX between $ signs, or remove the row"
    )


def _unreadable(quantity: Quantity) -> str:
    if isinstance(quantity.value, Fraction):
        return ""
    try:
        parse_formula(quantity.value)
    except FormulaError as error:
        return str(error)
    return ""


def _matches(answer: str, gold: Gold, tolerance: float) -> bool:
    if gold.chosen:
        return chosen_options(answer, gold.options, _same_text) == gold.chosen
    if folded(answer) == folded(gold.text):
        return True
    if gold.quantity is None:
        return False
    quantity = read_quantity(answer)
    return quantity is not None and same_quantity(quantity, gold.quantity, tolerance)


def _same_text(answer: str, option: str) -> bool:
    """Whether an answer says what an option says, as a value: 0.5 and 1/2, 30° and 30 degrees."""
    said, wanted = read_quantity(answer), read_quantity(option)
    return said is not None and wanted is not None and same_quantity(said, wanted, 0.0)


def same_quantity(answer: Quantity, gold: Quantity, tolerance: float) -> bool:
    """Whether two values are equal, units converted; a unit that contradicts the gold answer's is not.

    A unit that is missing on either side is taken from the other. Percent: see docs/rewards.md.
    """
    if answer.name and gold.name and answer.name.casefold() != gold.name.casefold():
        return False
    own, wanted = answer.unit, gold.unit
    if wanted is not None and own is not None and own.dimensions != wanted.dimensions:
        return False
    factors = [Fraction(1)]
    if own is not None and wanted is not None:
        factors = [own.factor / wanted.factor]
    elif own is not None and not own.dimensions:  # 42 % of a gold answer without a unit: 0.42, or 42 in percent
        factors = [own.factor, Fraction(1)] if _above_one(gold) else [own.factor]
    elif wanted is not None and not wanted.dimensions:  # 42 or 0.42 for 42 %
        factors = [Fraction(1), 1 / wanted.factor]
    return any(_same_value(answer, factor, gold, tolerance) for factor in factors)


def _above_one(gold: Quantity) -> bool:
    return isinstance(gold.value, Fraction) and abs(gold.value) > 1


def _same_value(answer: Quantity, factor: Fraction, gold: Quantity, tolerance: float) -> bool:
    if isinstance(answer.value, Fraction) and isinstance(gold.value, Fraction):
        value, wanted = answer.value * factor, gold.value
        if value == wanted:
            return True
    else:
        expected = _expression(gold)
        if isinstance(answer.value, str) and numerical_value(expected) is not None and not may_be_number(answer.value):
            return False
        try:
            said = _expression(answer)
        except FormulaError:
            return False
        if factor == 1 and same_formula(said, expected):
            return True
        numbers = [numerical_value(expression) for expression in (said, expected)]
        if numbers[0] is None or numbers[1] is None or not (numbers[0].is_real and numbers[1].is_real):
            return False
        value, wanted = (Fraction(str(number)) for number in numbers)
        value *= factor
        if factor != 1 and abs(value - wanted) <= abs(wanted) / 10**30:
            return True
    if _rounds(answer, factor, gold, value - wanted) or _rounds(gold, Fraction(1), answer, value - wanted):
        return True
    return gold.measured and abs(value - wanted) <= Fraction(tolerance) * abs(wanted)


def _rounds(decimal: Quantity, factor: Fraction, exact: Quantity, difference: Fraction) -> bool:
    """Whether a decimal of six or more digits is the rounded form of a number that no decimal is (1/3, √2, π)."""
    if decimal.significant < ROUNDED_DIGITS or not decimal.decimals or _ends(exact):
        return False
    return abs(difference) <= abs(factor) / (2 * 10**decimal.decimals)


def _ends(quantity: Quantity) -> bool:
    """Whether a value can be written as a decimal."""
    value = quantity.value
    if not isinstance(value, Fraction):
        expression = _expression(quantity)
        if not expression.is_Rational:
            return False
        value = Fraction(expression.p, expression.q)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _expression(quantity: Quantity) -> Any:
    import sympy

    if isinstance(quantity.value, Fraction):
        return sympy.Rational(quantity.value.numerator, quantity.value.denominator)
    return parse_formula(quantity.value)
