"""Fields of published records, checked: a record of another form is named, never guessed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(record: Mapping[str, Any], key: str) -> str:
    """Text that is not empty, stripped; ValueError otherwise."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}={value!r:.80}: text was expected; {_keys(record)}")
    return value.strip()


def text_or_number(record: Mapping[str, Any], key: str) -> str:
    """``text``, or a whole number in digits; ValueError otherwise."""
    value = record.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(record, key)


def picture(record: Mapping[str, Any], key: str) -> str | bytes:
    """A path, or a picture's bytes.

    A Hugging Face ``Image`` column that is read without decoding is {"bytes": …, "path": …}: its bytes, and only
    without them its path (the name of the file that it was made from). ValueError for anything else.
    """
    value = record.get(key)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str) and value:
        return value
    raise ValueError(
        f"{key}={type(value).__name__}: a path, bytes, or a record of bytes and path was expected; {_keys(record)}"
    )


def answer_of(solution: str) -> str:
    """What stands in ``<answer> … </answer>``; ValueError unless there is exactly one."""
    answer, closed, _ = solution.partition("<answer>")[2].partition("</answer>")
    if not closed or not answer.strip() or solution.count("<answer>") > 1 or solution.count("</answer>") > 1:
        raise ValueError(f"solution={solution[:80]!r}: one <answer>…</answer> was expected")
    return answer.strip()


def without_placeholder(question: str) -> str:
    """The question without ``<image>``: our prompts place the pictures themselves."""
    return question.replace("<image>", "").strip()


def _keys(record: Mapping[str, Any]) -> str:
    return f"the record's keys are {', '.join(map(str, record)):.400}"
