"""The trainer's log-probabilities of response tokens equal transformers', however they are cut into microbatches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from megatron_apo.records import ReplicaWork
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.update import Trainer
from tests.unit.model_providers.reference import (
    IMAGE,
    START,
    VIDEO,
    Packed,
    make_checkpoint,
    pack,
    transformers_logits,
    transformers_model,
)
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, work_of


@pytest.fixture(scope="module", params=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


def scored_responses(trainer: Trainer, state: TrainingState, work: ReplicaWork) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities of each response by its prompt; nothing but responses has any."""
    batches = [trainer._microbatch(work.samples, indices) for indices in work.updates[0]]
    scored = trainer.score(state.model, batches)
    assert scored is not None
    found: dict[tuple[int, ...], torch.Tensor] = {}
    for batch, logprobs_T in zip(batches, scored, strict=True):
        assert (logprobs_T[~batch.response_mask_T] == 0).all()
        for place, index in enumerate(batch.sample_indices):
            sample = work.samples[index]
            start = int(batch.cu_seqlens[place]) + len(sample.prompt_ids) - 1
            found[sample.prompt_ids] = logprobs_T[start : start + len(sample.response_ids)]
    return found


def expected_responses(
    checkpoint: Path, packed: Packed, temperature: float, forbidden: tuple[int, ...], dtype: torch.dtype
) -> dict[tuple[int, ...], torch.Tensor]:
    """The same from transformers' logits."""
    with torch.no_grad():
        logits = transformers_logits(transformers_model(checkpoint, dtype), packed)
    found = {}
    for prompt, response, logits_TV in zip(packed.prompts, packed.responses, logits, strict=True):
        rows = logits_TV[len(prompt) - 1 : -1].float() / temperature
        rows[:, list(forbidden)] = -torch.inf
        found[tuple(prompt)] = torch.log_softmax(rows, -1)[torch.arange(len(response)), response]
    return found


def differences(
    found: dict[tuple[int, ...], torch.Tensor], expected: dict[tuple[int, ...], torch.Tensor]
) -> torch.Tensor:
    assert set(found) == set(expected)
    return torch.cat([(found[prompt] - expected[prompt]).abs() for prompt in expected])


@pytest.mark.parametrize("tokens_per_microbatch", [16, 100, 4096])
@pytest.mark.parametrize(("temperature", "forbidden"), [(1.0, ()), (0.7, (IMAGE, VIDEO, START))])
def test_equal_transformers(
    checkpoint: Path,
    one_process: Groups,
    tokens_per_microbatch: int,
    temperature: float,
    forbidden: tuple[int, ...],
) -> None:
    config = job_config(
        checkpoint,
        f"--training.tokens_per_microbatch={tokens_per_microbatch}",
        f"--sampling.temperature={temperature}",
        "--training.logits_chunk_tokens=5",
    )
    trainer, state = make_trainer(config, one_process, forbidden=forbidden)
    packed = pack(PATCH_VALUES)
    found = scored_responses(trainer, state, work_of(config, packed, updates=1))
    worst = float(
        differences(found, expected_responses(checkpoint, packed, temperature, forbidden, torch.float32)).max()
    )
    print(f"\n{checkpoint.name}, {tokens_per_microbatch} tokens a microbatch, temperature {temperature}: {worst:.1e}")
    assert worst < 1e-4


def test_bfloat16_is_as_close_to_float32_as_transformers_is(checkpoint: Path, one_process: Groups) -> None:
    config = job_config(checkpoint, "--model.dtype=bfloat16")
    trainer, state = make_trainer(config, one_process)
    packed = pack(PATCH_VALUES)
    found = scored_responses(trainer, state, work_of(config, packed, updates=1))
    exact = expected_responses(checkpoint, packed, 1.0, (), torch.float32)
    theirs = differences(expected_responses(checkpoint, packed, 1.0, (), torch.bfloat16), exact).mean()
    ours = differences(found, exact).mean()
    print(f"\n{checkpoint.name}: mean difference from float32 {ours:.1e}, transformers in bfloat16 {theirs:.1e}")
    assert 1e-4 < ours <= 2 * theirs
