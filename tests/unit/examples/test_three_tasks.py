"""The tables of the quickstart's policy on all three tasks, and the commands behind them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from examples.digits import three_tasks
from megatron_apo.evaluation.scoring import evaluate_rows
from megatron_apo.observability.paired_page import Evaluated
from tests.unit.evaluation.rows import row


def evaluated(name: str, outcomes: list[str]) -> Evaluated:
    categories = ["easy: objects", "hard: side", "easy: kinds"]
    rows = [row(str(place), one, category=categories[place]) for place, one in enumerate(outcomes)]
    return Evaluated(name, {}, evaluate_rows(rows), rows)


@pytest.fixture
def found() -> dict[str, list[Evaluated]]:
    return {"counting": [evaluated("before", ["w", "w", "c"]), evaluated("after", ["c", "w", "c"])]}


def test_accuracy_before_and_after(found: dict[str, list[Evaluated]]) -> None:
    line = three_tasks.greedy_table(found).splitlines()[-1]
    # Every row's gold answer is 13: that one answer is right for all. One of three rows gained: McNemar says 1.
    assert line.startswith("| counting | 3 | 100.0 (`13`) | 33.3 (") and "| 66.7 (" in line and "| +33.3 (" in line
    assert line.endswith("| 1 |")


def test_levels_in_their_order(found: dict[str, list[Evaluated]]) -> None:
    assert three_tasks.level_table(found).splitlines()[2:] == [
        "| counting | easy | 2 | 100.0 | 50.0 | 100.0 |",
        "| counting | hard | 1 | 100.0 | 0.0 | 0.0 |",
    ]


def test_several_responses() -> None:
    one = evaluated("after", ["cw", "ww", "cc"])
    line = three_tasks.sampled_table({"counting": [one]}).splitlines()[-1]
    assert line.startswith("| counting | after | 3 | 50.0 (") and "| 66.7 (" in line  # pass@2 of 1, 0 and 1


def test_tasks_lie_apart_from_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task with anything else in its directory is refused the second time."""
    asked: list[tuple[str, ...]] = []

    def note(*words: object) -> None:
        asked.append(tuple(map(str, words)))

    def read(outputs: list[Path]) -> list[Any]:
        return [evaluated(output.name, ["cw" * 4]) for output in outputs]

    for model in three_tasks.MODELS.values():
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").touch()
    (tmp_path / "three_tasks").mkdir()
    monkeypatch.setattr(three_tasks, "command", note)
    monkeypatch.setattr(three_tasks, "read_evaluated", read)
    monkeypatch.setattr(sys, "argv", ["three_tasks.py", "--directory", str(tmp_path), "--rows", "3"])
    assert three_tasks.main() == 0
    drawn = [Path(words[2]) for words in asked if words[0] == "megatron_apo.data.tasks"]
    written = [Path(words[words.index("--output") + 1]) for words in asked if "--output" in words]
    assert len(drawn) == 2 and len(written) == 2 * 4 * 3  # two modes, four files of rows, two models and a comparison
    assert not [path for path in written for task in drawn if path.is_relative_to(task)]
    assert "| counting_shifted |" in (tmp_path / "three_tasks" / "tables.md").read_text()


def test_without_a_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["three_tasks.py", "--directory", str(tmp_path)])
    assert three_tasks.main() == 2
    assert "has no sft/export; run make quickstart first" in capsys.readouterr().err
