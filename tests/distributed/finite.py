"""What the ranks of the skipped-update tests run: a NaN or an infinity on one rank, in every place it can come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_apo.objective.objective import TokenObjective
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.records import Microbatch, ReplicaWork
from megatron_apo.training import forward_step, update
from megatron_apo.training.finite import NonFiniteError
from megatron_apo.training.forward_step import head_settings
from megatron_apo.training.setup import TrainingState, build_training_state
from megatron_apo.training.update import Trainer, TrainerSettings
from tests.unit.model_providers.reference import pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, samples_of

LIMIT = 3
Plan = list[list[list[int]]]


def make_work(groups: Groups, plan: Plan, *, updates: int = 1) -> ReplicaWork:
    """A rollout with advantages of both signs, a KL term and engine log-probabilities; the same for each update."""
    samples = [
        replace(
            sample,
            advantage=(-1.0) ** index * (1 + index / 8),
            kl_token_weight=sample.policy_weight,
            rollout_logprobs=tuple(-5.0 - 0.1 * place for place in range(len(sample.response_ids))),
            prompt_id=f"row {index}",
        )
        for index, sample in enumerate(samples_of(pack(PATCH_VALUES)))
    ]
    tokens = float(sum(len(samples[index].response_ids) for replica in plan for batch in replica for index in batch))
    mine = tuple(tuple(members) for members in plan[groups.data_rank])
    scalars = {"kl_coefficient": 0.1} | {f"total_tokens/{index}": tokens for index in range(updates)}
    return ReplicaWork(tuple(samples), (mine,) * updates, scalars)


def make_rl_trainer(checkpoint: str, groups: Groups, overrides: list[str]) -> tuple[Trainer, TrainingState]:
    """A trainer with a reference, whose run stops at ``LIMIT`` skipped updates in a row."""
    config = job_config(Path(checkpoint), "--objective.kl.coefficient=0.1", *overrides)
    state = build_training_state(config, groups, updates=20, reference=True)
    pixels = pack(PATCH_VALUES).pixels
    settings = TrainerSettings(
        config.objective, head_settings(config, (), state.shape.vocab), max_skipped_in_a_row=LIMIT
    )
    return Trainer(state, groups, settings, pixel_values=lambda image: pixels[image.path]), state


def snapshot(state: TrainingState) -> dict[str, Any]:
    """All that an update may move on this rank: weights, main weights, moments, step counters, groups, schedule."""
    found: dict[str, Any] = {"scheduler": dict(state.scheduler.state_dict())}
    for number, chunk in enumerate(state.model):
        found |= {f"weight {number} {name}": value.detach().clone() for name, value in chunk.named_parameters()}
    links = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    for number, inner in enumerate(link.optimizer for link in links if link.optimizer is not None):
        for place, group in enumerate(inner.param_groups):
            where = f"optimizer {number} group {place}"
            found |= {f"{where} {name}": value for name, value in group.items() if name != "params"}
            for row, parameter in enumerate(group["params"]):
                found[f"{where} main {row}"] = parameter.detach().clone()
                for name, value in inner.state[parameter].items():
                    found[f"{where} {name} {row}"] = value.clone() if isinstance(value, torch.Tensor) else value
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit."""

    def same(one: Any, other: Any) -> bool:
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)

    moved = [name for name in before.keys() & after.keys() if not same(before[name], after[name])]
    return sorted(before.keys() ^ after.keys()) + sorted(moved)


