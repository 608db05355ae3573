"""``python -m megatron_apo.data.tasks``: what it writes, whoever draws it, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_apo.config import DataConfig
from megatron_apo.data.examiners import examine_here
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.scan import Scan
from megatron_apo.data.tasks.__main__ import main
from megatron_apo.data.tasks.files import split_of
from megatron_apo.data.tasks.sheet import _wrapped, varied
from megatron_apo.rewards.accuracy import check_row
from tests.unit.data.test_digits import all_bytes, rows_of

SMALL = ["--train", "3", "--validation", "1", "--test", "2", "--seed", "7"]
TASKS = {
    "sum": ["digits", "--question", "sum"],
    "comparison": ["digits", "--question", "comparison", "--level", "hard"],
    "largest": ["digits", "--question", "largest", "--level", "medium"],
    "counting": ["counting", "--shifted", "1", "--level", "easy"],
    "geometry": ["geometry", "--level", "medium"],
    "choices": ["geometry", "--choices"],
}


def run(name: str, directory: Path, *more: str) -> Path:
    task, *options = TASKS[name]
    assert main([task, str(directory), *SMALL, *options, *more]) == 0
    return directory


@pytest.mark.parametrize("name", TASKS)
def test_the_rows_are_read_twice_the_same_and_a_larger_task_begins_with_them(
    name: str, tmp_path: Path, tiny_policy: Path
) -> None:
    first = run(name, tmp_path / "a", "--demonstrations", "2")
    assert all_bytes(first) == all_bytes(run(name, tmp_path / "b", "--demonstrations", "2"))
    scan = Scan(PromptBuilder(tiny_policy, DataConfig()), examine_here, check_row)
    for split in json.loads((first / "task.json").read_text())["rows"]:
        found = scan.run([str(first / f"{split}.jsonl")])
        assert not found.skipped and len(found) == len(rows_of(first / f"{split}.jsonl"))
        for row, (picture,) in found.examined():
            assert row.demonstration.startswith("<think>")
            assert row.demonstration.endswith(f"</think><answer>{row.answer}</answer>") and row.category
            assert picture.width % 28 == 0 and picture.height % 28 == 0
    larger = run(name, tmp_path / "c", "--train", "5")
    longer = (larger / "train.jsonl").read_text().splitlines()
    assert longer[:3] == (first / "train.jsonl").read_text().splitlines()
    assert rows_of(first / "demonstrations.jsonl") == rows_of(first / "train.jsonl")[:2]


def test_several_processes_draw_the_same(tmp_path: Path) -> None:
    alone = run("geometry", tmp_path / "alone")
    assert all_bytes(run("geometry", tmp_path / "together", "--workers", "2")) == all_bytes(alone)


def test_the_quickstarts_rows_are_the_ones_its_numbers_were_measured_on(tmp_path: Path) -> None:
    """The SHA-256 of all rows and pictures, of the digits as they were when docs/quickstart.md was written."""
    from megatron_apo.data.tasks.digits import STYLES, write_digits_task

    size = {"train_rows": 40, "validation_rows": 8, "test_rows": 8, "seed": 0, "demonstration_rows": 16}
    quickstart = write_digits_task(tmp_path / "two", **size)
    assert (
        json.loads((quickstart / "task.json").read_text())["sha256"]
        == "3437fd6f9f90815445fc37aceca39344560c8fe4320bbb0082f483396a47acd5"
    )
    steps = write_digits_task(tmp_path / "steps", **size, digits=(2, 5), styles=STYLES)
    assert (
        json.loads((steps / "task.json").read_text())["sha256"]
        == "f5be7943ea235348424481ad920b107a1654db96df15b717a7ad945c0ca4b7c7"
    )


def test_what_cannot_be_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    for arguments, message in (
        (["counting", str(tmp_path / "x"), "--train", "0"], "error: --train=0: must be at least 1"),
        (["geometry", str(tmp_path / "x"), "--workers", "0"], "error: --workers=0: must be at least 1"),
        (["counting", str(tmp_path / "x"), *SMALL, "--shifted", "-1"], "error: --shifted=-1: must be 0 or more"),
        (
            ["digits", str(tmp_path / "x"), *SMALL, "--demonstrations", "5"],
            "error: --demonstrations=5: must be from 0 to --train=3",
        ),
        (["sheet", str(tmp_path / "x"), "out.png"], "does not exist; give a task's directory"),
        (["digits", str(taken / "x"), *SMALL], "Not a directory"),
        (["sheet", str(tmp_path / "x"), "out.png", "--width", "2"], "--width=2: must be at least 56"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "python -m megatron_apo.data.tasks counting" in capsys.readouterr().out
    for task in ("digits", "counting", "geometry", "sheet"):
        with pytest.raises(SystemExit):
            main([task, "--help"])
        assert re.findall(r"-m megatron_apo\.data\.tasks (\w+) +runs", capsys.readouterr().out) == [task]


def test_a_changed_byte_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run("geometry", tmp_path / "task")
    picture = next((directory / "images").iterdir())
    stored = bytearray(picture.read_bytes())
    stored[len(stored) // 2] ^= 1
    picture.write_bytes(stored)
    assert main(["geometry", str(directory), *SMALL, "--level", "medium"]) == 2
    assert "the files of this task were changed" in capsys.readouterr().err


def test_the_sheet_shows_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run("geometry", tmp_path / "task")
    sheet = tmp_path / "sheet.png"
    assert main(["sheet", str(directory), str(sheet), "--rows", "2", "--columns", "2", "--width", "168"]) == 0
    with Image.open(sheet) as opened:
        page = np.asarray(opened.convert("RGB")).astype(int)
    assert page.shape[1] == 2 * 168 + 3 * 14
    for place, row in enumerate(rows_of(directory / "test.jsonl")):
        with Image.open(directory / row["images"][0]) as picture:
            small = np.asarray(picture.convert("RGB").resize((168, 168), Image.Resampling.LANCZOS)).astype(int)
        left = 14 + place * (168 + 14)
        assert (page[16:180, left + 2 : left + 166] == small[2:166, 2:166]).all()
        assert page[14 + 168 + 4 :, left : left + 168].min() < 120  # the question
    assert main(["sheet", str(directory), str(tmp_path / "absent" / "sheet.png")]) == 2
    assert "absent/sheet.png: No such file or directory" in capsys.readouterr().err
    assert main(["sheet", str(directory), str(sheet), "--rows", "0"]) == 2
    assert "--rows=0" in capsys.readouterr().err


def test_a_sheet_writes_latex_out() -> None:
    assert _wrapped(r"$3\sqrt{22}$, $\frac{21}{5}\pi$, $\frac{\sqrt{2}}{2}$", 400) == [
        "3 root 22, (21/5)pi, (root 2/2)"
    ]


def test_a_sheet_shows_as_many_categories_as_there_are() -> None:
    rows = [{"category": category, "place": place} for place, category in enumerate("aaabbc")]
    assert [row["place"] for row in varied(rows, 3)] == [0, 3, 5]
    assert [row["place"] for row in varied(rows, 5)] == [0, 1, 3, 4, 5]


def test_splits_are_of_the_sizes_they_should_be_and_change_with_the_seed() -> None:
    splits = [split_of(str(problem), seed=0) for problem in range(4000)]
    assert 0.77 < splits.count("train") / 4000 < 0.83
    assert 0.08 < splits.count("validation") / 4000 < 0.12
    assert splits != [split_of(str(problem), seed=1) for problem in range(4000)]
