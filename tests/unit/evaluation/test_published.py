"""lmms-eval's results read back, its command line, and the table beside the published figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_apo.evaluation.lmms_eval import _parser, lmms_command, main
from megatron_apo.evaluation.published import BENCHMARKS, benchmark_table, read_results, task_metrics

TASK = BENCHMARKS["mmstar"].task


def leave_results(directory: Path, results: dict[str, object], responses: list[str], stamp: str = "20260101") -> None:
    """What lmms-eval leaves: results by task, and the samples of ``TASK``."""
    folder = directory / "policy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stamp}_results.json").write_text(json.dumps({"results": results}))
    lines = [json.dumps({"doc_id": place, "filtered_resps": [text]}) + "\n" for place, text in enumerate(responses)]
    (folder / f"{stamp}_samples_{TASK}.jsonl").write_text("".join(lines))


def test_the_newest_results_are_read(tmp_path: Path) -> None:
    leave_results(tmp_path, {TASK: {"acc_score,none": 0.25}}, ["a"], "20250101_000000")
    leave_results(tmp_path, {TASK: {"acc_score,none": 0.5, "acc_score_stderr,none": 0.1, "alias": TASK}}, ["a", "b"])
    assert read_results(tmp_path, {TASK: "acc_score"}) == {TASK: 0.5}


@pytest.mark.parametrize(
    ("results", "responses", "message"),
    [
        ({TASK: {"format_score,none": 0.5}}, ["a"], "has no number acc_score, it has"),
        ({TASK: {"acc_score,none": "N/A"}}, ["a"], "has no number acc_score"),
        ({}, ["a"], "has no number acc_score"),
        (
            {TASK: {"acc_score,none": 0.5}},
            ["a", "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Connection error."],
            f"1 responses of {TASK} could not be had from the server and were counted as wrong",
        ),
    ],
)
def test_results_that_say_nothing_are_refused(
    results: dict[str, object], responses: list[str], message: str, tmp_path: Path
) -> None:
    leave_results(tmp_path, results, responses)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path, {TASK: "acc_score"})


def test_a_directory_without_results_or_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lmms-eval left no results there"):
        read_results(tmp_path, {TASK: "acc_score"})
    leave_results(tmp_path, {TASK: {"acc_score,none": 0.5}}, ["a"])
    (tmp_path / "policy" / f"20260101_samples_{TASK}.jsonl").unlink()
    with pytest.raises(ValueError, match="left no samples"):
        read_results(tmp_path, {TASK: "acc_score"})


def test_the_table_shows_what_was_published_beside() -> None:
    lines = [line.split("  ") for line in benchmark_table("mine", {"mmmu": 0.5, "mathvista": 0.6625}).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["MathVista", "MMMU"]
    assert cells[1] == ["mine", "66.2", "50.0"]
    assert ["View-R1-3B (APO), published", "66.2", "48.9"] in cells
    assert ["LMM-R1-3B, published", "63.2", "–"] in cells


def test_command_line() -> None:
    words = ["--server", "http://h:1/v1", "--output", "out", "--tasks-from", "mine", "--limit", "3"]
    options = _parser().parse_args([*words, "--concurrency", "4"])
    command = lmms_command(Path("env/bin/python"), "http://h:1/v1", "policy", ["a", "b"], options)
    assert command[:4] == ["env/bin/python", "-m", "lmms_eval", "--model"]
    assert "model_version=policy,base_url=http://h:1/v1,num_concurrent=4,max_retries=2" in command
    assert command[command.index("--tasks") + 1] == "a,b"
    assert command[-4:] == ["--include_path", "mine", "--limit", "3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--environment", "absent"], "--environment absent: no absent/bin/python; make it with make eval-env"),
        (["--benchmarks", "mmlu"], "--benchmarks mmlu: must be among mathvista, mathverse, mmstar, mmmu"),
        (["--benchmarks"], "--benchmarks: names none"),
        (["--task", "mine"], "--task mine: must be TASK=METRIC"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = tmp_path / "env" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").touch()
    given = ["--server", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "out")]
    assert main([*given, "--environment", str(tmp_path / "env"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_server_that_does_not_answer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = tmp_path / "env" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").touch()
    given = ["--server", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "out")]
    assert main([*given, "--environment", str(tmp_path / "env")]) == 2
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1:9/v1/models: no server answers there")


def test_every_benchmark_has_a_task_of_its_own() -> None:
    assert len(task_metrics(list(BENCHMARKS))) == len(BENCHMARKS)
