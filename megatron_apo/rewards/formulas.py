"""Formulas: LaTeX read by math-verify's parser and compared, numbers by value and everything else by math-verify.

Of math-verify only the LaTeX reader and the comparison are used. Its reader of plain expressions hands the text to
sympy's ``parse_expr``, which compiles it (``eval``); nothing of a model's text may be compiled.
"""

from __future__ import annotations

import logging
import re
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
MAX_PARTS = 8  # of a union or another set that math-verify compares by set algebra
_DIGITS = 50  # of a numerical comparison of exact values
_NO_NUMBER = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))|[;<>&]|\\\{|\\(?:begin|le|ge|lt|gt|ne|in|cup|cap|mathbb|pm)(?![a-z])|\\[lg]eq|\\neq")
_UNKNOWN = re.compile(r"(?<![A-Za-z])[A-DF-Za-df-hj-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")


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
    try:
        return _exact(read)
    except FAILURES as error:
        raise FormulaError(f"no formula ({type(error).__name__})") from error


def numerical_value(expression: Any) -> Any | None:
    """The number that an expression without unknowns is, to 50 digits, or None for anything else."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    try:
        value = expression.evalf(_DIGITS)
    except FAILURES:  # it has none: the factorial of -1
        return None
    return value if isinstance(value, sympy.Number) and value.is_finite else None


def may_be_number(formula: str) -> bool:
    """False for text that is no number whatever is computed: a list, a set, a relation, a formula with unknowns."""
    *_, last = formula.split("=")
    return not _NO_NUMBER.search(formula) and not _UNKNOWN.search(_COMMAND.sub(" ", last))


def same_formula(answer: Any, gold: Any) -> bool:
    """Whether two expressions are equal: numbers by value, whatever holds an unknown, a set or a relation by
    math-verify. Raises one of ``FAILURES`` where it cannot tell.

    What is quick to refute is not left to it: it simplifies and solves, which can take for ever.
    """
    import sympy
    from math_verify import verify

    number = numerical_value(gold)
    if number is not None:
        return _is_number(answer, number)
    answer, gold = _solutions(answer), _solutions(gold)
    if _is_assignment(gold) and isinstance(answer, sympy.Expr):
        gold = gold.rhs  # y = 2x + 1, answered by 2x + 1
    elif _is_assignment(answer) and isinstance(gold, sympy.Expr):
        answer = answer.rhs
    if not _comparable(answer, gold) or _differ_somewhere(answer, gold):
        return False
    logging.getLogger("math_verify.grader").setLevel(logging.ERROR)
    return bool(verify([gold], [answer], timeout_seconds=None, raise_on_error=True))


def _comparable(answer: Any, gold: Any) -> bool:
    """Whether two expressions are of one kind and have the same unknowns."""
    import sympy
    from math_verify.grader import is_relation

    if is_relation(gold) and isinstance(answer, sympy.Set):  # x > 2, answered by an interval
        return len(gold.free_symbols) == 1 and not answer.free_symbols and len(answer.args) <= MAX_PARTS
    same_unknowns = {str(name) for name in answer.free_symbols} == {str(name) for name in gold.free_symbols}
    if isinstance(gold, sympy.FiniteSet):
        kind = isinstance(answer, sympy.FiniteSet) or (len(gold) == 1 and isinstance(answer, sympy.Expr))
    elif isinstance(gold, (sympy.Interval, sympy.Tuple)):  # (1, 2) is either, and may be answered by 1, 2
        kind = isinstance(answer, (sympy.Interval, sympy.Tuple, sympy.FiniteSet)) and len(answer.args) <= MAX_PARTS
    elif isinstance(gold, sympy.Set):
        kind = isinstance(answer, sympy.Set) and not isinstance(answer, sympy.FiniteSet) and len(answer.args) <= MAX_PARTS
    elif is_relation(gold):
        kind = is_relation(answer)
    else:
        family = sympy.Expr if isinstance(gold, sympy.Expr) else sympy.MatrixBase
        kind = isinstance(answer, family)
    return kind and same_unknowns


def _differ_somewhere(answer: Any, gold: Any) -> bool:
    """Whether two formulas of the same unknowns differ at one of a few points; of y = f(x), whether the answer's
    equation is violated where the gold answer's holds."""
    import sympy

    if _is_assignment(gold) and isinstance(answer, sympy.Eq):
        answer, gold = (answer.lhs - answer.rhs).xreplace({gold.lhs: gold.rhs}), sympy.Integer(0)
    if not isinstance(answer, sympy.Expr) or not isinstance(gold, sympy.Expr):
        return False
    # By name: a formula with an i in it is read with complex unknowns.
    names = sorted(answer.free_symbols | gold.free_symbols, key=str)
    order = sorted({str(name) for name in names})
    for start, step in (("7/5", "13/11"), ("-3/7", "5/3")):
        at = {name: sympy.Rational(start) + order.index(str(name)) * sympy.Rational(step) for name in names}
        values = [numerical_value(expression.xreplace(at)) for expression in (answer, gold)]
        if values[0] is not None and values[1] is not None and not _close(values[0], values[1]):
            return True
    return False


def _solutions(expression: Any) -> Any:
    """The values of "x = 2, x = 3"; anything else as it is."""
    import sympy

    if not isinstance(expression, sympy.FiniteSet) or not all(_is_assignment(item) for item in expression.args):
        return expression
    named = {item.lhs for item in expression.args}
    return sympy.FiniteSet(*(item.rhs for item in expression.args)) if len(named) == 1 else expression


def _is_assignment(expression: Any) -> bool:
    import sympy

    return isinstance(expression, sympy.Eq) and isinstance(expression.lhs, sympy.Symbol)


def _is_number(answer: Any, wanted: Any) -> bool:
    """Whether every value that the answer claims is the one: of "7 + 6 = 13" both, of "x = 13" the one that is known."""
    import sympy
    from latex2sympy2_extended.logic import And

    claims = answer._unsorted_args if isinstance(answer, And) else [answer]
    sides = [side for claim in claims for side in ((claim.lhs, claim.rhs) if isinstance(claim, sympy.Eq) else (claim,))]
    values = [numerical_value(side) for side in sides if isinstance(side, sympy.Symbol) is False]
    return bool(values) and all(value is not None and _close(value, wanted) for value in values)


def _close(value: Any, wanted: Any) -> bool:
    import sympy

    scale = max(abs(value), abs(wanted), sympy.Integer(1))
    return bool(abs(value - wanted) <= scale * sympy.Rational(1, 10**30))


def _exact(expression: Any) -> Basic:
    """Decimals as the fractions they were written as: binary floating point would make 0.1 + 0.2 no 0.3."""
    import sympy

    if not isinstance(expression, sympy.Basic):
        return expression
    floats = expression.atoms(sympy.Float)
    return expression.xreplace({number: sympy.Rational(str(number)) for number in floats}) if floats else expression
