"""The trainer's log-probabilities of response tokens equal transformers', however they are cut into microbatches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from tests.unit.model_providers.reference import (
    IMAGE,
    START,
    VIDEO,
    make_checkpoint,
    pack,
    transformers_logits,
    transformers_model,
)
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, work_of


@pytest.fixture(scope="module", params=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


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
    work = work_of(config, packed, updates=1)
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

    with torch.no_grad():
        logits = transformers_logits(transformers_model(checkpoint), packed)
    worst = 0.0
    for prompt, response, logits_TV in zip(packed.prompts, packed.responses, logits, strict=True):
        rows = logits_TV[len(prompt) - 1 : -1] / temperature
        rows[:, list(forbidden)] = -torch.inf
        expected = torch.log_softmax(rows, -1)[torch.arange(len(response)), response]
        worst = max(worst, float((found[tuple(prompt)] - expected).abs().max()))
    print(f"\n{checkpoint.name}, {len(batches)} microbatches, temperature {temperature}: {worst:.1e}")
    assert len(found) == len(packed.prompts)
    assert worst < 1e-4
