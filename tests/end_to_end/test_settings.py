"""Each setting of the objective reaches the loss: runs through the product's own ``train`` on recorded rollouts, every
update's loss held against the papers' formulas (tests/unit/objective/transcription.py), which read the preset's name
alone, at the log-probabilities that the policy had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_apo.config_loading import load_config
from megatron_apo.loop import _kl_coefficient
from megatron_apo.records import RolloutGroup
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import read_step, write_step
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts, replay_config
from tests.unit.objective.transcription import RECIPES, Answer, Recipe, coefficient, update_loss

CAP, STEPS, PROMPTS, GROUP = 32, 4, 6, 4
UPPER = 1.0  # of mismatch weights, the least allowed: about a sixth of the tokens here are beyond it


@dataclass(frozen=True)
class Run:
    """A preset, and settings beside it; ``recipe``: what the formulas read, if not the preset's."""

    preset: str
    updates: int = 1
    epochs: int = 1
    steps: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    def words(self) -> list[str]:
        settings = {"objective.name": self.preset, "run.steps": self.steps, "sampling.max_tokens": CAP}
        settings |= {"training.updates_per_rollout": self.updates, "training.epochs_per_rollout": self.epochs}
        return [f"--{name}={value}" for name, value in (settings | self.more).items()]


CLIPPED = replace(RECIPES["grpo"], low=0.05, high=0.4)
RUNS = {
    "apo": Run("apo", updates=2, epochs=2),
    "microbatches": Run("view_r1_exact"),
    "schedule": Run("grpo_d", steps=STEPS),
    "constant": Run("dr_grpo", epochs=2),
    "overlong": Run("dapo", updates=2, epochs=2),
    "reward": Run("rloo", steps=2),
    "whole responses": Run("gspo", updates=2),
    "clip": Run("grpo", epochs=3, more={"objective.clip_low": 0.05, "objective.clip_high": 0.4}, recipe=CLIPPED),
    "corrected": Run(
        "grpo",
        epochs=2,
        more={
            "objective.mismatch.correction": "truncate",
            "objective.mismatch.upper": UPPER,
        },
    ),
}


def alike(group: RolloutGroup) -> RolloutGroup:
    """The group with short wrong answers alone: no contrast."""
    rollouts = tuple(
        replace(one, text="<think>7</think>", token_ids=one.token_ids[:5], logprobs=one.logprobs[:5])
        for one in group.rollouts
    )
    return replace(group, rollouts=rollouts)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """All runs."""
    root = tmp_path_factory.mktemp("settings")
    policy = randomised_checkpoint(tiny_policy, root / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, root / "rollouts", steps=STEPS, prompts=PROMPTS, group=GROUP)
    *others, last = read_step(recorded, 1)
    write_step(recorded, 1, [*others, alike(last)], weight_version=0, sampling=SamplingSettings(GROUP, CAP, 1.0))
    config = replay_config(root, policy, digits_task, recorded, steps=STEPS)
    settings = yaml.safe_load(config.read_text()) | {"objective": {}}
    settings["optimizer"]["learning_rate"] = 1e-3
    config.write_text(yaml.safe_dump(settings))
    run_cases(
        [
            Case(
                "tests.end_to_end.watched:train", 1, str(root / name), {"config": str(config), "overrides": run.words()}
            )
            for name, run in RUNS.items()
        ]
    )
    return root


def metrics_of(root: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (root / name / "run" / "metrics.jsonl").read_text().splitlines()]


def corrections(name: str, old: Sequence[float], engine: Sequence[float]) -> tuple[float, ...]:
    if name != "corrected":
        return ()
    return tuple(min(math.exp(mine - drawn), UPPER) for mine, drawn in zip(old, engine, strict=True))


def answers_of(
    name: str, step: dict[str, Any], update: dict[str, Any], groups: Sequence[RolloutGroup]
) -> list[list[Answer]]:
    """The answers that an update trained on, by prompt, in the order of the recording."""
    found, places = [], {tuple(engine): place for place, engine in enumerate(step["engine"])}
    for group in groups:
        answers = []
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            place = places.get(rollout.logprobs, -1)  # random numbers: no two responses have the same
            if str(place) not in update["logprobs"]:
                continue
            answer = Answer(
                right=score.correct,
                well_formed=score.parts["format"] > 0,
                ended=True,
                kept=True,
                policy=tuple(update["logprobs"][str(place)]),
                old=tuple(step["old"][place]),
                reference=tuple(step["reference"][place]),
                corrections=corrections(name, step["old"][place], rollout.logprobs),
            )
            answers.append(answer)
        found.append(answers)
    return [answers for answers in found if answers]


