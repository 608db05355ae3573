"""Several updates of a rollout: each is held against the objective on transformers' log-probabilities under the weights
it was made with, pi_old and pi_ref those of the weights the rollout began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.objective.objective import token_objective
from megatron_apo.parallel.groups import Groups
from megatron_apo.records import ReplicaWork
from megatron_apo.training.forward_step import unwrap
from megatron_apo.weight_sync.export import export_tensors, main_gradients
from model_providers.qwen_vl.weight_map import published_name
from tests.distributed.finite import make_rl_trainer
from tests.gradients import BOUND, largest_error
from tests.unit.model_providers.reference import make_checkpoint, pack, transformers_logits, transformers_model
from tests.unit.training.jobs import PATCH_VALUES
from tests.unit.training.test_updates import FIRST, SECOND, Update, work_of

KL = 0.1
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("policy"), tied=True)


def plain_logprobs(model: Any) -> list[torch.Tensor]:
    """Of the response tokens of each sequence by itself, by transformers."""
    packed, found = pack(PATCH_VALUES), []
    for response, logits in zip(packed.responses, transformers_logits(model, packed), strict=True):
        rows = logits[-len(response) - 1 : -1].log_softmax(-1)
        found.append(rows[torch.arange(len(response)), response])
    return found


class Plain:
    """The update as one sum over its response tokens, under any weights."""

    def __init__(self, checkpoint: Path, settings: Any) -> None:
        self.model = transformers_model(checkpoint)
        self.settings = settings
        with torch.no_grad():
            self.initial = plain_logprobs(self.model)

    def update(self, weights: Tensors, work: ReplicaWork, update: Update) -> tuple[dict[str, float], Tensors]:
        """Loss, metrics and gradients by published name."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[published_name(name)])
        self.model.zero_grad()
        indices = [index for batch in update for index in batch]
        samples, logprobs = [work.samples[index] for index in indices], plain_logprobs(self.model)
        lengths = torch.tensor([len(sample.response_ids) for sample in samples])
        sequence_R = torch.arange(len(samples)).repeat_interleave(lengths)

        def of_tokens(name: str) -> torch.Tensor:
            return torch.tensor([getattr(sample, name) for sample in samples])[sequence_R]

        def sums(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(samples)).index_add(0, sequence_R, values.detach())[sequence_R]

        before = torch.cat([self.initial[index] for index in indices])
        engine = torch.tensor([value for sample in samples for value in sample.rollout_logprobs])
        result = token_objective(
            torch.cat([logprobs[index] for index in indices]),
            engine if self.settings.old_logprobs == "engine" else before,
            before,
            advantages_T=of_tokens("advantage"),
            policy_weights_T=of_tokens("policy_weight"),
            kl_token_weights_T=of_tokens("kl_token_weight"),
            kl_weights_T=of_tokens("kl_weight"),
            kl_coefficient=KL,
            settings=self.settings,
            metric_weight=1 / len(before),
            engine_logprobs_T=engine,
            sequence_sums=sums,
        )
        result.loss.backward()
        gradients = {
            published_name(name): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.model.named_parameters()
        }
        metrics = {name: float(value) for name, value in result.metrics.items()}
        return metrics | {"loss/total": float(result.loss.detach())}, gradients


CASES = {
    "trainer": ["--objective.old_logprobs=trainer"],
    "engine": ["--objective.old_logprobs=engine"],
    "corrected": ["--objective.mismatch.correction=truncate", "--objective.mismatch.upper=1.1"],
    "whole responses": ["--objective.importance=sequence"],
}


@pytest.mark.parametrize("case", CASES)
def test_every_update_is_the_objective_under_the_rollouts_own_policy(
    case: str, checkpoint: Path, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates, two epochs, with steps so long that a pi_old of later weights is another loss altogether."""
    updates = (FIRST, SECOND, FIRST, SECOND)
    rate, clip = "--optimizer.learning_rate=1e-3", ["--objective.clip_low=0.1", "--objective.clip_high=0.15"]
    trainer, state = make_rl_trainer(str(checkpoint), one_process, [rate, *clip, *CASES[case]])
    work, step = work_of(one_process, *updates), state.optimizer.step
    chunks = [unwrap(chunk) for chunk in state.model]
    made: list[tuple[Tensors, Tensors]] = []

    def watched() -> Any:
        weights = {name: tensor.clone() for name, tensor in export_tensors(chunks, one_process)}
        gradients = {name: tensor.clone() for name, tensor in export_tensors(chunks, one_process, main_gradients)}
        made.append((weights, gradients))
        return step()

    monkeypatch.setattr(state.optimizer, "step", watched)
    results = trainer.step(work)
    plain = Plain(checkpoint, trainer.settings.objective)
    assert len(made) == len(results) == 4
    for found, (weights, gradients), update in zip(results, made, updates, strict=True):
        expected, expected_gradients = plain.update(weights, work, update)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        error, worst = largest_error(gradients, expected_gradients)
        print(case, error, worst, {name: round(value, 4) for name, value in expected.items()})
        assert error <= BOUND, worst
    if case != "engine":
        assert results[0]["policy/ratio"] == 1.0 and results[0]["policy/kl_old"] == 0.0
        assert all(result["policy/kl_old"] > 0.01 for result in results[1:]), "nothing is off policy"
        assert any(result["policy/clip_fraction"] > 0.1 for result in results)
