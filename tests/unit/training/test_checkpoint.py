"""A resumed job goes on to the last bit: weights, Adam's moments, each parameter's own step counter, the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from megatron_apo.training.checkpoint import (
    LoopState,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
    saved_steps,
)
from megatron_apo.training.setup import TrainingState
from tests.unit.model_providers.reference import make_checkpoint, pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, work_of

UPDATES = 6
SCHEDULE = ("--optimizer.schedule=linear", "--optimizer.warmup_steps=2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("policy"), tied=True)


def adam_states(state: TrainingState) -> list[dict[str, torch.Tensor]]:
    inner: Any = state.optimizer
    while hasattr(inner, "chained_optimizers"):
        (inner,) = inner.chained_optimizers
    adam = inner.optimizer
    return [adam.state[parameter] for group in adam.param_groups for parameter in group["params"]]


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.model[0].named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("distributed", ["false", "true"])
def test_a_resumed_job_equals_one_that_went_on(
    checkpoint: Path, one_process: Groups, tmp_path: Path, distributed: str, dtype: str
) -> None:
    layout = f"--parallel.distributed_optimizer={distributed}"
    config = job_config(checkpoint, *SCHEDULE, layout, f"--model.dtype={dtype}")
    packed = pack(PATCH_VALUES)
    trainer, state = make_trainer(config, one_process, updates=UPDATES)
    before = trainer.step(work_of(config, packed, updates=3))
    saved = weights(state)
    loop = LoopState(step=3, weight_version=3, updates=3)
    assert save_checkpoint(state, one_process, tmp_path, loop, keep=2) == checkpoint_path(tmp_path, 3)
    moments = [{name: value.clone() for name, value in one.items()} for one in adam_states(state)]
    went_on = trainer.step(work_of(config, packed, updates=2))

    resumed_trainer, resumed = make_trainer(config, one_process, updates=UPDATES)
    assert not all(torch.equal(saved[name], value) for name, value in weights(resumed).items())
    assert load_checkpoint(resumed, one_process, tmp_path) == loop
    for name, value in weights(resumed).items():
        assert torch.equal(saved[name], value), name
    found = adam_states(resumed)
    for one, other in zip(moments, found, strict=True):
        for name, value in one.items():
            assert torch.equal(value.float(), other[name].float()), name
    # Torch's AdamW counts in place: counters that share memory would count every parameter's step.
    assert len({one["step"].data_ptr() for one in found}) == len(found)
    resumed_on = resumed_trainer.step(work_of(config, packed, updates=2))
    assert {float(one["step"]) for one in adam_states(resumed)} == {5.0}
    assert resumed_on == went_on
    for name, value in weights(resumed).items():
        assert torch.equal(weights(state)[name], value), name
    assert went_on[-1]["loss/total"] < before[0]["loss/total"]


def test_the_schedule_by_hand(checkpoint: Path, one_process: Groups) -> None:
    """Warm-up over two updates from 0 to 0.01, then a line to 0.002 over the other four."""
    config = job_config(checkpoint, *SCHEDULE, "--optimizer.minimum_learning_rate=2e-3")
    trainer, _ = make_trainer(config, one_process, updates=UPDATES)
    metrics = trainer.step(work_of(config, pack(PATCH_VALUES), updates=UPDATES))
    found = [update["optimizer/learning_rate"] for update in metrics]
    assert found == pytest.approx([0.0, 0.005, 0.01, 0.008, 0.006, 0.004])


def test_only_the_newest_are_kept(checkpoint: Path, one_process: Groups, tmp_path: Path) -> None:
    config = job_config(checkpoint)
    trainer, state = make_trainer(config, one_process)
    trainer.step(work_of(config, pack(PATCH_VALUES), updates=1))
    for step in (1, 2, 10):
        save_checkpoint(state, one_process, tmp_path, LoopState(step, step, step), keep=2)
    assert saved_steps(tmp_path) == [2, 10]
    assert load_checkpoint(state, one_process, tmp_path).step == 10
    (tmp_path / "step_000020").mkdir()  # what an interrupted copy leaves behind is no checkpoint
    assert saved_steps(tmp_path) == [2, 10]


def test_nothing_to_resume(checkpoint: Path, one_process: Groups, tmp_path: Path) -> None:
    _, state = make_trainer(job_config(checkpoint), one_process)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        load_checkpoint(state, one_process, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"\xff{}", "cannot be read"),
        (b"[3]", "does not say where the run stood"),
        (b'{"step": 3}', "does not say where the run stood"),
        (b'{"step": 3, "weight_version": 3, "updates": 3, "other": 1}', "does not say where the run stood"),
    ],
)
def test_a_damaged_state_is_named(
    checkpoint: Path, one_process: Groups, tmp_path: Path, content: bytes, message: str
) -> None:
    _, state = make_trainer(job_config(checkpoint), one_process)
    file = checkpoint_path(tmp_path, 3) / "loop_state.json"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"loop_state\.json: {message}.*; restore the file, or remove"):
        load_checkpoint(state, one_process, tmp_path)
