"""Which prompts a step draws, with which seeds, and which groups it trains on; an engine's answers are made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from megatron_apo.config import Config, ObjectiveConfig, RolloutConfig, RunConfig, SamplingConfig
from megatron_apo.config_loading import load_config
from megatron_apo.data.order import PromptStream
from megatron_apo.dynamic_sampling import mark_dropped, refill_metrics, refill_size
from megatron_apo.loop import Controller, LiveRollouts, draw
from megatron_apo.objective.samples import have_contrast, shape_step
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.records import Prompt, Rollout, RolloutGroup, Score
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import write_step
from megatron_apo.rollout.replay import ReplayRollouts

PROMPTS = [Prompt(str(number), (1, 2), (1, 2), (), "?", "7") for number in range(1, 41)]
CONFIG = Config(
    run=RunConfig(seed=3),
    sampling=SamplingConfig(group_size=2),
    rollout=RolloutConfig(prompts_per_step=8, refill_rounds=3),
    objective=ObjectiveConfig(drop_zero_variance=True),
)


class Engine:
    """Answers with the number of the prompt; keeps what it was asked."""

    weight_version = 0

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        self.asked.append(([prompt.id for prompt in prompts], sampling.seed))
        both = range(sampling.group_size)
        return [[Rollout(p.id, i, (5, 6), (-1.0, -1.0), p.id, "stop", 0) for i in both] for p in prompts]


class Grader:
    """The first response to every ``every``-th prompt is right, all others are wrong."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.earlier: list[int] = []

    def score(self, groups: Sequence[RolloutGroup], earlier: Sequence[RolloutGroup] = ()) -> list[RolloutGroup]:
        self.earlier.append(len(earlier))
        right = Score(1.0, {"accuracy": 1.0}, "correct")
        wrong = Score(0.0, {"accuracy": 0.0}, "wrong")
        return [replace(g, scores=(right if int(g.prompt.id) % self.every == 0 else wrong, wrong)) for g in groups]


def drawn(every: int, step: int = 1, config: Config = CONFIG, source: Any = None) -> tuple[list[RolloutGroup], Engine]:
    engine = Engine()
    stream = PromptStream(len(PROMPTS), config.rollout.prompts_per_step, config.run.seed)
    source = source or LiveRollouts(engine, config)  # type: ignore[arg-type]
    controller = Controller(PROMPTS, stream, source, Grader(every), None)  # type: ignore[arg-type]
    return draw(controller, config, step, PhaseTimer()), engine


def kept(groups: Sequence[RolloutGroup]) -> list[str]:
    return [group.prompt.id for group in groups if not group.dropped]


def test_the_size_of_a_refill() -> None:
    """2 of 8 found, 6 missing: 24 would do, 8 is the most; 6 of 8 found, 2 missing: 3 at that share."""
    assert refill_size([True] * 2 + [False] * 6, 8) == 8
    assert refill_size([True] * 6 + [False] * 2, 8) == 3
    assert refill_size([False] * 8, 8) == 8
    assert refill_size([True] * 8, 8) == refill_size([True] * 9 + [False], 8) == 0


def test_no_prompt_and_no_seed_twice_in_a_step() -> None:
    groups, engine = drawn(every=4)
    assert len(engine.asked) > 1
    ids = [name for names, _ in engine.asked for name in names]
    assert len(set(ids)) == len(ids) == len(groups)
    everything = [seed for step in range(1, 30) for _, seed in drawn(every=4, step=step)[1].asked]
    assert len(set(everything)) == len(everything)
    assert [group.round for group in groups] == sorted(group.round for group in groups)


def test_a_step_alone_draws_what_it_draws_after_others() -> None:
    """What a resumed run needs: nothing is carried from step to step, and rounds differ from step to step."""
    source = [drawn(every=3, step=step) for step in (1, 2, 3)]
    again = drawn(every=3, step=3)
    assert again[0] == source[2][0] and again[1].asked == source[2][1].asked
    assert len({tuple(engine.asked[1][0]) for _, engine in source}) == 3


def test_at_most_prompts_per_step_are_trained_on_in_the_order_drawn() -> None:
    groups, engine = drawn(every=2)
    have = have_contrast(groups, CONFIG.objective)
    assert [group.prompt.id for group, has in zip(groups, have, strict=True) if has][:8] == kept(groups)
    assert all((group.dropped == "no_contrast") == (not has) for group, has in zip(groups, have, strict=True))
    step = shape_step(groups, CONFIG.objective)
    assert {sample.prompt_id for sample in step.samples} == set(kept(groups)) and len(step.shaping) == len(groups)
    assert refill_metrics(groups)["rollout/groups_dropped"] == len(groups) - 8
    two_draws = [*drawn(every=1)[0], *drawn(every=1, step=2)[0]]
    surplus = mark_dropped(two_draws, [True] * 16, wanted=8)
    assert [group.dropped for group in surplus] == [""] * 8 + ["surplus"] * 8
    assert {sample.prompt_id for sample in shape_step(surplus, CONFIG.objective).samples} == set(kept(surplus))


def test_the_bound_and_the_last_prompt_end_it() -> None:
    """Without any contrast: 1 + 3 draws of 8; with 9 further rounds the 40 prompts end it. Nothing is trained on."""
    groups, engine = drawn(every=1000)
    assert [len(names) for names, _ in engine.asked] == [8, 8, 8, 8]
    assert kept(groups) == [] and shape_step(groups, CONFIG.objective).samples == ()
    more = replace(CONFIG, rollout=replace(CONFIG.rollout, refill_rounds=9))
    everyone, engine = drawn(every=1000, config=more)
    assert len(everyone) == 40 and len(engine.asked) == 5
    assert refill_metrics(everyone)["rollout/rounds"] == 5


def test_groups_without_contrast_never_fill_an_update() -> None:
    groups = [RolloutGroup(prompt, (), round=int(place > 2)) for place, prompt in enumerate(PROMPTS[:6])]
    assert kept(mark_dropped(groups, [False, False, False, True, False, False], wanted=3)) == ["4"]
    assert kept(mark_dropped(groups, [False] * 6, wanted=3)) == []


def test_errors_of_earlier_rounds_are_counted_with_them() -> None:
    stream = PromptStream(len(PROMPTS), 8, 3)
    grader = Grader(4)
    draw(Controller(PROMPTS, stream, LiveRollouts(Engine(), CONFIG), grader, None), CONFIG, 1, PhaseTimer())  # type: ignore[arg-type]
    assert grader.earlier[:2] == [0, 8]


def test_a_replay_brings_the_recorded_rounds(tmp_path: Any) -> None:
    groups, _ = drawn(every=4)
    write_step(tmp_path, 1, groups, weight_version=0, sampling=SamplingSettings(2, 8, 1.0))
    again, engine = drawn(every=4, source=ReplayRollouts(tmp_path))
    assert again == groups and not engine.asked
    without = replace(CONFIG, rollout=replace(CONFIG.rollout, refill_rounds=0))
    assert [group.round for group in drawn(every=4, config=without, source=ReplayRollouts(tmp_path))[0]] == [0] * 8


def test_refills_need_dropping() -> None:
    with pytest.raises(ValueError, match=r"rollout\.refill_rounds=2: needs objective\.drop_zero_variance=true"):
        load_config(None, ["--rollout.refill_rounds=2"])
    assert load_config(None, ["--rollout.refill_rounds=2", "--objective.name=dapo"]).rollout.refill_rounds == 2
