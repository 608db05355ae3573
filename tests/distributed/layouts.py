"""What the ranks of the layout tests run, and the recorded rollouts and checkpoint they run on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron_apo import compose
from megatron_apo.config import DataConfig
from megatron_apo.config_loading import load_config
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.evaluation.evaluate import read_prompts
from megatron_apo.records import ReplicaWork, Rollout, RolloutGroup
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import write_step
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.update import BeforeStep, Trainer
from megatron_apo.weight_sync.export import export_tensors, main_gradients

FAR_OFF = -60.0  # the engine's log-probability of one token of each recorded step


def randomised_checkpoint(source: Path, target: Path, *, seed: int) -> Path:
    """A copy of ``source`` with every tensor, norms and biases too, away from its default: mapping bugs show."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(target / "model.safetensors")
    for name, tensor in sorted(weights.items()):
        centre = 1.0 if tensor.ndim == 1 and "bias" not in name else 0.0
        weights[name] = centre + 0.08 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def record_rollouts(policy: Path, task: Path, directory: Path, *, steps: int, prompts: int, group: int) -> Path:
    """Random responses of very different lengths to the task's prompts, some of them right, as recorded rollouts."""
    builder = PromptBuilder(policy, DataConfig())
    rows = read_prompts(builder, str(task / "train.jsonl"), "")
    dice = random.Random(7)
    allowed = [token for token in range(300) if token not in builder.forbidden_token_ids]
    for step in range(1, steps + 1):
        groups = []
        for prompt in dice.sample(rows, prompts):
            rollouts = []
            for index in range(group):
                right = dice.random() < 0.4
                text = prompt.demonstration if right else "<think>" + "7" * dice.randint(1, 20) + "</think>"
                ids = builder.response_ids(text) if right else tuple(dice.choices(allowed, k=dice.randint(1, 30)))
                logprobs = tuple(-6.0 + dice.random() for _ in ids)
                if len(groups) == 3 and index == 1:  # one token that no layout may take for another
                    logprobs = (*logprobs[:-1], FAR_OFF)
                rollouts.append(Rollout(prompt.id, index, ids, logprobs, text, "stop", step - 1))
            groups.append(RolloutGroup(prompt, tuple(rollouts)))
        write_step(directory, step, groups, weight_version=0, sampling=SamplingSettings(group, 32, 1.0))
    return directory


def replay_config(root: Path, policy: Path, task: Path, recorded: Path, *, steps: int) -> Path:
    """Settings of a run on ``recorded`` rollouts: APO, two updates a step in several microbatches."""
    settings = {
        "run": {"steps": steps, "save_every": 0},
        "model": {"path": str(policy)},
        "data": {"train": str(task / "train.jsonl"), "pixel_workers": 0},
        "rollout": {"replay": str(recorded), "prompts_per_step": 6},
        "sampling": {"group_size": 4, "temperature": 0.9},
        "objective": {"name": "apo", "stcr": {"base": 1.05}, "kl": {"coefficient": 0.05}},
        "optimizer": {"schedule": "constant"},
        "training": {"updates_per_rollout": 2, "tokens_per_microbatch": 300},
        "logging": {"progress": False, "tensorboard": False},
    }
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def replay(directory: Path, config: str, overrides: list[str]) -> None:
    """Trains on recorded rollouts through the product's own ``train``.

    Keeps the gradients of every update, and which token each rank names when the gate asks for the worst.
    """
    settings = load_config(config, [*overrides, f"--run.directory={directory / 'run'}"])
    build = compose.build_training_state
    updates = iter(range(1, 1000))

    def build_and_watch(*arguments: Any, **keywords: Any) -> Any:
        state = build(*arguments, **keywords)
        groups, step = arguments[1], state.optimizer.step
        chunks = [unwrap(chunk) for chunk in state.model]

        def watched_step() -> Any:
            gradients = {n: g.clone() for n, g in export_tensors(chunks, groups, main_gradients)}
            if gradients:
                save_file(gradients, directory / f"gradients_{next(updates)}.safetensors")
            return step()

        state.optimizer.step = watched_step
        return state

    train_step = Trainer.step

    def step_and_ask(self: Trainer, work: ReplicaWork, before_step: BeforeStep) -> list[dict[str, float]]:
        def ask(metrics: dict[str, float], worst_token: Callable[[], str]) -> None:
            with (directory / f"worst_{self.groups.rank}.txt").open("a") as file:
                file.write(worst_token() + "\n")
            before_step(metrics, worst_token)

        return train_step(self, work, ask)

    compose.build_training_state = build_and_watch
    Trainer.step = step_and_ask  # type: ignore[assignment,method-assign]
    compose.train(settings, resume=False)
