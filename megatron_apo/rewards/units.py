"""Units of measured answers: a small table, enough for the figures and exercises that vision data sets ask about.

A unit is a factor of base units and their powers, so that units of one dimension convert exactly (5 cm, 50 mm) and
others contradict each other (5 cm, 5 kg). A word that the table does not know is a dimension of its own: 14 apples are
not 14 oranges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# Names of a unit: (factor, base units with their powers). Plurals need no entry of their own.
_TABLE: dict[str, tuple[str, str]] = {
    "nm": ("1e-9", "m"),
    "μm um micrometer micrometre": ("1e-6", "m"),
    "mm millimeter millimetre": ("1e-3", "m"),
    "cm centimeter centimetre": ("1e-2", "m"),
    "dm decimeter decimetre": ("1e-1", "m"),
    "m meter metre": ("1", "m"),
    "km kilometer kilometre": ("1000", "m"),
    "in inch inches": ("0.0254", "m"),
    "ft foot feet": ("0.3048", "m"),
    "yd yard": ("0.9144", "m"),
    "mi mile": ("1609.344", "m"),
    "nmi": ("1852", "m"),
    "ha hectare": ("10000", "m2"),
    "acre": ("4046.8564224", "m2"),
    "ml mL milliliter millilitre": ("1e-6", "m3"),
    "cc": ("1e-6", "m3"),
    "l L liter litre": ("1e-3", "m3"),
    "mg milligram": ("1e-6", "kg"),
    "g gram": ("1e-3", "kg"),
    "kg kilogram": ("1", "kg"),
    "t ton tonne": ("1000", "kg"),
    "lb pound": ("0.45359237", "kg"),
    "oz ounce": ("0.028349523125", "kg"),
    "ms millisecond": ("1e-3", "s"),
    "s sec second": ("1", "s"),
    "min minute": ("60", "s"),
    "h hr hour": ("3600", "s"),
    "day": ("86400", "s"),
    "week": ("604800", "s"),
    "month": ("1", "month"),
    "yr year": ("12", "month"),
    "mph": ("0.44704", "m s-1"),
    "kph kmh": ("1000/3600", "m s-1"),
    "Hz hertz": ("1", "s-1"),
    "N newton": ("1", "kg m s-2"),
    "kN kilonewton": ("1000", "kg m s-2"),
    "Pa pascal": ("1", "kg m-1 s-2"),
    "kpa kilopascal": ("1000", "kg m-1 s-2"),
    "J joule": ("1", "kg m2 s-2"),
    "kJ kilojoule": ("1000", "kg m2 s-2"),
    "W watt": ("1", "kg m2 s-3"),
    "kW kilowatt": ("1000", "kg m2 s-3"),
    "kwh": ("3600000", "kg m2 s-2"),
    "A amp ampere": ("1", "A"),
    "mA milliampere": ("1e-3", "A"),
    "V volt": ("1", "kg m2 s-3 A-1"),
    "ω Ω ohm": ("1", "kg m2 s-3 A-2"),
    "mol mole": ("1", "mol"),
    "° deg degree": ("1", "degree"),
    "rad radian": ("1", "radian"),
    "°C celsius": ("1", "celsius"),
    "°F fahrenheit": ("1", "fahrenheit"),
    "K kelvin": ("1", "kelvin"),
    "% percent percentage pct": ("1/100", ""),
    "$ dollar usd": ("1", "dollar"),
    "€ euro eur": ("1", "euro"),
    "£ gbp": ("1", "sterling"),
    "¥ yuan rmb yen": ("1", "yuan"),
}

_SIZES = frozenset({"long", "tall", "wide", "high", "deep", "old", "away"})  # "5 cm long" is 5 cm
# Words after a number that say more than what is counted.
_STOP_WORDS = """
a an and are at away be but by can cannot did do does except false greater half hardly if in is isn it just
least less maybe minus more most n negative neither never no nor not of off only or over perhaps plus probably
s than that the then these this those to too true under unless was were wrong above below between times
divided equals equal sin cos tan cot sec csc log ln exp sqrt pi mod max min lim e i x y z
"""
_NO_UNITS = frozenset(_STOP_WORDS.split())
_TWO_WORDS = re.compile(
    r"\bnautical\s+miles?\b", re.IGNORECASE
)  # the only unit whose name is two words, and no product
_ALONE = frozenset({"°", "%"})  # never part of another unit, nor written twice
_PART = re.compile(
    r"(?P<word>°\s?[CF]\b|[A-Za-zμµΩω]+|[°%$€£¥])\s*(?:\^\s*\{?\s*(?P<power>[-−]?\d)\s*\}?)?|(?P<join>[/*·]|\\cdot|\s+)"
)


@dataclass(frozen=True)
class Unit:
    """``factor`` base units; ``dimensions``: (base unit, its power), sorted; () is a plain number (percent)."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


def _base(units: str) -> dict[str, int]:
    found = re.findall(r"([A-Za-z]+)(-?\d)?", units)
    return {name: int(power or 1) for name, power in found}


_UNITS = {name: (Fraction(factor), _base(base)) for names, (factor, base) in _TABLE.items() for name in names.split()}


def parse_unit(text: str) -> Unit | None:
    """The unit that ``text`` names ("cm", "km/h", "m s^{-2}", "square feet"), or None for anything else."""
    factor, powers = Fraction(1), dict[str, int]()
    position, sign, next_power, last = 0, 1, 1, ""
    parts: list[str] = []
    text = _TWO_WORDS.sub("nmi", text.strip())
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            return None
        position = part.end()
        if part["join"]:
            sign = -1 if part["join"] == "/" else sign
            continue
        word = re.sub(r"\s", "", part["word"])
        if word == "per":
            sign = -1
        elif word in ("square", "sq", "cubic", "cu"):
            next_power = 2 if word in ("square", "sq") else 3
        elif word in ("squared", "cubed"):
            if not last:
                return None
            factor, powers = _times(factor, powers, last, (1 if word == "squared" else 2))
        elif not (word in _SIZES and last):
            last = _known(word)
            if not last or (parts and {*parts, last} & _ALONE):
                return None
            parts.append(last)
            power = int((part["power"] or "1").replace("−", "-"))
            factor, powers = _times(factor, powers, last, sign * next_power * power)
            sign, next_power = 1, 1
    return Unit(factor, tuple(sorted((name, power) for name, power in powers.items() if power))) if last else None


def counted_thing(text: str) -> Unit | None:
    """The dimension of what is counted ("apples", "red apples"), None unless it is one to three plain words."""
    words = re.findall(r"[A-Za-z]+", text)
    if not 1 <= len(words) <= 3 or not re.fullmatch(r"[A-Za-z\s]+", text.strip()):
        return None
    if len(words[-1]) < 3 or any(word.lower() in _NO_UNITS for word in words):
        return None
    return Unit(Fraction(1), ((f"of {_singular(words[-1].lower())}", 1),))


def _known(word: str) -> str:
    """The table's name of a unit as it may be written: any case, singular or plural; empty when it has none."""
    word = word.replace("µ", "μ")
    # Symbols mean other things in capitals: 5 k and 5 K, mg and Mg; words do not.
    candidates = (word,) if len(word) <= 2 else (word, word.lower(), _singular(word.lower()))
    return next((candidate for candidate in candidates if candidate in _UNITS), "")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _times(factor: Fraction, powers: dict[str, int], name: str, power: int) -> tuple[Fraction, dict[str, int]]:
    own, base = _UNITS[name]
    added = {unit: powers.get(unit, 0) + exponent * power for unit, exponent in base.items()}
    return factor * own**power, {**powers, **added}