@pytest.mark.parametrize("name", RUNS)
def test_every_update_is_what_the_settings_say(root: Path, name: str) -> None:
    """As many as they say, over the prompts they say, and the loss that the preset's paper says."""
    run = RUNS[name]
    recipe, steps = run.recipe or RECIPES[run.preset], json.loads((root / name / "steps.json").read_text())
    assert len(steps) == run.steps
    for number, step in enumerate(steps, start=1):
        groups = read_step(root / name / "run" / "rollouts", number)
        assert len(step["updates"]) == run.updates * run.epochs
        trained = []
        for update in step["updates"]:
            prompts = answers_of(name, step, update, groups)
            assert all(len(answers) == GROUP for answers in prompts)
            trained.append(len(prompts))
            times = coefficient(run.preset, number, run.steps)
            written = update_loss(prompts, recipe, cap=CAP, kl_coefficient=times)
            print(name, number, update["metrics"]["loss/total"], written.loss, written.size)
            assert update["metrics"]["loss/total"] == pytest.approx(written.loss, abs=1e-5 * written.size)
        contrast = sum(len({score.total for score in group.scores}) > 1 for group in groups)
        assert number > 1 or 2 <= contrast < PROMPTS
        assert sum(trained) == run.epochs * (contrast if recipe.only_contrast else PROMPTS)
        assert max(trained) - min(trained) <= 1


def test_the_coefficient_follows_the_schedule(root: Path) -> None:
    """Equation 3 with 4 steps, 0.3 of which are 1: down to 0.04 in the first, then up to 0.10 in the last."""
    steps = metrics_of(root, "schedule")
    assert [step["kl/coefficient"] for step in steps] == pytest.approx([0.04, 0.06, 0.08, 0.10])
    for step in steps:
        assert step["loss/kl"] == pytest.approx(step["kl/coefficient"] * step["kl/weighted"])
    assert steps[-1]["loss/kl"] > 1e-3, "the policy has not moved: the coefficient shows nothing"


def test_a_schedule_counts_steps_from_one() -> None:
    """w steps fall, the last of them at the minimum; the last of all is at the maximum; a longer run is another one."""

    def at(step: int, steps: int) -> float:
        return _kl_coefficient(load_config(None, ["--objective.name=grpo_d", f"--run.steps={steps}"]), step)

    expected = {1: 0.069, 29: 0.041, 30: 0.04, 31: 0.04 + 0.06 / 70, 60: 0.04 + 0.06 * 30 / 70, 100: 0.10}
    assert [at(step, 100) for step in expected] == pytest.approx(list(expected.values()))
    assert at(61, 200) == pytest.approx(0.04 + 0.06 / 140)
    assert at(1, 1) == pytest.approx(0.10)


def test_long_answers_are_punished(root: Path) -> None:
    """DAPO's part of each recorded answer, and in the reward."""
    (step,), punished = metrics_of(root, "overlong"), []
    for group in read_step(root / "overlong" / "run" / "rollouts", 1):
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            punished.append(max(-1.0, min(0.0, (CAP * 0.8 - len(rollout.token_ids)) / (CAP * 0.2))))
            assert score.total == pytest.approx(score.correct + score.parts["format"] / 2 + punished[-1])
    assert sum(part < 0 for part in punished) >= 2
    assert step["reward/overlong"] == pytest.approx(sum(punished) / len(punished))


def test_the_other_runs_show_what_they_are_for(root: Path) -> None:
    """Something is clipped, corrected, taken off the rewards, and no run of several updates is on policy throughout."""
    assert metrics_of(root, "clip")[0]["policy/clip_fraction"] > 0.1
    assert metrics_of(root, "whole responses")[0]["policy/clip_fraction"] > 0.1
    assert 0.1 < metrics_of(root, "corrected")[0]["mismatch/corrected_share"] < 0.9
    assert abs(metrics_of(root, "reward")[1]["kl/penalty"]) > 1e-3
    for name, run in RUNS.items():
        if run.updates * run.epochs > 1:
            assert metrics_of(root, name)[0]["policy/kl_old"] > 1e-4, name
