"""What every engine checks of a request, and the seeds it draws with."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_apo.records import Prompt, PromptImage
from megatron_apo.rollout.engine import EngineSettings, SamplingSettings
from megatron_apo.rollout.requests import check_prompt_ids, check_request, prompt_seed

SETTINGS = EngineSettings(model="", dtype="float32", forbidden_token_ids=(), max_model_len=10)


def prompt(*token_ids: int) -> Prompt:
    return Prompt(id="p7", token_ids=token_ids, collapsed_ids=token_ids, images=(), question="", gold="")


def test_videos_are_for_training_only() -> None:
    clip = PromptImage("clip.mp4", "00", (2, 2, 2), seconds_per_grid=0.5)
    with pytest.raises(ValueError, match=r"prompt 'p7': clip.mp4 is a video \(seconds_per_grid=0.5\)"):
        check_request(
            [dataclasses.replace(prompt(1), images=(clip,))],
            SamplingSettings(1, max_tokens=1, temperature=1.0),
            SETTINGS,
        )


def test_equal_ids_pass_and_the_first_difference_is_named() -> None:
    check_prompt_ids(prompt(1, 2, 3), [1, 2, 3])
    with pytest.raises(ValueError, match=r"prompt 'p7': .*3 prompt tokens and .* 3 differ first at position 1"):
        check_prompt_ids(prompt(1, 2, 3), [1, 5, 3])
    with pytest.raises(ValueError, match="differ first at position 2"):
        check_prompt_ids(prompt(1, 2, 3), [1, 2])


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingSettings(group_size=2, max_tokens=1, temperature=0.0), "greedy responses are all the same"),
        (SamplingSettings(group_size=0, max_tokens=1, temperature=1.0), "group_size=0"),
        (SamplingSettings(group_size=1, max_tokens=1, temperature=-1.0), "temperature=-1"),
        (SamplingSettings(group_size=1, max_tokens=1, temperature=1.0, top_p=0.0), "top_p=0"),
        (SamplingSettings(group_size=1, max_tokens=8, temperature=1.0), "exceed the engine's max_model_len=10"),
    ],
)
def test_impossible_requests(sampling: SamplingSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_request([prompt(1, 2, 3)], sampling, SETTINGS)


def test_a_prompt_and_its_response_may_fill_the_engine_exactly() -> None:
    check_request([prompt(1, 2, 3)], SamplingSettings(group_size=2, max_tokens=7, temperature=1.0), SETTINGS)


def test_seeds_differ_by_call_and_position_and_leave_room_for_the_group() -> None:
    seeds = {prompt_seed(seed, position) for seed in range(20) for position in range(50)}
    assert len(seeds) == 1000
    assert prompt_seed(3, 4) == prompt_seed(3, 4)
    assert all(0 <= seed < 2**62 for seed in seeds)
