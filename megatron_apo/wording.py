"""Words of messages: numbers of things, and what a value is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    list: "a list",
    tuple: "a list",
}


def counted(number: int, one: str, many: str) -> str:
    """ "1 row repeats", "2,000 rows repeat"."""
    return f"{number:,} {one if number == 1 else many}"


def kind(value: Any, *, mapping: str = "an object", nothing: str = "null") -> str:
    """What a value read from a file is, in words; ``mapping``, ``nothing``: what these are called there."""
    if value is None:
        return nothing
    return mapping if isinstance(value, dict) else _KINDS.get(type(value), type(value).__name__)


def nearest(word: str, known: Sequence[str]) -> str:
    """What to say behind an unknown word: "; did you mean …?", or nothing where none is like it."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""
