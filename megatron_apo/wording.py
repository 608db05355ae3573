"""Words of messages: numbers of things, and what a value is."""

from __future__ import annotations

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
