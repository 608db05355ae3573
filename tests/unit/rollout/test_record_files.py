"""Rollouts on disk: what is written reads back to the last bit, and a damaged file is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apo.records import Prompt, PromptImage, Rollout, RolloutGroup, Score
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import read_header, read_step, recorded_steps, step_path, write_step

SAMPLING = SamplingSettings(group_size=2, max_tokens=8, temperature=0.7, seed=11)


def group(name: str) -> RolloutGroup:
    prompt = Prompt(
        id=name,
        token_ids=(1, 9, 9, 2),
        collapsed_ids=(1, 9, 2),
        images=(PromptImage(path="a b.png", sha256="00ff", grid_thw=(2, 2, 4), seconds_per_grid=0.1),),
        question="How\u2028many\n?",
        gold="3",
        choices=("a", "b"),
    )
    rollouts = (
        Rollout(name, 0, (4, 5), (-0.1, -1 / 3), "3\u2028\x85", "stop", 7),
        Rollout(name, 1, (6,), (-5e-324,), "é", "length", 7),
    )
    return RolloutGroup(prompt, rollouts, (Score(1.5, {"accuracy": 1.0}, "correct"), Score(0.1 + 0.2, {}, "no_answer")))


def test_a_step_reads_back_exactly(tmp_path: Path) -> None:
    groups = [group("p1"), group("p2")]
    path = write_step(tmp_path / "rollouts", 3, groups, weight_version=7, sampling=SAMPLING)
    assert path.name == "step_000003.jsonl"
    assert read_step(tmp_path / "rollouts", 3) == groups  # -1/3, 0.1 + 0.2 and the smallest double included
    header = read_header(tmp_path / "rollouts", 3)
    assert (header.step, header.weight_version, header.sampling, header.groups) == (3, 7, SAMPLING, 2)
    assert len(path.read_text(encoding="utf-8").split("\n")) == 4  # header, two groups, nothing after the last newline


def test_steps_are_found_and_nothing_partial_is_left(tmp_path: Path) -> None:
    for step in (12, 2):
        write_step(tmp_path, step, [group("p")], weight_version=1, sampling=SAMPLING)
    (tmp_path / "notes.txt").write_text("x")
    assert recorded_steps(tmp_path) == [2, 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step_000002.jsonl", "step_000012.jsonl"]
    with pytest.raises(ValueError, match=r"rollout.replay=.*no such directory"):
        recorded_steps(tmp_path / "elsewhere")


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    broken = group("p")
    shaping = [[{"advantage": math.nan}]]
    write_step(tmp_path, 1, [group("kept")], weight_version=0, sampling=SAMPLING)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_step(tmp_path, 1, [broken], weight_version=0, sampling=SAMPLING, shaping=shaping)
    assert read_step(tmp_path, 1) == [group("kept")]  # the whole file of before is still there
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.jsonl"]


def test_a_log_probability_that_is_not_finite_is_kept_as_nan(tmp_path: Path) -> None:
    """A step with one is skipped and goes into the log all the same."""
    broken = Rollout("p", 0, (4, 5, 6), (math.nan, -math.inf, -0.5), "", "stop", 0)
    path = write_step(tmp_path, 1, [RolloutGroup(group("p").prompt, (broken,))], weight_version=0, sampling=SAMPLING)
    assert "[null, null, -0.5]" in path.read_text()
    found = read_step(tmp_path, 1)[0].rollouts[0]
    assert [math.isnan(value) for value in found.logprobs] == [True, True, False]
    assert replace(found, logprobs=()) == replace(broken, logprobs=())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_step(tmp_path, 1, [group("p1"), group("p2")], weight_version=0, sampling=SAMPLING)
    whole = path.read_text(encoding="utf-8")

    path.write_text(whole[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match="cut short"):
        read_step(tmp_path, 1)

    path.write_text("\n".join(whole.split("\n")[:2]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds 1 of 2 groups"):
        read_step(tmp_path, 1)

    path.write_text(whole.replace('"record_version": 1', '"record_version": 99'), encoding="utf-8")
    with pytest.raises(ValueError, match="record version 99, this program reads 1"):
        read_step(tmp_path, 1)

    lines = whole.split("\n")
    damaged = json.loads(lines[1])
    del damaged["prompt"]["gold"]
    path.write_text("\n".join([lines[0], json.dumps(damaged), *lines[2:]]), encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not a record of rollouts.*gold"):
        read_step(tmp_path, 1)

    step_path(tmp_path, 5).write_text(whole, encoding="utf-8")
    with pytest.raises(ValueError, match="its header says step 1"):
        read_step(tmp_path, 5)
    with pytest.raises(ValueError, match="cannot be read"):
        read_step(tmp_path, 6)
