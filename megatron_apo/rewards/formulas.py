"""Formulas: LaTeX read by math-verify's parser and compared, numbers by value and everything else by math-verify.

Of math-verify only the LaTeX reader and the comparison are used. Its reader of plain expressions hands the text to
sympy's ``parse_expr``, which compiles it (``eval``); nothing of a model's text may be compiled.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megatron_apo.rewards.guards import formula_refusal

if TYPE_CHECKING:
    from sympy import Basic

# What sympy and math-verify raise on expressions they cannot read or compare. Anything else ends the grader process,
# which the pool reports as a grader error too.
FAILURES = (
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
_DIGITS = 50  # of a numerical comparison of exact values
_EQUAL = Fraction(1, 10**30)  # their largest relative difference


class FormulaError(ValueError):
    """The formula is not read: beyond a limit, or no formula."""


@lru_cache(maxsize=4096)
def parse_formula(latex: str) -> Basic:
    """The expression that ``latex`` says; FormulaError where a limit refuses it or nothing is read in it."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    refusal = formula_refusal(latex)
    if refusal:
        raise FormulaError(refusal)
    # It would warn that no time limit is set, which is on purpose: its own is a signal of the main thread.
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    # Units are read before, and kept: math-verify would drop them, and 5 cm would be 5 km.
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    target = LatexExtractionConfig(normalization_config=reading, boxed_match_priority=-1)
    found = parse(f"${latex}$", [target], "no_fallback", "first_match", parsing_timeout=None)
    read: Any = found[0] if found else None
    if not isinstance(read, (sympy.Basic, sympy.MatrixBase)):
        raise FormulaError("no formula")
    if isinstance(read, sympy.Basic) and read.has(sympy.nan, sympy.zoo):
        raise FormulaError("no number")
    return _exact(read)


def numerical_value(expression: Basic) -> Any | None:
    """The number that an expression without unknowns is, to 50 digits, or None for anything else."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = expression.evalf(_DIGITS)
    return value if isinstance(value, sympy.Number) and value.is_finite else None


def same_formula(answer: Basic, gold: Basic) -> bool:
    """Whether two expressions are equal: numbers by value, whatever holds an unknown, a set or a relation by
    math-verify. Raises one of ``FAILURES`` where it cannot tell."""
    from math_verify import verify

    logging.getLogger("math_verify.grader").setLevel(logging.ERROR)
    wanted = numerical_value(gold)
    sides = _sides(answer) if wanted is not None else []
    if wanted is not None and sides:
        values = [numerical_value(side) for side in sides]
        return all(value is not None and _close(value, wanted) for value in values)
    if wanted is None and differ_somewhere(answer, gold):
        return False
    return bool(verify([gold], [answer], timeout_seconds=None, raise_on_error=True))


def differ_somewhere(answer: Basic, gold: Basic) -> bool:
    """Whether two expressions of the same unknowns differ at one of a few points: a quick no before simplifying."""
    import sympy

    if not isinstance(answer, sympy.Expr) or not isinstance(gold, sympy.Expr):
        return False
    names = sorted(answer.free_symbols | gold.free_symbols, key=str)
    for point in (("7/5", "13/11"), ("-3/7", "5/3")):
        start, step = (sympy.Rational(number) for number in point)
        at = {name: start + index * step for index, name in enumerate(names)}
        values = [numerical_value(expression.xreplace(at)) for expression in (answer, gold)]
        if all(value is not None for value in values) and not _close(*values):
            return True
    return False


def _sides(answer: Basic) -> list[Basic]:
    """Every value that the answer claims to be equal: of "7 + 6 = 13" both; of "x = 13" the one without unknowns."""
    import sympy
    from latex2sympy2_extended.logic import And

    relations = answer._unsorted_args if isinstance(answer, And) else [answer]
    if all(isinstance(relation, sympy.Eq) for relation in relations):
        sides = [side for relation in relations for side in (relation.lhs, relation.rhs)]
        known = [side for side in sides if not side.free_symbols]
        return known or sides
    return [answer] if isinstance(answer, sympy.Expr) else []


def _close(value: Any, wanted: Any) -> bool:
    import sympy

    scale = max(abs(value), abs(wanted))
    return bool(abs(value - wanted) <= scale * sympy.Rational(_EQUAL.numerator, _EQUAL.denominator))


def _exact(expression: Any) -> Basic:
    """Decimals as the fractions they were written as: binary floating point would make 0.1 + 0.2 no 0.3."""
    import sympy

    if not isinstance(expression, sympy.Basic):
        return expression
    floats = expression.atoms(sympy.Float)
    return expression.xreplace({number: sympy.Rational(str(number)) for number in floats}) if floats else expression
