"""Limits on what is parsed: an answer that could keep a symbolic comparison busy is refused before anything reads it.

What is refused is wrong, not an error: a model must not be able to have its wrong answers left out of their group by
writing monsters. A gold answer that is refused stops the run where the data is read. The limits are far above what an
answer to a question about a picture needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

MAX_CHARACTERS = 1000
MAX_TOKENS = 120
MAX_DEPTH = 5
MAX_DIGITS = 40  # of one number
MAX_POWER = 200  # of numbers: nested powers multiply
MAX_SYMBOLIC_POWER = 20  # of letters: an expansion grows much faster than a number
MAX_FACTORIAL = 100
MAX_ELEMENTS = 40  # of a set, tuple or matrix
MAX_LETTERS = 12  # different ones
MAX_INDICES = 8  # of letters
MAX_CHAIN = 3  # functions of functions
MAX_DIVISIONS = 10  # one after the other: sympy's numerical value takes twice as long with each


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is read and hardly computed. Not here: sums, products, integrals, limits and whatever else is a task rather than
# an answer; what writes text (operatorname), and what evaluates while it is parsed (Gamma, gcd, det).
_OPERATORS = _words("""
frac sqrt cdot times div pm mp pi infty sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp
lg binom le leq ge geq lt gt ne neq approx in cup cap setminus emptyset varnothing mathbb begin end ldots
lvert rvert vert lfloor rfloor lceil rceil overline bar vec hat prime to
""")
_SYMBOLS = _words("""
angle triangle parallel perp sim cong alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota
kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Delta Theta Lambda Xi Sigma Phi Psi Omega
""")
COMMANDS = _OPERATORS | _SYMBOLS
_FUNCTIONS = _words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lg")
_NESTING = frozenset(f"\\{name}" for name in _FUNCTIONS | {"sqrt", "frac"})
_ENVIRONMENTS = frozenset({"matrix", "pmatrix", "bmatrix"})
_STEEP = frozenset({"\\exp", "\\sinh", "\\cosh", "\\binom"})

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z]|\S", re.DOTALL)
_NUMBER = re.compile(r"(?P<digits>[\d.]+)(?:[eE](?P<exponent>[-+]?\d+))?")
_CLOSES = {")": "(", "]": "[", "}": "{", "\\}": "\\{"}
# Of a bracket with an index math-verify makes a quotient of factorials.
_PERMUTATION = re.compile(r"[)\]]\s*_")
_QUOTED_DIGIT = re.compile(r"\d\s*'")  # math-verify drops the sign, and 1'3 would be 13


def text_refusal(text: str) -> str:
    """Why an answer is not read at all, or "": too long, or with characters that no reader sees."""
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, more than {MAX_CHARACTERS}"
    if text.isascii() and text.isprintable():
        return ""
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cc", "Cf", "Cs", "Co", "Cn") and character not in "\t\n\r":
            return f"an invisible or impossible character (U+{ord(character):04X})"
        if category in ("Nd", "Nl", "No") and not character.isascii() and character not in "０１２３４５６７８９²³":
            return f"a digit that is not one of 0 to 9 (U+{ord(character):04X})"
    return ""


def formula_refusal(formula: str) -> str:
    """Why a formula (LaTeX) is not parsed, or "". Linear in its length."""
    tokens = _TOKEN.findall(formula)
    return (
        _too_many(tokens)
        or _unknown_command(tokens, formula)
        or _numbers_refusal(tokens)
        or _nesting_refusal(tokens)
        or _factorial_refusal(tokens)
        or _power_refusal(tokens)
        or ("an index of a bracket" if _PERMUTATION.search(formula) else "")
        or ("a quotation mark after a digit" if _QUOTED_DIGIT.search(formula) else "")
    )


def _too_many(tokens: Sequence[str]) -> str:
    if len(tokens) > MAX_TOKENS:
        return f"{len(tokens)} tokens, more than {MAX_TOKENS}"
    if sum(token in (",", ";", "&", "\\\\") for token in tokens) >= MAX_ELEMENTS:
        return f"more than {MAX_ELEMENTS} elements"
    if len({token for token in tokens if token.isalpha()}) > MAX_LETTERS:
        return f"more than {MAX_LETTERS} different letters"
    if sum(token in ("/", ":", "\\div") for token in tokens) > MAX_DIVISIONS:
        return f"more than {MAX_DIVISIONS} divisions"
    if tokens.count("_") > MAX_INDICES:
        return f"more than {MAX_INDICES} indices"
    if sum(token in _STEEP for token in tokens) > 1:
        return "more than one exponential or binomial"
    signs = "".join("s" if token in ("-", "+", "|", "_", "'") else "." for token in tokens)
    return "a run of signs" if "sss" in signs else ""


def _unknown_command(tokens: Sequence[str], formula: str) -> str:
    for token in tokens:
        if token[0] == "\\" and token[1:].isalpha() and token[1:] not in COMMANDS:
            return f"the command {token}"
        if not token.isascii() or token == '"':
            return f"the character {token!r}"
    if "\\begin" in tokens and {"\\{", "[", "\\sqrt"} & set(tokens):
        return "a matrix inside a set"
    for name in re.findall(r"\\(?:begin|end)\s*\{([^}]*)\}", formula):
        if name not in _ENVIRONMENTS:
            return f"the environment {name}"
    if re.search(r"\\gamma\s*[({\\]", formula):
        return "the Gamma function"
    return ""


def _numbers_refusal(tokens: Sequence[str]) -> str:
    steep = bool(_STEEP & set(tokens))
    if steep and "^" in tokens:
        return "a power beside an exponential or a binomial"
    for token in tokens:
        number = _NUMBER.fullmatch(token)
        if number is None:
            continue
        if len(number["digits"]) > MAX_DIGITS or abs(int((number["exponent"] or "0")[:9])) > MAX_DIGITS:
            return f"a number of more than {MAX_DIGITS} digits"
        if steep and _magnitude(token) > 10 * MAX_FACTORIAL:
            return f"an exponential or a binomial of more than {10 * MAX_FACTORIAL}"
    return ""


def _nesting_refusal(tokens: Sequence[str]) -> str:
    depth = 0
    for token in tokens:
        if token in ("(", "[", "{", "\\{", "\\lfloor", "\\lceil"):
            depth += 1
        elif token in (")", "]", "}", "\\}", "\\rfloor", "\\rceil"):
            depth -= 1
        if depth > MAX_DEPTH:
            return f"brackets nested more than {MAX_DEPTH} deep"
        if depth < 0:
            break
    if depth:
        return "brackets that do not match"
    # Without braces functions, roots and fractions nest as well.
    bare = [token for token in tokens if token not in ("(", "{", "[")]
    runs = "".join("f" if token in _NESTING else "." for token in bare).split(".")
    return f"more than {MAX_CHAIN} functions of functions" if max(map(len, runs)) > MAX_CHAIN else ""


def _factorial_refusal(tokens: Sequence[str]) -> str:
    for index, token in enumerate(tokens):
        if token != "!":
            continue
        base = tokens[index - 1] if index else ""
        if base in (")", "]", "}"):
            inside = tokens[_opening(tokens, index - 1) : index - 1]
            numbers = [item for item in inside if _NUMBER.fullmatch(item)]
            small = len(numbers) <= 2 and all(_magnitude(item) <= 10 for item in numbers)
            if not small or {"^", "!"} & set(inside) or _STEEP & set(inside):
                return "the factorial of a large or nested expression"
        elif base == "!" or (_NUMBER.fullmatch(base) and _magnitude(base) > MAX_FACTORIAL):
            return f"a factorial of a factorial, or of more than {MAX_FACTORIAL}"
    return ""


def _power_refusal(tokens: Sequence[str]) -> str:
    """Powers in one pass: every bracket knows the largest power inside it, which a power of the bracket multiplies."""
    symbolic = any(token.lstrip("\\") in _SYMBOLS or (token.isalpha() and token not in "ei") for token in tokens)
    most = MAX_SYMBOLIC_POWER if symbolic or "\\begin" in tokens else MAX_POWER
    inside: list[Fraction] = [Fraction(1)]  # of the brackets that are open
    closed = Fraction(1)  # of the bracket that just closed
    for index, token in enumerate(tokens):
        if token in ("(", "[", "{", "\\{"):
            # The denominator's brace follows the numerator's: what is raised is the fraction.
            inside.append(closed if index and tokens[index - 1] == "}" else Fraction(1))
        elif token in _CLOSES:
            closed = inside.pop()
            inside[-1] = max(inside[-1], closed)
        elif token == "^":
            exponent, end = _exponent(tokens, index + 1)
            if exponent is None or (end < len(tokens) and tokens[end] == "^"):
                return "a tower of powers"
            before = tokens[index - 1] if index else ""
            raised = closed if before in _CLOSES else inside[-1] if before in ("|", "\\rvert", "\\vert") else 1
            if raised * exponent > most:
                return f"a power above {most}"
            inside[-1] = max(inside[-1], raised * exponent)
    return ""


def _exponent(tokens: Sequence[str], start: int) -> tuple[Fraction | None, int]:
    """A bound of the exponent that starts there and where it ends; None where it could be anything."""
    end = start
    if end < len(tokens) and tokens[end] in ("\\frac", "\\sqrt"):
        end += 1
    while end < len(tokens) and tokens[end] in ("{", "("):
        end = _closing(tokens, end) + 1
        if end == 0:
            return None, len(tokens)
        if end >= len(tokens) or tokens[end] != "{":
            break
    end = max(end, start + 1)
    inside = tokens[start:end]
    if "!" in inside or _STEEP & set(inside):
        return None, end
    numbers = [_magnitude(token) for token in inside if _NUMBER.fullmatch(token)]
    if "^" in inside and (inside.count("^") > 1 or len(numbers) > 3 or any(number > 3 for number in numbers)):
        return None, end
    bound = Fraction(1)
    for number in numbers:
        bound *= number**3 if "^" in inside else number
    # Of a sum of n terms the product is a bound only with as many ones added.
    return bound + len(numbers) - 1 if numbers else bound, end


def _closing(tokens: Sequence[str], start: int) -> int:
    depth = 0
    for index in range(start, len(tokens)):
        if tokens[index] in ("(", "{"):
            depth += 1
        elif tokens[index] in (")", "}"):
            depth -= 1
        if depth == 0:
            return index
    return -1


def _opening(tokens: Sequence[str], end: int) -> int:
    depth = 0
    for index in range(end, -1, -1):
        if tokens[index] in (")", "]", "}"):
            depth += 1
        elif tokens[index] in ("(", "[", "{"):
            depth -= 1
        if depth == 0:
            return index
    return 0


def _magnitude(token: str) -> Fraction:
    """max(|n|, 1/|n|): a bound of the number and of what dividing by it does."""
    number = abs(Fraction(token.rstrip(".") if not token.startswith(".") else f"0{token}"))
    return max(number, 1 / number) if number else Fraction(1)
