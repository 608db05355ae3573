"""What the ranks of the checkpoint tests run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_apo.config_loading import load_config
from megatron_apo.parallel.groups import initialise, shut_down
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState, build_training_state
from megatron_apo.weight_sync.export import export_tensors
from model_providers.qwen_vl.loading import global_parameters

UPDATES = 2


def _one_update(state: TrainingState, value: float) -> None:
    """Gradients that differ between tensors but not between the parts of one: every layout makes the same update."""
    for name, parameter in (pair for chunk in state.model for pair in global_parameters(unwrap(chunk))):
        tied = name in ("language_model.output_layer.weight", "language_model.embedding.word_embeddings.weight")
        if parameter.requires_grad:
            parameter.main_grad.fill_(value * (1 + (0 if tied else len(name)) % 3))
    state.optimizer.step()


def save(directory: Path, *, policy: str, overrides: list[str]) -> None:
    """Two updates, a checkpoint, one update more: weights at the checkpoint and at the end, as exported."""
    _run(directory, policy, overrides, load_from=None)


def load(directory: Path, *, policy: str, overrides: list[str], source: str) -> None:
    """The checkpoint of another layout and the update after it."""
    _run(directory, policy, overrides, load_from=Path(source))


def _run(directory: Path, policy: str, overrides: list[str], load_from: Path | None) -> None:
    torch.set_num_threads(1)
    config = load_config(
        None,
        [
            f"--model.path={policy}",
            "--data.train=unused",
            "--optimizer.learning_rate=1e-2",
            "--optimizer.clip_gradient=0",
            "--optimizer.schedule=constant",
            *overrides,
        ],
    )
    groups = initialise(config.parallel, seed=0)
    try:
        state = build_training_state(config, groups, updates=10, reference=False)
        model = [unwrap(chunk) for chunk in state.model]
        if load_from is None:
            directory.mkdir(parents=True, exist_ok=True)
            for update in range(UPDATES):
                _one_update(state, 0.5 + update)
            save_checkpoint(state, groups, directory / "checkpoints", LoopState(UPDATES, 0, UPDATES), keep=1)
        else:
            assert load_checkpoint(state, groups, load_from / "checkpoints").updates == UPDATES
        for name in ("at_checkpoint", "after"):
            tensors = {key: tensor.clone() for key, tensor in export_tensors(model, groups)}
            if groups.is_controller:
                directory.mkdir(parents=True, exist_ok=True)
                save_file(tensors, directory / f"{name}.safetensors")
            _one_update(state, -0.25)
    finally:
        shut_down()
