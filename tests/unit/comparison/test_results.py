"""What a comparison writes: the worst token by name, every token on disk, numbers that programs can read."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from megatron_apo.comparison.inputs import Scored
from megatron_apo.comparison.picture import write_picture
from megatron_apo.comparison.results import Comparison, table, write_summary, write_tokens
from megatron_apo.records import Prompt

PROMPT = Prompt("p", (1, 2), (1, 2), (), "?", "4")
TEXTS = {7: "seven", 8: '"\n', 9: "é"}
THIRD = 1 / 3


@pytest.fixture
def comparison() -> Comparison:
    samples = [Scored("a", PROMPT, (7, 8)), Scored("b", PROMPT, (9,))]
    scores = {
        "one": torch.tensor([-1.0, -2.0, -THIRD], dtype=torch.float64),
        "other": torch.tensor([-1.0, -2.5, -0.25]),
    }
    scores["other"] = scores["other"].double()
    return Comparison(samples, scores, TEXTS.__getitem__, {"model": "m"})


def test_table(comparison: Comparison) -> None:
    text = table(comparison, 0.1)
    assert "one - other            3     1.94e-01     5.00e-01     5.00e-01" in text
    assert "sample 'a', response token 1 (id 8, '\\\"\\n'): one -2.0000000, other -2.5000000" in text
    assert "one - other: 5.00e-01 exceeds the limit of 0.1" in text
    assert "every difference is within the limit of 0.5" in table(comparison, 0.5)
    assert "limit" not in table(comparison, None)


def test_tokens_read_back(comparison: Comparison, tmp_path: Path) -> None:
    write_tokens(comparison, tmp_path / "tokens.csv")
    with (tmp_path / "tokens.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sample"], row["position"], row["token_id"], row["token"]) for row in rows] == [
        ("a", "0", "7", "seven"),
        ("a", "1", "8", '\\"\\n'),
        ("b", "0", "9", "é"),
    ]
    assert float(rows[2]["one"]) == -THIRD
    assert len((tmp_path / "tokens.csv").read_text().splitlines()) == 4


def test_summary(comparison: Comparison, tmp_path: Path) -> None:
    comparison.scores["other"][0] = math.nan
    write_summary(comparison, tmp_path / "summary.json", 1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == "m" and summary["samples"] == 2 and summary["limit"] == 1
    (pair,) = summary["pairs"]
    assert pair["maximum"] is None and pair["within_limit"] is False and pair["tokens"] == 3
    assert pair["worst"] == {"sample": "a", "position": 0, "token_id": 7, "one": -1.0, "other": None}


@pytest.mark.parametrize("kind", ["different", "equal", "strange"])
def test_a_picture_of_anything(comparison: Comparison, tmp_path: Path, kind: str) -> None:
    if kind == "equal":
        comparison.scores["other"] = comparison.scores["one"]
    if kind == "strange":
        comparison.scores["other"][1] = -math.inf
    write_picture(comparison, tmp_path / "picture.png", limit=None if kind == "equal" else 1e-4)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
