"""A run through ``compose.train`` that keeps what each of its updates was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_apo import compose
from megatron_apo.config_loading import load_config
from megatron_apo.records import Microbatch, ReplicaWork
from megatron_apo.training import forward_step
from megatron_apo.training.forward_step import LossSettings
from megatron_apo.training.update import BeforeStep, Trainer
from tests.end_to_end.commands import as_without_a_launcher


def _scored(trainer: Trainer, model: list[Any], work: ReplicaWork) -> list[list[float]]:
    """The log-probabilities of each sample's response by ``model`` as it is now."""
    batch = trainer._microbatch(work.samples, range(len(work.samples)))
    (values,) = trainer.score(model, [batch]) or []
    lengths = [len(sample.response_ids) for sample in work.samples]
    return [one.tolist() for one in values[batch.response_mask_T].split(lengths)]


def train(directory: Path, config: str, overrides: list[str]) -> None:
    """Trains on one process; ``steps.json`` holds of every step

    ``engine``: each sample's log-probabilities as recorded; ``old`` and ``reference``: by the policy before the step
    and by the reference, scored here; ``updates``: of each optimizer update that was made the metrics, and the policy's
    log-probabilities of the samples it trained on, by their place, as they went into the loss.
    """
    torch.set_num_threads(1)
    as_without_a_launcher()
    settings = load_config(config, [*overrides, f"--run.directory={directory / 'run'}"])
    steps: list[dict[str, Any]] = []
    train_step, train_update, objective_loss = Trainer.step, Trainer._update, forward_step.objective_loss

    def step(self: Trainer, work: ReplicaWork, before_step: BeforeStep) -> list[dict[str, float]]:
        kept: dict[str, Any] = {"engine": [sample.rollout_logprobs for sample in work.samples], "updates": []}
        kept["reference"] = kept["old"] = _scored(self, self.state.model, work)
        if self.state.reference is not None:
            with self.state.reference.scoring() as reference:
                kept["reference"] = _scored(self, reference, work)
        steps.append(kept)
        return train_step(self, work, before_step)

    def update(self: Trainer, *given: Any) -> dict[str, float]:
        steps[-1]["updates"].append({"logprobs": {}})
        metrics = train_update(self, *given)
        steps[-1]["updates"][-1]["metrics"] = metrics
        return metrics

    def loss(
        logprobs: torch.Tensor, entropy: torch.Tensor, batch: Microbatch, given: LossSettings, **known: Any
    ) -> Any:
        lengths = [len(steps[-1]["engine"][index]) for index in batch.sample_indices]
        for index, values in zip(batch.sample_indices, logprobs.detach().split(lengths), strict=True):
            steps[-1]["updates"][-1]["logprobs"][index] = values.tolist()
        return objective_loss(logprobs, entropy, batch, given, **known)

    Trainer.step, Trainer._update = step, update  # type: ignore[method-assign,assignment]
    forward_step.objective_loss = loss
    compose.train(settings, resume=False)
    (directory / "steps.json").write_text(json.dumps(steps))
