"""Responses as lines of a file, there and back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from megatron_apo.evaluation.responses import ImageFile, parse_lines, response_lines
from tests.unit.evaluation.rows import row

ODD = "<answer>\u2028x\x00 é\n</answer>"


def test_lines_read_back_equal() -> None:
    asked = dataclasses.replace(
        row("a", "cwe", ["<answer>1</answer>", ODD, "no"]), images=(ImageFile("/x/1.png", "ab"),)
    )
    rows = [asked, row("b", "cn", cut=True, category="sum"), row("c", "w")]
    lines = [line for one in rows for line in response_lines(one)]
    assert len(lines) == 6 and all(line.count("\n") == 1 for line in lines)
    assert parse_lines(lines) == rows
    assert rows[0].responses[1].answer is not None and rows[0].responses[2].answer is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "right"}, "line 2: .*'right' is none of correct, wrong, no_answer, grader_error"),
        ({"total": float("nan")}, "line 2: .*not a finite number"),
        ({"text": 3}, "line 2: .*3 is no text"),
        ({"parts": None}, "line 2: not a response"),
        ({"gold": "14"}, "line 2: row 'a' asks something else"),
    ],
)
def test_damaged_lines_are_named(change: dict[str, object], message: str) -> None:
    first, second = response_lines(row("a", "cw"))
    with pytest.raises(ValueError, match=message):
        parse_lines([first, json.dumps({**json.loads(second), **change})])


def test_a_row_in_two_places_is_refused() -> None:
    lines = [line for name in ("a", "b", "a") for line in response_lines(row(name, "c"))]
    with pytest.raises(ValueError, match="row 'a' stands in two places"):
        parse_lines(lines)
