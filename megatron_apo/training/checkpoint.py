"""Checkpoints in Megatron's sharded ``torch_dist`` format: weights, optimizer, schedule, and where the loop stood.

A checkpoint is a directory ``step_000050``; it is written under another name and renamed when whole, so that an
interrupted save leaves nothing that looks like one. Any layout can be read into any other.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_apo.conversion.megatron_files import (
    SHARDING,
    drop_absent_extra_states,
    read_metadata,
    sharded_state,
    weight_tensors,
)
from megatron_apo.conversion.stored_objects import check_objects
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import phase
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.stored_form import check_saved_with, check_vision_ffn, saved_with

STATE_FILE = "loop_state.json"
_SAVED_WITH = "saved_with"
_OLDER = "restore the file, or remove its directory to resume from the checkpoint before it"


@dataclass(frozen=True)
class LoopState:
    """Where the loop stood: ``step`` steps done, the engine's weights at ``weight_version``, so many updates planned.

    ``skipped_in_a_row``: of them, those at the end that a NaN or an infinity kept from being made.
    """

    step: int
    weight_version: int
    updates: int
    skipped_in_a_row: int = 0


def checkpoint_path(directory: Path, step: int) -> Path:
    """Directory of the checkpoint after ``step`` steps."""
    return directory / f"step_{step:06d}"


def saved_steps(directory: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    found = [path for path in directory.glob("step_*") if (path / STATE_FILE).is_file()]
    return sorted(int(path.name.removeprefix("step_")) for path in found)


def _prepare_adam_state(optimizer: Any) -> None:
    """Gives every parameter its Adam state: Megatron can neither save nor load a state that does not exist yet."""
    for inner in _inner_optimizers(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def _megatron_optimizers(optimizer: Any) -> list[Any]:
    chained = getattr(optimizer, "chained_optimizers", None)
    return [optimizer] if chained is None else [one for link in chained for one in _megatron_optimizers(link)]


def _inner_optimizers(optimizer: Any) -> list[Any]:
    found = [one.optimizer for one in _megatron_optimizers(optimizer)]
    return [inner for inner in found if inner is not None]  # none where every parameter of the rank is frozen


def _hand_over_step_counters(optimizer: Any) -> None:
    """Megatron's distributed optimizer leaves the step out of what it read of each parameter, and then misses it.

    Its value is already in the state by then, from the parameter groups: hand it that.
    """

    def repair(one: Any, read: Callable[[Any], dict[str, Any]], write: Callable[[Any, dict[str, Any]], None]) -> None:
        def write_with_step(parameter: Any, tensors: dict[str, Any]) -> None:
            known = read(parameter)
            write(parameter, {**tensors, "step": known["step"]} if "step" in known else tensors)

        one._set_main_param_and_optimizer_states = write_with_step

    for one in _megatron_optimizers(optimizer):
        if hasattr(type(one), "_set_main_param_and_optimizer_states"):
            write = type(one)._set_main_param_and_optimizer_states.__get__(one)
            repair(one, one._get_main_param_and_optimizer_states, write)


def _separate_step_counters(optimizer: Any) -> None:
    """Clones each parameter's step counter: after a load Megatron shares one tensor between all of them, and torch's
    AdamW, which counts in place, would then count every parameter's step on it."""
    for inner in _inner_optimizers(optimizer):
        for state in inner.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].detach().clone()


def _sharded_state(state: TrainingState, *, is_loading: bool) -> dict[str, Any]:
    # Megatron's DDP saves under its own prefix and loads without it: the model itself does both.
    chunks = sharded_state([unwrap(chunk) for chunk in state.model])
    model = chunks if len(chunks) > 1 else chunks["model0"]  # the form in which Megatron's optimizers take them
    optimizer = {}
    if _inner_optimizers(state.optimizer):
        optimizer = state.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=SHARDING)
    return {**chunks, "optimizer": optimizer, "scheduler": state.scheduler.state_dict()}


def _collect_write_results_here() -> None:
    """Gives Megatron's file writer a queue of this process for its results.

    Its own is a manager in a process of its own, for asynchronous saves: 275 MB and seconds of start-up on every rank,
    and it outlives a rank that is killed. These saves are synchronous: results are put and taken in this process.
    """
    filesystem_async._results_queue = queue.Queue()


def save_checkpoint(
    state: TrainingState, groups: Groups, directory: Path, loop: LoopState, *, keep: int | None
) -> Path:
    """Writes the checkpoint of ``loop.step`` and removes the oldest beyond ``keep`` (None: none of them).

    All ranks call it together.
    """
    final = checkpoint_path(directory, loop.step)
    partial = directory / f".{final.name}.partial"
    with phase(groups, "prepare checkpoint"):
        if groups.is_controller:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    _prepare_adam_state(state.optimizer)
    _collect_write_results_here()
    dist_checkpointing.save(_sharded_state(state, is_loading=False), str(partial))
    if groups.world_size > 1:
        dist.barrier(group=groups.control)
    with phase(groups, "finish checkpoint"):
        if groups.is_controller:
            written = {**asdict(loop), _SAVED_WITH: saved_with(state)}
            (partial / STATE_FILE).write_text(json.dumps(written), encoding="utf-8")
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            for old in saved_steps(directory)[:-keep] if keep else []:
                shutil.rmtree(checkpoint_path(directory, old))
    return final


def _read_loop_state(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_OLDER}") from error
    known = {field.name for field in fields(LoopState)} | {_SAVED_WITH}
    if not isinstance(saved, dict) or not {"step", "weight_version", "updates"} <= saved.keys() <= known:
        raise ValueError(f"{path}: does not say where the run stood; {_OLDER}")
    return saved


def load_checkpoint(state: TrainingState, groups: Groups, directory: Path) -> LoopState:
    """Loads the newest checkpoint under ``directory``. All ranks call it together.

    ValueError when there is none, or it was saved with settings that do not fit; nothing is loaded then.
    """
    steps = saved_steps(directory)
    if not steps:
        raise ValueError(
            f"{directory}: the run has no checkpoint to resume from; remove its directory and start it without "
            "--resume, or give another --run.directory"
        )
    path = checkpoint_path(directory, steps[-1])
    with phase(groups, "check checkpoint"):
        saved = _read_loop_state(path / STATE_FILE)
        check_saved_with(path, saved.pop(_SAVED_WITH, None), state)
        metadata = read_metadata(path)
        sizes = {name: tuple(entry.size) for name, entry in weight_tensors(metadata).items()}
        check_vision_ffn(path, sizes, state.shape, state.settings)
        check_objects(path, metadata)
    _prepare_adam_state(state.optimizer)
    wanted = _sharded_state(state, is_loading=True)
    keys = [key for key in wanted if key.startswith("model")]
    absent = {key: drop_absent_extra_states(wanted[key], metadata) for key in keys}
    loaded = dist_checkpointing.load(wanted, str(path))
    for key, chunk in zip(keys, state.model, strict=True):
        unwrap(chunk).load_state_dict({**loaded[key], **absent[key]})
    _hand_over_step_counters(state.optimizer)
    if _inner_optimizers(state.optimizer):
        state.optimizer.load_state_dict(loaded["optimizer"])
    _separate_step_counters(state.optimizer)
    state.scheduler.load_state_dict(loaded["scheduler"])
    return LoopState(**saved)
