"""Recorded rollouts come back step by step, as they were sampled and to be graded again."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apo.records import Prompt, Rollout, RolloutGroup, Score
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import step_path, write_step
from megatron_apo.rollout.replay import ReplayRollouts

SAMPLING = SamplingSettings(group_size=2, max_tokens=8, temperature=0.9)


def group(step: int) -> RolloutGroup:
    prompt = Prompt(f"p{step}", (1, 2), (1, 2), (), "?", "7")
    rollouts = tuple(Rollout(prompt.id, i, (step, i), (-0.1 / 3.0, -2.5), "x", "stop", step - 1) for i in range(2))
    return RolloutGroup(prompt, rollouts, (Score(1.0, {"accuracy": 1.0}, "correct"),) * 2)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        write_step(tmp_path, step, [group(step)], weight_version=step - 1, sampling=SAMPLING)
    return tmp_path


def test_the_recorded_prompts_and_tokens_without_their_scores(recorded: Path) -> None:
    replay = ReplayRollouts(recorded)
    asked = [Prompt("other", (9,), (9,), (), "?", "8")]
    for step in (2, 1, 3):
        (found,) = replay.rollouts(step, asked)
        expected = group(step)
        assert (found.prompt, found.rollouts, found.scores) == (expected.prompt, expected.rollouts, ())


def test_a_step_that_was_not_recorded(recorded: Path) -> None:
    with pytest.raises(ValueError, match=r"step 4 is not recorded \(there are 1 to 3\); lower run\.steps"):
        ReplayRollouts(recorded).rollouts(4, [])


def test_a_directory_without_rollouts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no step_\*\.jsonl there; give a run's rollouts/ directory"):
        ReplayRollouts(tmp_path)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        ReplayRollouts(tmp_path / "nowhere")


def test_a_step_cut_short_is_found_before_it_is_trained_on(recorded: Path) -> None:
    path = step_path(recorded, 2)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="cut short"):
        ReplayRollouts(recorded).rollouts(2, [])
