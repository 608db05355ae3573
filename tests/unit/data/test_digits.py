"""The digits task: disjoint handwriting, rows that say what their images show, the same bytes from the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_apo.data.tasks import digits


def write(directory: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"train_rows": 6, "validation_rows": 2, "test_rows": 3, "seed": 5, **changes}
    return digits.write_digits_task(directory, **arguments)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_splits_share_no_scan_and_cover_all() -> None:
    splits = digits.split_scans(0)
    train, validation, test = (set(splits[name]) for name in digits.SPLITS)
    assert not train & validation and not train & test and not validation & test
    assert train | validation | test == set(range(1797))


def test_splits_are_stratified() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    for digit in range(10):
        total = int((labels == digit).sum())
        for name in ("validation", "test"):
            assert sum(labels[scan] == digit for scan in digits.split_scans(3)[name]) == round(total / 10)


def test_another_seed_splits_differently() -> None:
    assert digits.split_scans(0)["test"] != digits.split_scans(1)["test"]


@pytest.mark.parametrize("split", digits.SPLITS)
def test_rows_use_scans_of_their_split_and_digits_do_not_overlap(split: str) -> None:
    allowed = set(digits.split_scans(7)[split])
    corners, counts = set(), Counter()
    for row in digits.iterate_rows(split, 200, seed=7, digits=(2, 5)):
        assert set(row.scans) <= allowed
        ends = [(0, 0), *((x + digits.DIGIT_SIZE, y + digits.DIGIT_SIZE) for x, y in row.corners)]
        for (end, _), (left, top) in zip(ends[:-1], row.corners, strict=True):
            assert left >= end and top >= 0
        assert ends[-1][0] <= digits.WIDTH_OF_DIGIT * len(row.scans)
        assert max(bottom for _, bottom in ends) <= digits.IMAGE_HEIGHT
        corners.add(row.corners)
        counts[len(row.scans)] += 1
    assert len(corners) > 100  # the placement is random
    assert set(counts) == {2, 3, 4, 5} and min(counts.values()) > 30


def test_answer_and_demonstration_by_hand() -> None:
    row = digits.DigitRow(id="x", scans=(0, 1), digits=(5, 8), corners=((0, 0), (28, 0)))
    assert row.answer == "13" and row.question == "What is the sum of the two digits?"
    assert row.demonstration() == "<think>5+8=13</think><answer>13</answer>"
    assert digits.as_json(row)["category"] == "two-digit sum"


def test_more_digits_are_added_step_by_step() -> None:
    corners = ((0, 0), (28, 0), (56, 0), (84, 0))
    row = digits.DigitRow(id="x", scans=(0, 1, 2, 3), digits=(3, 5, 2, 0), corners=corners)
    assert row.question == "What is the sum of the four digits?"
    assert row.demonstration() == "<think>3+5=8, 8+2=10, 10+0=10</think><answer>10</answer>"
    assert digits.as_json(row)["category"] == "four digits"


def test_a_demonstration_in_each_style_by_hand() -> None:
    corners = ((0, 0), (28, 0), (56, 0))
    row = digits.DigitRow(id="x", scans=(0, 1, 2), digits=(3, 5, 9), corners=corners)
    assert row.demonstration("straight") == "<think>17</think><answer>17</answer>"
    assert row.demonstration("twice") == "<think>3+5=8, 8+9=17; 9+5=14, 14+3=17</think><answer>17</answer>"


def test_styles_change_demonstrations_alone_and_each_occurs(tmp_path: Path) -> None:
    write(tmp_path / "plain", digits=(2, 5), train_rows=60)
    write(tmp_path / "styles", digits=(2, 5), train_rows=60, styles=digits.STYLES)
    seen = Counter()
    for row, styled in zip(*(rows_of(tmp_path / name / "train.jsonl") for name in ("plain", "styles")), strict=True):
        thought = styled["demonstration"].removeprefix("<think>").split("</think>")[0]
        seen["twice" if ";" in thought else "steps" if "=" in thought else "straight"] += 1
        assert {**row, "demonstration": ""} == {**styled, "demonstration": ""}
    assert set(seen) == set(digits.STYLES) and min(seen.values()) >= 10
    with pytest.raises(ValueError, match=r"styles is \['steps', 'straight', 'twice'\]"):
        write(tmp_path / "styles", digits=(2, 5), train_rows=60)


def test_a_task_from_before_styles_is_the_same_task(tmp_path: Path) -> None:
    write(tmp_path / "task")
    file = tmp_path / "task" / "task.json"
    description = json.loads(file.read_text())
    del description["styles"]
    file.write_text(json.dumps(description))
    write(tmp_path / "task")


@pytest.mark.parametrize("styles", [(), ("steps", "aloud")])
def test_unknown_styles_are_refused(tmp_path: Path, styles: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must be some of steps, straight, twice"):
        write(tmp_path / "task", styles=styles)
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("count", [(2, 2), (3, 5), (5, 5)])
def test_digits_are_those_of_the_scans_and_drawn_where_the_row_says(count: tuple[int, int]) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    row = digits.draw_row("train", 11, seed=2, digits=count)
    assert count[0] <= len(row.digits) <= count[1]
    assert row.digits == tuple(bunch.target[list(row.scans)])
    image = np.asarray(digits.render(row)).astype(int)
    assert image.shape == (digits.IMAGE_HEIGHT, digits.WIDTH_OF_DIGIT * len(row.digits))
    inside = np.zeros_like(image, dtype=bool)
    for scan, (x, y) in zip(row.scans, row.corners, strict=True):
        inside[y : y + digits.DIGIT_SIZE, x : x + digits.DIGIT_SIZE] = True
        # The mean grey of an enlarged scan is that of the scan: paper + ink share * (ink - paper), edges aside.
        box = image[y : y + digits.DIGIT_SIZE, x : x + digits.DIGIT_SIZE]
        expected = digits.PAPER + bunch.images[scan].mean() / 16 * (digits.INK - digits.PAPER)
        assert box.mean() == pytest.approx(expected, abs=4)
    assert (image[~inside] == digits.PAPER).all()


def test_rows_are_independent_of_how_many_are_made() -> None:
    assert list(digits.iterate_rows("test", 5, seed=1))[4] == digits.draw_row("test", 4, seed=1)


def test_files_hold_what_a_reader_needs(tmp_path: Path) -> None:
    directory = write(tmp_path / "task")
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        rows = rows_of(directory / f"{split}.jsonl")
        assert len(rows) == count
        for number, row in enumerate(rows):
            assert set(row) == {"id", "images", "question", "answer", "demonstration", "category"}
            assert row["answer"] == digits.draw_row(split, number, seed=5).answer
            with Image.open(directory / row["images"][0]) as image:
                assert image.size == (2 * digits.WIDTH_OF_DIGIT, digits.IMAGE_HEIGHT)


def test_demonstrations_are_the_first_training_rows(tmp_path: Path) -> None:
    directory = write(tmp_path / "task", demonstration_rows=4)
    train = (directory / "train.jsonl").read_text().splitlines()
    assert (directory / "demonstrations.jsonl").read_text().splitlines() == train[:4]
    assert not (write(tmp_path / "without") / "demonstrations.jsonl").exists()
    with pytest.raises(ValueError, match="demonstration_rows=7"):
        write(tmp_path / "other", demonstration_rows=7)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first, second = all_bytes(write(tmp_path / "a")), all_bytes(write(tmp_path / "b"))
    assert first == second
    assert all_bytes(write(tmp_path / "c", seed=6))["test.jsonl"] != first["test.jsonl"]


def test_the_same_task_is_left_as_it_is(tmp_path: Path) -> None:
    directory = write(tmp_path / "task")
    before = (directory / "train.jsonl").stat().st_mtime_ns
    assert write(tmp_path / "task") == directory
    assert (directory / "train.jsonl").stat().st_mtime_ns == before


def test_something_else_is_not_overwritten(tmp_path: Path) -> None:
    directory = write(tmp_path / "task")
    with pytest.raises(ValueError, match="seed is 5, not 6"):
        write(directory, seed=6)
    image = next((directory / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(ValueError, match="were changed"):
        write(directory)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a digits task"):
        write(other)
    assert all_bytes(other) == {"thesis.txt": b"mine"}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "task.json").write_text("{")
    with pytest.raises(ValueError, match="not readable"):
        write(broken)


def test_rows_below_one_and_unknown_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test_rows=0"):
        write(tmp_path / "task", test_rows=0)
    assert not (tmp_path / "task").exists()
    with pytest.raises(ValueError, match="split='dev'"):
        digits.draw_row("dev", 0, seed=0)


@pytest.mark.parametrize("count", [(1, 2), (3, 2), (2, 6)])
def test_impossible_numbers_of_digits_are_refused(tmp_path: Path, count: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"digits=.* from 2 to 5"):
        write(tmp_path / "task", digits=count)
    assert not (tmp_path / "task").exists()
