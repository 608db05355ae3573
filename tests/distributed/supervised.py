"""What the ranks of the input, freezing and recompute tests run: supervised updates on sequences of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.records import ReplicaWork
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from megatron_apo.weight_sync.export import export_tensors, main_gradients
from tests.unit.model_providers.reference import pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, samples_of

Plan = list[list[list[int]]]


def _work(groups: Groups, plan: Plan) -> ReplicaWork:
    samples = samples_of(pack(PATCH_VALUES))
    tokens = sum(len(sample.response_ids) for sample in samples)
    mine = tuple(tuple(members) for members in plan[groups.data_rank])
    return ReplicaWork(tuple(samples), (mine,), {"kl_coefficient": 0.0, "total_tokens/0": float(tokens)})


def _save(directory: Path, name: str, state: TrainingState, groups: Groups, *, gradients: bool = False) -> None:
    chunks = [unwrap(chunk) for chunk in state.model]
    exported = export_tensors(chunks, groups, main_gradients) if gradients else export_tensors(chunks, groups)
    tensors = {key: tensor.clone() for key, tensor in exported}
    if groups.is_controller:
        save_file(tensors, directory / f"{name}.safetensors")


def _optimizer_tensors(optimizer: Any) -> list[torch.Tensor]:
    links = getattr(optimizer, "chained_optimizers", [optimizer])
    inner = [link.optimizer for link in links if link.optimizer is not None]
    return [value for one in inner for state in one.state.values() for value in state.values() if value.ndim]


def _sizes(state: TrainingState) -> dict[str, int]:
    """How many numbers this rank's optimizer state, gradient buffers, trained and all parameters hold."""
    parameters = [parameter for chunk in state.model for parameter in chunk.parameters()]
    return {
        "optimizer": sum(tensor.numel() for tensor in _optimizer_tensors(state.optimizer)),
        "buffers": sum(buffer.grad_data.numel() for chunk in state.model for buffer in chunk.buffers),
        "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "all": sum(parameter.numel() for parameter in parameters),
    }


def update(directory: Path, *, checkpoint: str, overrides: list[str], plan: Plan) -> None:
    """One update: its gradients, metrics, the weights after it, and how much memory the trained parts take."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    try:
        trainer, state = make_trainer(config, groups)
        step = state.optimizer.step

        def watched_step() -> Any:
            _save(directory, "gradients", state, groups, gradients=True)
            return step()

        state.optimizer.step = watched_step
        metrics = trainer.step(_work(groups, plan))[0]
        _save(directory, "weights", state, groups)
        (directory / f"sizes_{groups.rank}.json").write_text(json.dumps(_sizes(state)))
        (directory / f"metrics_{groups.rank}.json").write_text(json.dumps(metrics))
    finally:
        shut_down()


def resume(directory: Path, *, checkpoint: str, overrides: list[str], plan: Plan) -> None:
    """Two updates in one go, and again from the checkpoint after the first."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    try:
        trainer, state = make_trainer(config, groups)
        trainer.step(_work(groups, plan))
        save_checkpoint(state, groups, directory / "checkpoints", LoopState(1, 1, 1), keep=1)
        trainer.step(_work(groups, plan))
        _save(directory, "in_one_go", state, groups)
        trainer, state = make_trainer(config, groups)
        load_checkpoint(state, groups, directory / "checkpoints")
        _save(directory, "loaded", state, groups)
        trainer.step(_work(groups, plan))
        _save(directory, "resumed", state, groups)
    finally:
        shut_down()
