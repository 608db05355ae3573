"""Comparisons of handwritten numbers: what is shown is what is compared, level by level."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from megatron_apo.data.tasks import digit_comparisons as comparisons
from megatron_apo.data.tasks import digits
from megatron_apo.rewards.accuracy import check_gold
from tests.unit.data.test_digits import all_bytes, rows_of


@cache
def labels() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().target


def shown(row: comparisons.ComparisonRow) -> list[int]:
    """The numbers as a reader finds them: digits from left to right, a new number after a gap."""
    numbers: list[str] = []
    end = -100
    for scan, (left, _) in zip(row.scans, row.corners, strict=True):
        if left - end > digits.WIDTH_OF_DIGIT - digits.DIGIT_SIZE + 8:
            numbers.append("")
        numbers[-1] += str(labels()[scan])
        end = left + digits.DIGIT_SIZE
    return [int(number) for number in numbers]


@pytest.mark.parametrize("level", comparisons.LEVELS)
@pytest.mark.parametrize("kind", comparisons.NUMBERS)
def test_the_answer_is_that_of_the_numbers_shown(kind: str, level: str) -> None:
    answers = Counter()
    allowed = set(digits.split_scans(4)["test"])
    for number in range(150):
        row = comparisons.draw_comparison("test", number, seed=4, kind=kind, level=level)
        assert set(row.scans) <= allowed
        numbers = shown(row)
        assert tuple(numbers) == row.numbers and numbers.count(max(numbers)) == 1
        if kind == "comparison":
            assert row.answer == ("A" if numbers[0] > numbers[1] else "B")
        else:
            assert row.answer == str(max(numbers))
        answers[row.answer] += 1
        check_gold(row.answer)
        *_, second, largest = sorted(numbers)
        assert {"easy": largest - second >= 3 and largest < 10, "medium": largest < 10, "hard": min(numbers) >= 10}[
            level
        ]
        for sign in re.findall(r"(\d+)([<>=])(\d+)", row.demonstration):
            one, other = int(sign[0]), int(sign[2])
            assert {"<": one < other, ">": one > other, "=": one == other}[sign[1]]
        assert row.demonstration.endswith(f"</think><answer>{row.answer}</answer>")
    if kind == "comparison":
        assert min(answers["A"], answers["B"]) > 50


def test_the_picture_holds_the_scans_and_a_gap_between_numbers() -> None:
    row = comparisons.draw_comparison("train", 0, seed=0, kind="largest", level="hard")
    picture = np.asarray(digits.picture_of(row.scans, row.corners, width=row.width))
    assert picture.shape == (28, 8 * 28)
    for gap in (2, 5):
        assert (picture[:, gap * 28 : (gap + 1) * 28] == digits.PAPER).all()
    for number in (0, 1, 3, 4, 6, 7):
        assert picture[:, number * 28 : (number + 1) * 28].max() > 200


def write(directory: Path, **changes: object) -> Path:
    arguments = {
        "kind": "comparison",
        "level": "easy",
        "train_rows": 4,
        "validation_rows": 1,
        "test_rows": 1,
        "seed": 0,
    }
    return comparisons.write_comparison_task(directory, **{**arguments, **changes})


def test_files_and_refusals(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", demonstration_rows=2), write(tmp_path / "b", demonstration_rows=2)
    assert all_bytes(first) == all_bytes(second)
    assert rows_of(first / "demonstrations.jsonl") == rows_of(first / "train.jsonl")[:2]
    assert rows_of(first / "train.jsonl")[0]["category"] == "comparison, easy"
    with pytest.raises(ValueError, match="question is 'comparison', not 'largest'"):
        write(tmp_path / "a", kind="largest", demonstration_rows=2)
    for name, value in (("kind", "smaller"), ("level", "easier")):
        with pytest.raises(ValueError, match=f"{name}='{value}': must be one of"):
            write(tmp_path / "c", **{name: value})
    assert not (tmp_path / "c").exists()
