"""DAPO's soft overlong punishment by hand, its published numbers, and its place in a score."""

from __future__ import annotations

import pytest

from megatron_apo.config import RewardConfig
from megatron_apo.config_loading import load_config
from megatron_apo.records import Prompt, Rollout, RolloutGroup
from megatron_apo.rewards.overlong import OverlongPunishment, overlong_punishment
from megatron_apo.rewards.pool import Scorer


@pytest.mark.parametrize(
    ("tokens", "part"), [(1, 0.0), (16384, 0.0), (17408, -0.25), (18432, -0.5), (20480, -1.0), (30000, -1.0)]
)
def test_the_published_cap_and_buffer(tokens: int, part: float) -> None:
    """20,480 tokens at most, the last 4,096 of them the buffer."""
    assert OverlongPunishment(20480, 0.2, 1.0).part(tokens) == pytest.approx(part)


def test_it_is_a_part_of_the_reward() -> None:
    """No answer and no format earn 0; 9 of 10 tokens are 4 of the buffer's 5: -0.8, at weight 0.5 that is -0.4."""
    rollouts = tuple(Rollout("p", n, (7,) * n, (-1.0,) * n, "?", "stop", 0) for n in (5, 9))
    groups = [RolloutGroup(Prompt("p", (1,), (1,), (), "?", "1"), rollouts)]
    with Scorer(RewardConfig(), overlong=OverlongPunishment(10, 0.5, 0.5)) as scorer:
        scores = scorer.score(groups)[0].scores
    assert [score.parts["overlong"] for score in scores] == pytest.approx([0.0, -0.8])
    assert [score.total for score in scores] == pytest.approx([0.0, -0.4])
    with Scorer(RewardConfig()) as scorer:
        assert "overlong" not in scorer.score(groups)[0].scores[0].parts


def test_the_settings_decide() -> None:
    assert overlong_punishment(load_config(None, ["--objective.overlong.policy=mask"])) is None
    found = overlong_punishment(load_config(None, ["--objective.name=dapo", "--sampling.max_tokens=20480"]))
    assert found == OverlongPunishment(20480, 0.2, 1.0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("policy=cut", r"objective\.overlong\.policy=cut: must be one of train, mask, punish"),
        ("buffer=0", r"objective\.overlong\.buffer=0\.0: must be above 0 and at most 1"),
        ("buffer=4096", r"share of sampling\.max_tokens"),
        ("weight=0", r"objective\.overlong\.weight=0\.0: must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(None, [f"--objective.overlong.{setting}"])
