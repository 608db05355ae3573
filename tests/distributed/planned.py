"""What a really built model and optimizer weigh: run on each rank of a job."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.training.setup import TrainingState, build_training_state


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def optimizer_bytes(state: TrainingState) -> dict[str, int]:
    """What this rank's optimizer holds beside the parameters: main ones of its own, moments, step counters."""
    own = _storages([p.data for chunk in state.model for p in chunk.parameters()])
    found = {"main": 0, "moments": 0, "steps": 0}
    for link in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        if link.optimizer is None:  # every parameter of this rank is frozen
            continue
        for group in link.optimizer.param_groups:
            found["main"] += sum(_size(p) for p in group["params"] if p.untyped_storage().data_ptr() not in own)
        for value in (value for values in link.optimizer.state.values() for value in values.values()):
            found["moments" if value.ndim else "steps"] += _size(value)
    return found


def _weigh(config: Config, groups: Groups) -> dict[str, int]:
    state = build_training_state(config, groups, updates=1, reference=False)
    model = state.model[0]
    model.zero_grad_buffer()
    state.optimizer.step()  # Adam's moments come into being
    parameters = _storages([p.data for p in model.parameters()])
    buffers = [buffer.grad_data for buffer in model.buffers]
    return {
        "weights": sum(parameters.values()),
        "gradients": sum(_size(buffer) for buffer in buffers),
        "optimizer": sum(optimizer_bytes(state).values()),
        "sharing_rank": torch.distributed.get_rank(groups.collection.dp_cp),
        "pipeline_rank": groups.pipeline_rank,
    }


def weigh(directory: Path, *, overrides: list[str]) -> None:
    """Writes rank_<n>.json with the bytes of this rank."""
    config = load_config(None, overrides)
    groups = initialise(config.parallel, seed=0)
    found = _weigh(config, groups)
    (directory / f"rank_{groups.rank}.json").write_text(json.dumps(found))
    shut_down()
