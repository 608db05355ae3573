"""The accuracy reward: the response's one answer against the row's gold answer, by math-verify.

Knows neither torch nor the records' classes, so that a grader process starts in a fraction of a second.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from megatron_apo.rewards.format import visible_text

if TYPE_CHECKING:
    from megatron_apo.records import Outcome

# What sympy and math-verify raise on expressions they cannot compare. Anything else ends the grader process, which
# the pool reports as a grader error too.
COMPARISON_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)

# A bare formula such as "\\frac{1}{2}" or "(1, 2)" is read as LaTeX; a sentence is not, or "yes" would parse as the
# product y·e·s. A run of letters that is no LaTeX command tells them apart.
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
# Of a bare list, tuple or set the plain-expression reader takes the last number alone: "1, 2, 3" would pay as 3.
_STRUCTURE = re.compile(r"[\\{}()\[\],;]")


class GraderError(RuntimeError):
    """The grader could not judge an answer."""


def extract_answer(response_text: str) -> str | None:
    """The content of the response's single ``<answer>…</answer>`` block, or None where it has no such answer.

    None too for several blocks (a response must not answer twice), for an empty one, and for a block that stands
    inside an open ``<think>``: that is thinking, not an answer.
    """
    if response_text.count("<answer>") != 1 or response_text.count("</answer>") != 1:
        return None
    before, _, rest = response_text.partition("<answer>")
    answer, closing, _ = rest.partition("</answer>")
    if not closing or before.rfind("<think>") > before.rfind("</think>"):
        return None
    return visible_text(answer) or None


@lru_cache(maxsize=65536)
def parse_expression(text: str) -> tuple[object, ...]:
    """What math-verify reads in ``text`` (LaTeX, plain expression, option letter); empty where it reads nothing.

    No time limit of math-verify's own: it is built on signals, which only work in a main thread; whoever parses
    model output does so in a process that can be killed.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse

    # It would warn that no time limit is set, which is on purpose.
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    extraction = [LatexExtractionConfig(), ExprExtractionConfig(), StringExtractionConfig()]

    def read(expression: str) -> tuple[object, ...]:
        return tuple(parse(expression, extraction, parsing_timeout=None))

    visible = visible_text(text)
    if not visible:
        return ()
    formula = "$" not in visible and not _WORD.search(visible)
    as_latex = read(f"${visible}$") if formula else ()
    if as_latex and isinstance(as_latex[0], str):  # only the characters themselves: it is no LaTeX
        as_latex = ()
    if as_latex and _STRUCTURE.search(visible):
        return as_latex
    return read(visible) or as_latex


def check_gold(gold: str) -> None:
    """Raises ValueError when the grader cannot read ``gold``: such a row would reward every response alike."""
    if not parse_expression(gold):
        raise ValueError(
            f"answer={gold!r}: math-verify reads no number, formula, set or option letter (A to D) in it; "
            "correct the row, write a formula as LaTeX between $ signs, or remove the row"
        )


def grade(answer: str, gold: str) -> Outcome:
    """ "correct" or "wrong" for an extracted answer; GraderError where the two cannot be compared.

    An answer that does not parse is wrong; a gold answer that does not parse is an error of the data.
    """
    from math_verify import verify

    check_gold(gold)
    try:
        parsed = parse_expression(answer)
        equal = bool(parsed) and verify(
            list(parse_expression(gold)),
            list(parsed),
            timeout_seconds=None,
            raise_on_error=True,
        )
    except COMPARISON_ERRORS as error:
        raise GraderError(f"comparing answer {answer[:80]!r} with gold {gold[:80]!r}: {error!r}") from error
    return "correct" if equal else "wrong"
