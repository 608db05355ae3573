"""What the ranks of the input, freezing and recompute tests run: supervised updates on sequences of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.parallel.status import PhaseError
from megatron_apo.records import ReplicaWork
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from megatron_apo.weight_sync.export import Select, export_tensors, main_gradients
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.slices import rank_slices
from tests.distributed.planned import optimizer_bytes
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


def _sizes(state: TrainingState, groups: Groups) -> dict[str, Any]:
    """Bytes that this rank holds of optimizer and gradient buffers, and how many numbers each trained tensor has."""
    parameters = [pair for chunk in state.model for pair in chunk.named_parameters()]
    return {
        **optimizer_bytes(state),
        "buffers": sum(buffer.grad_data.nbytes for chunk in state.model for buffer in chunk.buffers),
        "trained": [(name, parameter.numel()) for name, parameter in parameters if parameter.requires_grad],
        "all": sum(parameter.numel() for _, parameter in parameters),
        "data_rank": groups.data_rank,
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
        (directory / f"sizes_{groups.rank}.json").write_text(json.dumps(_sizes(state, groups)))
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


def _adam(state: TrainingState, moment: str) -> Select:
    """Selects a parameter's moment where float32 parameters are their own main ones, and no rank shares them."""
    (inner,) = [link.optimizer for link in getattr(state.optimizer, "chained_optimizers", [state.optimizer])]
    return lambda parameter: inner.state[parameter][moment]  # type: ignore[no-any-return]


def _padding(state: TrainingState, groups: Groups) -> dict[str, int]:
    """How many numbers of this rank's vision FFN are padding, and how many are not 0 of them, of their gradients and
    of their moments."""
    found = {"padding": 0, "not_zero": 0}
    moments = [_adam(state, moment) for moment in ("exp_avg", "exp_avg_sq")]
    for chunk in (unwrap(chunk) for chunk in state.model):
        rows = model_rows(chunk)
        for name, parameter in global_parameters(chunk):
            row = rows[name]
            if row.padded_to is None or row.cut is None:
                continue
            outside = torch.ones_like(parameter, dtype=torch.bool)
            for cut in rank_slices(row, tuple(parameter.shape), groups.tensor_rank, groups.tensor_size):
                outside.narrow(cut.dimension, cut.place, cut.stop - cut.start).fill_(False)
            found["padding"] += int(outside.sum())
            for select in (lambda p: p, main_gradients, *moments):
                found["not_zero"] += int(select(parameter)[outside].count_nonzero())
                # A rank may hold nothing else; what it holds besides must have been trained.
                assert bool(outside.all()) or bool(select(parameter)[~outside].any()), name
    return found


def _save_padded(directory: Path, state: TrainingState, groups: Groups) -> None:
    chunks = [unwrap(chunk) for chunk in state.model]
    selects = {"weights": lambda p: p.detach(), **{name: _adam(state, name) for name in ("exp_avg", "exp_avg_sq")}}
    tensors = {
        f"{what} {key}": tensor.clone()
        for what, select in selects.items()
        for key, tensor in export_tensors(chunks, groups, select)
    }
    if groups.is_controller:
        save_file(tensors, directory / "state.safetensors")


def train_padded(directory: Path, *, checkpoint: str, overrides: list[str], plan: Plan) -> None:
    """Two updates and a checkpoint: weights and moments as exported, and what became of the padding."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    try:
        trainer, state = make_trainer(config, groups)
        for _ in range(2):
            trainer.step(_work(groups, plan))
        (directory / f"padding_{groups.rank}.json").write_text(json.dumps(_padding(state, groups)))
        save_checkpoint(state, groups, directory / "checkpoints", LoopState(2, 2, 2), keep=1)
        _save_padded(directory, state, groups)
    finally:
        shut_down()


def load_padded(directory: Path, *, checkpoint: str, overrides: list[str], source: str) -> None:
    """Weights and moments of the checkpoint under ``source``, as this layout exports them."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    try:
        _, state = make_trainer(config, groups)
        load_checkpoint(state, groups, Path(source) / "checkpoints")
        _save_padded(directory, state, groups)
    finally:
        shut_down()


def refused(directory: Path, *, checkpoint: str, overrides: list[str], source: str) -> None:
    """Writes refused_RANK.txt: what this rank says of the checkpoint under ``source``, and that it loaded nothing."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    try:
        _, state = make_trainer(config, groups)
        before = [parameter.detach().clone() for chunk in state.model for parameter in chunk.parameters()]
        try:
            load_checkpoint(state, groups, Path(source) / "checkpoints")
        except (ValueError, PhaseError) as error:
            (directory / f"refused_{groups.rank}.txt").write_text(str(error))
        after = [parameter for chunk in state.model for parameter in chunk.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    finally:
        shut_down()
