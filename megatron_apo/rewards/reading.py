"""What an answer says: a number or a formula, with a unit where one is written. Text in, no symbolic mathematics.

Plain numbers and fractions are read here, exactly; a formula is left as LaTeX for ``formulas``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from megatron_apo.rewards.units import Unit, counted_thing, parse_unit


@dataclass(frozen=True)
class Quantity:
    """A value, exact or as a formula, and its unit (None: none is written).

    ``decimals``: how many places are written after the point, of a plain number; ``significant``: its digits without
    leading zeros. ``name``: what stands before an equals sign ("x" of "x = 5").
    """

    value: Fraction | str
    unit: Unit | None = None
    decimals: int = 0
    significant: int = 0
    name: str = ""

    @property
    def measured(self) -> bool:
        """A decimal, or a value with a unit that is measured: what a tolerance applies to."""
        return self.decimals > 0 or (self.unit is not None and bool(self.unit.dimensions))


_CHARACTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # the full-width forms of ASCII
        **{"−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*"},
        **{
            "≤": r"\leq ",
            "≥": r"\geq ",
            "≠": r"\neq ",
            "≈": r"\approx ",
            "±": r"\pm ",
            "∞": r"\infty ",
            "√": r"\sqrt ",
        },
        **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∠": r"\angle ", "△": r"\triangle "},
        **{"π": r"\pi ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda "},
        **{"φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "µ": "μ", "Ω": "Ω", "º": "°", "˚": "°", "℃": "°C"},
        **{"²": "^{2}", "³": "^{3}", "℉": "°F", "。": ".", "，": ",", "、": ",", "’": "'", "“": '"', "”": '"'},
        **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\n": " ", "\t": " ", "\r": " "},
    }
)
_REWRITES = [
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|bf|rm)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])|\\textdegree"), "°"),
    (re.compile(r"\\[,;:!]|\\ |\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\([lg]eq?)slant(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln|infty)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\mu\s*(?=[mgsAV](?![A-Za-z]))"), "μ"),
]
_WRAPPED = [
    re.compile(r"\$\$(?P<inside>[^$]*)\$\$"),
    re.compile(r"\$(?P<inside>[^$]*)\$"),
    re.compile(r"\\\((?P<inside>.*)\\\)"),
    re.compile(r"\\\[(?P<inside>.*)\\\]"),
    re.compile(r"\*\*(?P<inside>[^*]*)\*\*"),
    re.compile(r"\\f?boxed\s*\{(?P<inside>[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}"),
]

_NUMBER = re.compile(
    r"(?P<sign>[-+])?\s*"
    r"(?:(?P<whole>[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+)(?:\.(?P<point>\d*))?|\.(?P<only>\d+))"
    r"(?:[eE](?P<exponent>[-+]?\d{1,2})(?![\dA-Za-z]))?(?![\d,.]*\d)"
)
_RATIO = re.compile(
    r"(?P<sign>[-+])?\s*(?:(?P<mixed>\d{1,9})\s+)?"
    r"(?:(?P<top>\d{1,30})\s*/\s*(?P<bottom>\d{1,30})|\\frac\s*\{\s*(?P<above>\d{1,30})\s*\}\s*\{\s*(?P<below>\d{1,30})\s*\})"
    r"(?![\d.^!])"
)
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_MULTIPLE = re.compile(rf"({'|'.join(_MULTIPLES)})s?(?![A-Za-z])", re.IGNORECASE)
_DIVIDED = re.compile(r"\d[^\w$]*\$[^\w$]*\d")  # "1$3": a parser that drops the sign would read 13
_MONEY = re.compile(r"(?P<sign>-?)\s*(?:\\?(?P<money>[$€£¥]))\s*(?=[\d.])")

# A sentence around the answer: "The sum is 13", "Answer: 13". No digit may stand before the value.
_SENTENCE = re.compile(r"[A-Za-z\s,'\"]*?(?:\b(?:is|are|was|were|equals|equal to|answer)\b\s*:?|:)\s*", re.I)
_NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|hardly|minus|negative|if|unless|\w*n'?t)\b", re.IGNORECASE
)
_NAME = re.compile(
    r"\s*((?:\\(?:angle|triangle|Delta|alpha|beta|gamma|theta|lambda)|[A-Za-z'\s])[A-Za-z'\s]*(?:_\{?\w\}?)?)\s*=(?!=)"
)
# Of a number before a bracket math-verify makes a mixed number: 2(3) would be 5.
_PRODUCT = re.compile(r"((?<![\d._^{])\d+(?:\.\d+)?|\))\s*(?=\()")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def unwrapped(text: str) -> str:
    """``text`` with single spaces, without the signs of a formula, bold type or a box around the whole of it."""
    text = " ".join(text.split())  # runs of spaces are what makes the patterns below slow
    while True:
        for pattern in _WRAPPED:
            match = pattern.fullmatch(text)
            if match is not None:
                text = match["inside"].strip()
                break
        else:
            return text


def folded(text: str) -> str:
    """``text`` as it is compared as text: unwrapped, case-folded, single spaces, no full stop at its end."""
    text = unwrapped(text).translate(_CHARACTERS)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return unwrapped(text).casefold().rstrip(" .!")


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """What ``text`` says, or None where it holds no single value: words, several values in a sentence."""
    formula = unwrapped(text).translate(_CHARACTERS)
    if formula.count("$") % 2 == 0:
        formula = re.sub(r"(?<!\\)\$", " ", formula)
    elif _DIVIDED.search(formula):
        return None
    for pattern, replacement in _REWRITES:
        formula = pattern.sub(replacement, formula)
    formula = unwrapped(formula).rstrip(" .,;").strip().removeprefix("=").strip()
    said = _without_sentence(formula)
    return None if said is None else _read_named(said)


def _read_named(formula: str) -> Quantity | None:
    """With the name that the value is given, "x" of "x = 5 cm", where it is a plain number."""
    name = _NAME.match(formula)
    if name is not None and _NEGATION.search(name[1]) is None:
        named = _read_value(formula[name.end() :].strip())
        if named is not None and isinstance(named.value, Fraction):
            return Quantity(named.value, named.unit, named.decimals, named.significant, "".join(name[1].split()))
    return _read_value(formula)


def _without_sentence(formula: str) -> str | None:
    """Without the words before the value; None where they deny it."""
    sentence = _SENTENCE.match(formula)
    if sentence is None or not sentence.end() or not re.match(r"[A-Za-z]", formula):
        return formula
    return None if _NEGATION.search(sentence[0]) else formula[sentence.end() :].strip()


def _read_value(formula: str) -> Quantity | None:
    money = _MONEY.match(formula)
    if money is not None:
        amount = _read_value(money["sign"] + formula[money.end() :])
        return None if amount is None or amount.unit else _with_unit(amount, parse_unit(money["money"]))
    number = _NUMBER.match(formula)
    ratio = _RATIO.match(formula)
    for match, quantity in ((ratio, _ratio(ratio)), (number, _number(number))):
        if match is None or quantity is None:
            continue
        rest = formula[match.end() :]
        if not rest.strip():
            return quantity
        multiple = _MULTIPLE.match(rest.strip())
        if multiple is not None and isinstance(quantity.value, Fraction):
            quantity = Quantity(quantity.value * _MULTIPLES[multiple[1].lower()])
            rest = rest.strip()[multiple.end() :] or " "
        unit = _unit(rest)
        if unit is not None or not rest.strip():
            return _with_unit(quantity, unit)
    return _read_formula(formula)


def _read_formula(formula: str) -> Quantity | None:
    for start in re.finditer(r"(?<![A-Za-z\\^_{])(?=[A-Za-z°%Ωμ(])", formula):
        value, rest = formula[: start.start()], formula[start.start() :]
        unit = parse_unit(_bare(rest)) if value.strip() and len(rest) <= 40 else None
        if unit is not None and not re.search("[A-Za-z]", _COMMAND.sub("", value)):
            return Quantity(_as_list(value), unit)
    formula = _PRODUCT.sub(r"\1\\cdot ", _as_list(formula))
    # Two numbers side by side would be read as their product.
    if not formula or _WORD.search(_COMMAND.sub(" ", formula)) and not _only_environments(formula):
        return None
    return None if re.search(r"\d\s+[\d.]", formula) else Quantity(formula)


def _as_list(formula: str) -> str:
    return re.sub(r"\s*,?\s*\b(?:and|or)\b\s*", ", ", formula).strip()


def _only_environments(formula: str) -> bool:
    return not _WORD.search(_COMMAND.sub(" ", re.sub(r"\\(?:begin|end)\s*\{\w*\}", " ", formula)))


def _bare(text: str) -> str:
    text = text.strip()
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _unit(rest: str) -> Unit | None:
    unit = parse_unit(_bare(rest))
    # A word that is no unit needs a space: 2ab is a product, "2 apples" are apples.
    return unit or (counted_thing(rest) if rest[:1].isspace() else None)


def _with_unit(quantity: Quantity, unit: Unit | None) -> Quantity:
    return Quantity(quantity.value, unit, quantity.decimals, quantity.significant)


def _number(match: re.Match[str] | None) -> Quantity | None:
    if match is None:
        return None
    whole = (match["whole"] or "0").replace(",", "").replace(" ", "")
    point = match["point"] or match["only"] or ""
    if len(whole) + len(point) > 40:
        return None
    value = Fraction(f"{whole}.{point or '0'}e{match['exponent'] or 0}")
    digits = (whole + point).lstrip("0")
    places = 0 if match["exponent"] else len(point)
    return Quantity(-value if match["sign"] == "-" else value, None, places, len(digits))


def _ratio(match: re.Match[str] | None) -> Quantity | None:
    if match is None:
        return None
    top, bottom = int(match["top"] or match["above"]), int(match["bottom"] or match["below"])
    if not bottom:
        return None
    value = Fraction(top, bottom) + int(match["mixed"] or 0)
    return Quantity(-value if match["sign"] == "-" else value)
