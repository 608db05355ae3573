"""What the controller sends arrives bit for bit."""

from __future__ import annotations

import math

from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.scatter import decode, encode, scatter_work
from megatron_apo.records import PromptImage, ReplicaWork, TrainingSample

IMAGES = (
    PromptImage("bilder/straße 1.png", "ab" * 32, (1, 4, 6)),
    PromptImage("b.mp4", "cd" * 32, (3, 2, 2), seconds_per_grid=2 / 3),
)
WORK = ReplicaWork(
    samples=(
        TrainingSample(
            prompt_ids=(1, 2, 151655),
            response_ids=(7,),
            images=IMAGES,
            advantage=0.1 + 0.2,
            kl_weight=math.pi,
            policy_weight=1.0 / 3.0,
            kl_token_weight=5e-324,  # the smallest float64: lost in any shorter format
            rollout_logprobs=(-0.1234567890123456789,),
        ),
        TrainingSample(prompt_ids=(4,), response_ids=(5, 6), images=(), rollout_logprobs=()),
        TrainingSample(prompt_ids=(9, 9), response_ids=(), images=IMAGES[1:], advantage=-0.0, rollout_logprobs=()),
    ),
    updates=(((0, 1), ()), ((2,), (1, 0))),
    scalars={"kl_coefficient": 1e-3 / 3.0, "total_tokens/0": 3.0},
    numbers=(4, 0, 17),
)


def test_round_trip_bit_for_bit() -> None:
    found = decode(encode(WORK))
    assert found == WORK
    assert math.copysign(1.0, found.samples[2].advantage) == -1.0  # == alone takes -0.0 for 0.0
    assert all(isinstance(token, int) for token in found.samples[0].prompt_ids)


def test_no_samples() -> None:
    """A replica without samples still takes part in every microbatch."""
    work = ReplicaWork(samples=(), updates=(((),),), scalars={"kl_coefficient": 0.0})
    assert decode(encode(work)) == work


def test_samples_without_logprobs() -> None:
    work = ReplicaWork(WORK.samples[1:2], (((0,),),), {})
    assert decode(encode(work)) == work


def test_payload_is_safetensors_and_json_alone() -> None:
    payload = encode(WORK)
    length = int.from_bytes(payload[:8], "little")
    assert payload[8:9] == b"{" and 8 + length < len(payload)
    assert encode(decode(payload)) == payload


def test_one_process_keeps_its_work(one_process: Groups) -> None:
    assert scatter_work([WORK], one_process) is WORK
