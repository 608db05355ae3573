"""What the ranks of the reference tests run: the reference resident and on the host, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_apo.parallel.groups import initialise, shut_down
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.update import Trainer
from tests.distributed.finite import Plan, differences, make_rl_trainer, make_work, snapshot
from tests.unit.training.jobs import job_config

HOST = "--model.reference=host"


def _modes(state: TrainingState) -> list[bool]:
    return [module.training for chunk in state.model for module in chunk.modules()]


def _same(one: list[torch.Tensor] | None, other: list[torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _score(trainer: Trainer, batches: Any, *, fail: bool = False) -> list[torch.Tensor] | None:
    assert trainer.state.reference is not None
    with trainer.state.reference.scoring() as chunks:
        scored = trainer.score(chunks, batches)
        if fail:
            raise FloatingPointError
    return scored


def compare(directory: Path, *, checkpoint: str, overrides: list[str], plan: Plan) -> None:
    """Updates with either kind of reference, and what scoring by the host's leaves behind."""
    torch.set_num_threads(1)
    groups = initialise(job_config(Path(checkpoint), *overrides).parallel, seed=0)
    try:
        resident, state = make_rl_trainer(checkpoint, groups, overrides)
        host, moved = make_rl_trainer(checkpoint, groups, [*overrides, HOST])
        work = make_work(groups, plan)
        metrics = [trainer.step(work) for trainer in (resident, host)]
        batches = [host._microbatch(work.samples, indices) for indices in work.updates[0]]
        before, modes = snapshot(moved), _modes(moved)
        expected = _score(resident, batches)
        found = {"same_logprobs": _same(expected, _score(host, batches))}
        found["restored"] = not differences(before, snapshot(moved)) and modes == _modes(moved) and any(modes)
        try:
            _score(host, batches, fail=True)
        except FloatingPointError:
            found["restored_after_an_error"] = not differences(before, snapshot(moved)) and modes == _modes(moved)
        policy = host.score(moved.model, batches)
        found["policy_is_another"] = policy is None or not _same(expected, policy)

        save_checkpoint(moved, groups, directory / "checkpoints", LoopState(1, 1, 1), keep=1)
        later, resumed = make_rl_trainer(checkpoint, groups, [*overrides, HOST])
        load_checkpoint(resumed, groups, directory / "checkpoints")
        found["same_after_a_resume"] = _same(expected, _score(later, batches))

        metrics += [trainer.step(work) for trainer in (resident, host)]
        found["same_metrics"] = metrics[0] == metrics[1] and metrics[2] == metrics[3]
        found["same_update"] = not differences(snapshot(state), snapshot(moved))
        found["moved"] = bool(differences(before, snapshot(moved)))
        answer = {"found": found, "kl": metrics[3][0]["kl/raw"]}
        (directory / f"found_{groups.rank}.json").write_text(json.dumps(answer))
    finally:
        shut_down()
