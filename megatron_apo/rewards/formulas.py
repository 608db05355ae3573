"""Formulas: LaTeX read by math-verify's parser and compared, numbers by value and everything else by math-verify.

Nothing of a model's text may be compiled. math-verify's reader of plain expressions hands the text to sympy's
``parse_expr``, which compiles it (``eval``), and so does ``sympy.Number`` of text: neither is reached from here.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from megatron_apo.rewards.guards import formula_refusal

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
_NO_NUMBER = re.compile(
    r"(?<!\d),|,(?!\d{3}(?!\d))|[;<>&]|\\\{|\\(?:begin|leq?|geq?|lt|gt|neq?|in|cup|cap|mathbb|pm)(?![A-Za-z])"
)
_WITH_COMMAS = re.compile(r"\s*-?\d{1,3}(,\d{3})+(\.\d+)?\s*")
_UNKNOWN = re.compile(r"(?<![A-Za-z])[A-DF-Za-df-hj-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")


class FormulaError(ValueError):
    """The formula is not read: beyond a limit, or no formula."""


@lru_cache(maxsize=1)
def _reader() -> Any:
    """math-verify's LaTeX reader, with exact numbers.

    Its own turns every number it meets into ``sympy.Number(text)``, which compiles the text, and into binary floating
    point, in which 0.1 + 0.2 is not 0.3.
    """
    import sympy
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    class Reader(_Latex2Sympy):  # type: ignore[misc]
        def parse_number(self, text: str) -> Any:
            number = Fraction(text.replace(",", ""))
            return sympy.Rational(number.numerator, number.denominator)

    return Reader


@lru_cache(maxsize=4096)
def parse_formula(latex: str) -> Any:
    """The sympy expression that ``latex`` says; FormulaError where a limit refuses it or nothing is read in it."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify.grader import should_treat_as_complex

    refusal = formula_refusal(latex)
    if refusal:
        raise FormulaError(refusal)
    # Units are read before, and kept: math-verify would drop them, and 5 cm would be 5 km.
    form = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
    normal = normalize_latex(latex, form)
    if _WITH_COMMAS.fullmatch(normal):
        raise FormulaError("no formula")  # a plain number; the reader would compile it
    try:
        read = _reader()(is_real=not should_treat_as_complex(normal)).parse(normal)
    except Exception as error:  # noqa: BLE001 - the parser raises Exception itself for whatever it cannot read
        raise FormulaError(f"no formula ({type(error).__name__})") from error
    if not isinstance(read, (sympy.Basic, sympy.MatrixBase)) or read.has(sympy.nan, sympy.zoo):
        raise FormulaError("no formula, or no number")
    return read


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
        kind = (
            isinstance(answer, sympy.Set) and not isinstance(answer, sympy.FiniteSet) and len(answer.args) <= MAX_PARTS
        )
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
    for start, step in (((7, 5), (13, 11)), ((-3, 7), (5, 3))):
        at = {name: sympy.Rational(*start) + order.index(str(name)) * sympy.Rational(*step) for name in names}
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
    """Whether every value that the answer claims is the one: of "7 + 6 = 13" both, of "x = 13" the known one."""
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
