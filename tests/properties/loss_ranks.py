"""What the ranks of a loss draw run: one update's loss, metrics and gradients, held against one unsplit computation.

The reference is transformers' forward of each sequence by itself and the objective over all response tokens at once:
no microbatches, no ranks, no Megatron.

Shape suffix: R response tokens, of all sequences one after the other.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from megatron_apo.config import KlConfig, MismatchConfig, ObjectiveConfig
from megatron_apo.objective.objective import token_objective
from megatron_apo.objective.reductions import REDUCTIONS, token_weights
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.parallel.reduction import reduce_metrics
from megatron_apo.records import Microbatch, TrainingSample
from megatron_apo.training.finite import NOT_FINITE_ROW
from megatron_apo.training.forward_step import LossSettings, agreement_sums, training_step, unwrap
from megatron_apo.training.microbatches import run_schedule, score_microbatches
from megatron_apo.training.setup import TrainingState, build_chunks, build_training_state, for_scoring
from megatron_apo.weight_sync.export import export_tensors, main_gradients
from tests.gradients import BOUND, largest, largest_error
from tests.properties.draws import Draw, draw_case
from tests.properties.ranks import (
    Tensors,
    batches_of,
    compare_copies,
    config_of,
    head_of,
    make_checkpoint,
    plain_head,
    plain_logits,
    samples_of,
    write_copies,
)
from tests.unit.model_providers.reference import transformers_model

# Of metrics: the error in parts of 1 or the value, whichever is larger, and in parts of 0.001 or the value: a metric of
# 1e-3 whose float32 terms are of about 1 has a rounding error of 1e-7.
LIMITS = {"metrics": 2e-5, "small_metrics": 1e-4, "gradients": BOUND, "copies": BOUND}
LONGEST = 25  # response tokens, for the reduction "constant"
_POLICIES = ("reference", "old")  # their weights: the model's own, moved a little
_TRIES = 5  # values of a draw


@dataclass(frozen=True)
class LossDraw:
    """How the loss of a draw is put together; ``old``: "current" (the update is on policy), "stored" or "engine"."""

    objective: ObjectiveConfig
    kl_coefficient: float
    old: str
    supervised: bool

    def factors(self, draw: Draw) -> list[str]:
        """What a sweep counts its draws by; ``draw`` is that of the same number."""
        settings, shared = self.objective, draw.parallel.context > 1
        if self.supervised:
            return ["supervised", settings.reduction]
        found = [settings.reduction, f"old {self.old}", f"importance {settings.importance}"]
        if shared and settings.importance == "sequence":
            found.append("sequence ratio under CP")
        if settings.mismatch.correction != "none":
            found.append(f"mismatch {settings.mismatch.correction} {settings.mismatch.level}")
            if shared and settings.mismatch.level == "sequence":
                found.append("sequence mismatch weight under CP")
        return found + ([f"KL {settings.kl.estimator}"] if self.kl_coefficient else ["no KL"])


def loss_draw(number: int) -> LossDraw:
    """The loss of this number."""
    dice = random.Random(f"loss {number}")
    old = dice.choice(["current", "stored", "stored", "engine"])
    correction = dice.choice(["none", "truncate", "mask"]) if old != "engine" else "none"
    settings = ObjectiveConfig(
        kl=KlConfig(estimator=dice.choice(["k1", "k2", "k3"]), reduction=dice.choice(["sequence_mean", "token_mean"])),
        mismatch=MismatchConfig(correction=correction, level=dice.choice(["token", "sequence"]), upper=1.5, lower=0.5),
        importance=dice.choice(["token", "sequence"]),
        clip_low=dice.choice([0.01, 0.1, 0.2]),
        clip_high=dice.choice([0.01, 0.1, 0.28]),
        reduction=dice.choice(REDUCTIONS),
        microbatch_sequences=dice.choice([1, 2, 3]),
    )
    return LossDraw(settings, dice.choice([0.0, 0.04, 1.0]), old, supervised=dice.random() < 0.1)


def weighted_samples(draw: Draw, loss: LossDraw, values: int) -> list[TrainingSample]:
    """The draw's sequences with advantages, weights and the log-probabilities that an engine might have given.

    ``values``: which of its advantages, weights and log-probabilities.
    """
    dice, samples = random.Random(f"samples {draw.number}" + (f" {values}" if values else "")), samples_of(draw)
    lengths = torch.tensor([len(sample.response_ids) for sample in samples])
    everyone, settings = torch.ones(len(samples), dtype=torch.bool), loss.objective
    policy = token_weights(
        lengths,
        everyone,
        kind=settings.reduction,
        constant_length=LONGEST,
        microbatch_sequences=settings.microbatch_sequences,
    )
    kl = token_weights(lengths, everyone, kind=settings.kl.reduction)
    return [
        replace(
            sample,
            advantage=dice.gauss(0.0, 1.0),
            kl_weight=dice.choice([1.0, 0.5, 0.288]),
            policy_weight=float(policy[index]),
            kl_token_weight=float(kl[index]),
            rollout_logprobs=tuple(-5.7 + dice.gauss(0.0, 0.3) for _ in sample.response_ids),
        )
        for index, sample in enumerate(samples)
    ]


def make_policies(checkpoint: Path, values: int) -> None:
    """Beside ``checkpoint``, the reference and the old policy; each further set of values twice as far from it."""
    for number, name in enumerate(_POLICIES):
        place = checkpoint.parent / name
        place.mkdir(exist_ok=True)
        (place / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
        generator = torch.Generator().manual_seed(number)
        moved = {
            key: tensor + 0.004 * 2**values * torch.randn(tensor.shape, generator=generator)
            for key, tensor in sorted(load_file(checkpoint / "model.safetensors").items())
        }
        save_file(moved, place / "model.safetensors", metadata={"format": "pt"})


def _plain_logprobs(draw: Draw, directory: Path, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Log-probabilities and entropies [R] of all responses by transformers, and its model."""
    model, found = transformers_model(directory, dtype), []
    for sample, logits in zip(samples_of(draw), plain_logits(draw, directory, model), strict=True):
        response = torch.tensor(sample.response_ids)
        found.append(plain_head(logits[-len(response) - 1 : -1], response, draw.temperature))
    return torch.cat([logprobs for logprobs, _ in found]), torch.cat([entropy for _, entropy in found]), model