@contextmanager
def _patched(place: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(place, name)
    setattr(place, name, make(original))
    try:
        yield
    finally:
        setattr(place, name, original)


def in_loss(trainer: Trainer) -> Any:
    """The loss of each microbatch is NaN."""

    def make(objective: Callable[..., TokenObjective]) -> Callable[..., TokenObjective]:
        def broken(*arguments: Any, **keywords: Any) -> TokenObjective:
            result = objective(*arguments, **keywords)
            return replace(result, loss=result.loss * torch.nan)

        return broken

    return _patched(forward_step, "token_objective", make)


def in_gradients(value: float) -> Callable[[Trainer], Any]:
    """One number of the last gradient buffer, once all ranks have reduced theirs, is ``value``."""

    def patch(trainer: Trainer) -> Any:
        def make(schedule: Callable[..., Any]) -> Callable[..., Any]:
            def broken(model: list[Any], *arguments: Any, **keywords: Any) -> Any:
                collected = schedule(model, *arguments, **keywords)
                model[-1].buffers[-1].grad_data[-1] = value
                return collected

            return broken

        return _patched(update, "run_schedule", make)

    return patch


def in_policy(trainer: Trainer) -> Any:
    """One log-probability of the policy is infinite in each microbatch."""

    def make(logprobs: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*arguments: Any, **keywords: Any) -> Any:
            values, entropy = logprobs(*arguments, **keywords)
            return values - torch.nn.functional.pad(values.new_full((1,), torch.inf), (0, len(values) - 1)), entropy

        return broken

    return _patched(forward_step, "response_logprobs", make)


def in_field(field: str) -> Callable[[Trainer], Any]:
    """One log-probability of each microbatch's ``field`` is NaN."""

    def spoilt(batch: Microbatch) -> Microbatch:
        values = getattr(batch, field)
        if values is None or not bool(batch.response_mask_T.any()):
            return batch
        values = values.clone()
        values[batch.response_mask_T.nonzero()[-1]] = torch.nan
        broken: dict[str, Any] = {field: values}
        return replace(batch, **broken)

    def patch(trainer: Trainer) -> Any:
        def make(run: Callable[..., Any]) -> Callable[..., Any]:
            def broken(model: Any, step: Any, batches: list[Microbatch], **keywords: Any) -> Any:
                return run(model, step, [spoilt(batch) for batch in batches], **keywords)

            return broken

        return _patched(update, "run_schedule", make)

    return patch


# place -> (patch, updates of the rollout, what the message calls it)
PLACES: dict[str, tuple[Callable[[Trainer], Any], int, str]] = {
    "loss": (in_loss, 1, "the loss"),
    "gradient_nan": (in_gradients(torch.nan), 1, "the gradients"),
    "gradient_too_large": (in_gradients(1e25), 1, "the gradients"),
    "policy": (in_policy, 1, "the policy's log-probabilities"),
    "old": (in_field("old_logprobs_T"), 2, "the old policy's log-probabilities"),
    "reference": (in_field("ref_logprobs_T"), 1, "the reference's log-probabilities"),
    "engine": (in_field("rollout_logprobs_T"), 1, "the rollout engine's log-probabilities"),
}


def copy(directory: Path, *, source: str) -> None:
    """Keeps a run as it is between two commands."""
    shutil.copytree(source, directory / "run")


def skip(directory: Path, *, checkpoint: str, overrides: list[str], plan: Plan) -> None:
    """An update, one skipped update (two for ``old``) for each place, and an update again; then too many in a row."""
    torch.set_num_threads(1)
    config = job_config(Path(checkpoint), *overrides)
    groups = initialise(config.parallel, seed=0)
    results: dict[str, Any] = {}
    try:
        trainer, state = make_rl_trainer(checkpoint, groups, overrides)
        trainer.step(make_work(groups, plan))
        for place, (patch, updates, _) in PLACES.items():
            rank = 0 if place.startswith("gradient") else groups.world_size - 1
            before = snapshot(state)
            gates: list[float] = []

            def keep(seen: dict[str, float], _: Any, gates: list[float] = gates) -> None:
                gates.append(seen["gate/count"])

            trainer.skipped_in_a_row = 0
            with patch(trainer) if groups.rank == rank else _patched(update, "run_schedule", lambda same: same):
                metrics = trainer.step(make_work(groups, plan, updates=updates), keep)
            results[place] = {
                "moved": differences(before, snapshot(state)),
                "metrics": metrics,
                "in_a_row": trainer.skipped_in_a_row,
                "gates": len(gates),
            }
        before = snapshot(state)
        metrics = trainer.step(make_work(groups, plan))
        results["healthy"] = {
            "moved": differences(before, snapshot(state)),
            "metrics": metrics,
            "in_a_row": trainer.skipped_in_a_row,
        }
        before, message = snapshot(state), ""
        with in_loss(trainer) if groups.rank == groups.world_size - 1 else _patched(update, "say", lambda same: same):
            for _ in range(LIMIT - 1):
                trainer.step(make_work(groups, plan))
            try:
                trainer.step(make_work(groups, plan))
            except NonFiniteError as error:
                message = str(error)
        results["stopped"] = {"moved": differences(before, snapshot(state)), "message": message}
        (directory / f"results_{groups.rank}.json").write_text(json.dumps(results))
    finally:
        shut_down()
