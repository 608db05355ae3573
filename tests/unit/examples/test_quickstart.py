"""What the quickstart does with a stage's directory that is already there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples.digits import quickstart, stages


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The warm start's directory of a quickstart whose commands are only noted down, in ``commands.txt``."""

    def note(line: list[str], **options: object) -> None:
        with (tmp_path / "commands.txt").open("a") as file:
            file.write(" ".join(line) + "\n")

    monkeypatch.setattr(stages.subprocess, "run", note)
    monkeypatch.setattr(quickstart, "make_task_and_policy", lambda directory, **rows: None)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--directory", str(tmp_path)])
    return tmp_path / "sft"


def commands(stage: Path) -> list[str]:
    noted = stage.parent / "commands.txt"
    return noted.read_text().splitlines() if noted.exists() else []


def test_another_persons_files_are_left_alone(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.mkdir()
    (stage / "thesis.tex").write_text("mine")
    assert quickstart.main() == 2
    assert f"error: {stage} was not written by a run; move it away" in capsys.readouterr().err
    assert (stage / "thesis.tex").read_text() == "mine" and commands(stage) == []


@pytest.mark.parametrize("files", [[], ["config.yaml", "metrics.jsonl"]])
def test_a_run_without_a_checkpoint_starts_again(stage: Path, files: list[str]) -> None:
    stage.mkdir()
    for name in files:
        (stage / name).touch()
    assert quickstart.main() == 0
    assert not stage.exists()
    first, second = commands(stage)
    assert " sft " in first and " train " in second and "--resume" not in first


def test_a_run_with_a_checkpoint_goes_on(stage: Path) -> None:
    checkpoint = stage / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "loop_state.json").touch()
    assert quickstart.main() == 0
    assert "--resume" in commands(stage)[0] and checkpoint.is_dir()


def test_a_finished_stage_is_not_done_again(stage: Path) -> None:
    (stage / "export").mkdir(parents=True)
    (stage / "export" / "config.json").touch()
    assert quickstart.main() == 0
    (only,) = commands(stage)
    assert " train " in only


def test_help_says_that_a_seed_needs_a_directory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--help"])
    with pytest.raises(SystemExit):
        quickstart.main()
    assert "each seed needs a directory of its own" in " ".join(capsys.readouterr().out.split())