def unsplit(
    draw: Draw, loss: LossDraw, samples: list[TrainingSample], checkpoint: Path, dtype: torch.dtype
) -> tuple[dict[str, float], Tensors]:
    """Metrics and gradients by published name, the whole batch at once."""
    from model_providers.qwen_vl.weight_map import published_name

    lengths = torch.tensor([len(sample.response_ids) for sample in samples])
    sequence_R = torch.arange(len(samples)).repeat_interleave(lengths)

    def of_tokens(name: str) -> torch.Tensor:
        return torch.tensor([getattr(s, name) for s in samples], dtype=torch.float32).to(dtype)[sequence_R]

    def sums(values: torch.Tensor) -> torch.Tensor:
        return (
            torch.zeros(len(samples), dtype=dtype)
            .index_add(0, sequence_R, values.detach().to(dtype))[sequence_R]
            .to(values.dtype)
        )

    logprobs, entropy, model = _plain_logprobs(draw, checkpoint, dtype)
    engine = torch.tensor([v for s in samples for v in s.rollout_logprobs], dtype=torch.float32).to(dtype)
    metrics: dict[str, Any] = {"policy/entropy": entropy.mean(), "count/tokens": len(logprobs)}
    if loss.supervised:
        total = -(of_tokens("policy_weight") * logprobs).sum()
    else:
        with torch.no_grad():
            old, _, _ = _plain_logprobs(draw, checkpoint.parent / "old", dtype)
            reference, _, _ = _plain_logprobs(draw, checkpoint.parent / "reference", dtype)
        result = token_objective(
            logprobs,
            {"current": logprobs.detach(), "stored": old, "engine": engine}[loss.old],
            reference if loss.kl_coefficient else None,
            advantages_T=of_tokens("advantage"),
            policy_weights_T=of_tokens("policy_weight"),
            kl_token_weights_T=of_tokens("kl_token_weight"),
            kl_weights_T=of_tokens("kl_weight"),
            kl_coefficient=loss.kl_coefficient,
            settings=loss.objective,
            metric_weight=1 / len(logprobs),
            engine_logprobs_T=engine,
            sequence_sums=sums,
        )
        total = result.loss
        metrics |= result.metrics | agreement_sums(logprobs, engine, loss.objective.mismatch, sums)
        del metrics["gate/row"]
    total.backward()
    gradients = {
        published_name(name): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return {name: float(value) for name, value in metrics.items()} | {"loss/total": float(total.detach())}, gradients


def _difference(one: dict[str, float], other: dict[str, float], least: float) -> float:
    return largest(abs(one[name] - other[name]) / max(abs(other[name]), least) for name in other)


@dataclass(frozen=True)
class Expected:
    """The unsplit computation with the draw's ``values``, and float32's own noise in it, by the names of ``LIMITS``."""

    values: int
    metrics: dict[str, float]
    gradients: Tensors
    noise: dict[str, float]

    @property
    def blur(self) -> float:
        """The largest noise in parts of its limit."""
        return largest(noise / LIMITS[name] for name, noise in self.noise.items())


def _expectations(draw: Draw, loss: LossDraw, checkpoint: Path) -> Iterator[Expected]:
    for values in range(_TRIES):
        make_policies(checkpoint, values)
        samples = weighted_samples(draw, loss, values)
        metrics, gradients = unsplit(draw, loss, samples, checkpoint, torch.float32)
        exact, exact_gradients = unsplit(draw, loss, samples, checkpoint, torch.float64)
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        noise = {
            "metrics": _difference(metrics, exact, 1.0),
            "small_metrics": _difference(metrics, exact, 1e-3),
            "gradients": largest_error(gradients, exact_gradients)[0],
        }
        yield Expected(values, metrics, gradients, noise)


def expected_of(draw: Draw, loss: LossDraw, checkpoint: Path) -> Expected:
    """What every layout must give, with values of the draw that float32 can judge a layout by.

    Advantages of both signs may cancel to a gradient smaller than the rounding of its terms; and where a mask of
    mismatch leaves no token, the gradient is that of a KL between two policies so close that their log-probabilities
    differ by little more than rounding. Then transformers itself, in float32, is as far from its float64 as a layout
    may be from it: such values are drawn again, policies farther apart, before any layout has run. The first whose
    noise is at most half of every limit, else those of the least noise: the limits hold.
    """
    tried = []
    for found in _expectations(draw, loss, checkpoint):
        if found.blur <= 0.5:
            return found
        tried.append(found)
    return min(tried, key=lambda found: found.blur)


def _attached(
    batches: list[Microbatch], name: str, policy: Path, draw: Draw, state: TrainingState, groups: Groups
) -> list[Microbatch]:
    """``batches`` with the log-probabilities that ``policy`` gives in this layout."""
    chunks = for_scoring(build_chunks(state.shape, state.settings, groups, policy), state.settings)
    scored = score_microbatches(chunks, batches, head_of(draw), groups)
    if scored is None:
        return batches
    return [replace(batch, **{name: logprobs}) for batch, logprobs in zip(batches, scored, strict=True)]  # type: ignore[arg-type]


def _run_layout(
    draw: Draw, loss: LossDraw, samples: list[TrainingSample], checkpoint: Path, groups: Groups, parts: Path
) -> tuple[dict[str, float], Tensors]:
    """This layout's metrics (on every rank) and gradients (on rank 0)."""
    state = build_training_state(config_of(draw, checkpoint), groups, updates=1, reference=False)
    batches = batches_of(draw, samples, state, groups)
    if not loss.supervised:
        if loss.kl_coefficient:
            batches = _attached(batches, "ref_logprobs_T", checkpoint.parent / "reference", draw, state, groups)
        if loss.old == "stored":
            batches = _attached(batches, "old_logprobs_T", checkpoint.parent / "old", draw, state, groups)
    for chunk in state.model:
        chunk.train()
        chunk.zero_grad_buffer()
    settings = LossSettings(
        objective=loss.objective,
        kl_coefficient=loss.kl_coefficient,
        total_tokens=sum(len(sample.response_ids) for sample in samples),
        old_logprobs=loss.old,
        supervised=loss.supervised,
    )
    collected = run_schedule(state.model, training_step(head_of(draw), groups, settings), batches)
    names = collected[0].keys() - {"gate/row", NOT_FINITE_ROW} if collected else ()
    sums = {
        name: float(torch.stack([item[name].double() for item in collected]).sum())
        if name != "gate/max"
        else largest(float(item[name]) for item in collected)
        for name in names
    }
    metrics = reduce_metrics(sums, groups, maxima=("gate/max",))
    chunks = [unwrap(chunk) for chunk in state.model]
    write_copies(chunks, groups, parts)
    return metrics, {name: tensor.clone() for name, tensor in export_tensors(chunks, groups, main_gradients)}


def compare(expected: Expected, metrics: dict[str, float], gradients: Tensors, parts: Path) -> dict[str, Any]:
    """Errors against the unsplit computation in float32, and the noise of float32 itself against float64."""
    counted = {name: metrics.pop(name) for name in list(metrics) if name.startswith("count/not_finite_")}
    assert counted and not any(counted.values()), counted
    assert metrics.keys() == expected.metrics.keys(), metrics.keys() ^ expected.metrics.keys()
    error, worst = largest_error(gradients, expected.gradients)
    return {
        "metrics": _difference(metrics, expected.metrics, 1.0),
        "small_metrics": _difference(metrics, expected.metrics, 1e-3),
        "gradients": error,
        "worst": worst,
        "copies": compare_copies(parts),
        "redrawn": expected.values,
        **{f"{name}_noise": noise for name, noise in expected.noise.items()},
    }


def check(directory: Path, *, number: int, largest_world: int, attempt: int) -> None:
    """All ranks of one draw; rank 0 writes result.json."""
    torch.set_num_threads(1)
    draw, loss = draw_case(number, largest_world=largest_world, attempt=attempt), loss_draw(number)
    groups = initialise(draw.parallel, seed=0)
    try:
        checkpoint, parts, chosen = directory / "model", directory / "parts", directory / "values.json"
        if groups.is_controller:
            parts.mkdir()
            make_checkpoint(draw, checkpoint)
            expected = expected_of(draw, loss, checkpoint)
            make_policies(checkpoint, expected.values)
            chosen.write_text(json.dumps(expected.values))
        dist.barrier(group=groups.control)
        samples = weighted_samples(draw, loss, json.loads(chosen.read_text()))
        metrics, gradients = _run_layout(draw, loss, samples, checkpoint, groups, parts)
        dist.barrier(group=groups.control)
        if groups.is_controller:
            (directory / "result.json").write_text(json.dumps(compare(expected, metrics, gradients, parts)))
    finally:
        shut_down()
