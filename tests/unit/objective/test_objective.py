from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from megatron_apo.config import (
    AdvantageConfig,
    DadsConfig,
    KlConfig,
    MismatchConfig,
    ObjectiveConfig,
    OverlongConfig,
    StcrConfig,
)
from megatron_apo.objective.objective import (
    TokenObjective,
    kl_coefficient,
    needs_reference,
    scoring_passes,
    shape_groups,
    token_objective,
)
from megatron_apo.objective.presets import PRESETS
from megatron_apo.objective.reductions import token_weights
from megatron_apo.objective.validation import exploration_steps, validate_objective

F64 = torch.float64
LOG2 = math.log(2.0)
APO = ObjectiveConfig(
    advantage=AdvantageConfig(scale=False),
    stcr=StcrConfig(enabled=True, base=2.0),
    dads=DadsConfig(enabled=True),
    kl=KlConfig(coefficient=0.1),
)


def preset(name: str) -> ObjectiveConfig:
    sections: dict[str, Any] = {"advantage": AdvantageConfig, "stcr": StcrConfig, "dads": DadsConfig, "kl": KlConfig}
    sections |= {"mismatch": MismatchConfig, "overlong": OverlongConfig}
    values = {key: sections[key](**value) if key in sections else value for key, value in PRESETS[name].items()}
    return ObjectiveConfig(name=name, **values)


def test_groups_by_hand() -> None:
    rewards = torch.tensor([[1.5, 0.5, 0.0, 0.0]], dtype=F64)  # mean 0.5
    shaped = shape_groups(rewards, torch.tensor([[1, 0, 0, 0]]), torch.tensor([[10, 11, 12, 9]]), settings=APO)
    assert shaped.raw_advantages_PG.tolist() == [[1.0, 0.0, -0.5, -0.5]]
    assert shaped.stcr_PG.tolist() == [[1.0, 1.5, 1.75, 1.0]]
    assert shaped.advantages_PG.tolist() == [[1.0, 0.0, -0.875, -0.5]]
    assert shaped.difficulty_P.tolist() == [0.75]
    assert shaped.kl_weights_PG.tolist() == [[pytest.approx(1 - math.exp(-math.e / 4)), 1.0, 1.0, 1.0]]


def test_parts_switched_off_leave_ones() -> None:
    shaped = shape_groups(
        torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 0]]), torch.tensor([[1, 9]]), settings=preset("grpo")
    )
    assert shaped.stcr_PG.tolist() == [[1.0, 1.0]] and shaped.kl_weights_PG.tolist() == [[1.0, 1.0]]
    assert torch.equal(shaped.raw_advantages_PG, shaped.advantages_PG)


def test_kl_schedules() -> None:
    assert kl_coefficient(preset("apo"), 7, 10) == 1e-3
    assert kl_coefficient(preset("grpo_d"), 30, 100) == pytest.approx(0.04)
    assert kl_coefficient(preset("grpo_d"), 6, 20) == pytest.approx(0.04)  # 0.3 of the steps of any run
    # The nearest number of steps: 0.29 * 100 is 28.999…96 in floats, and 0.3 of 9 steps are 2.7.
    assert exploration_steps(KlConfig(exploration_share=0.29), 100) == 29
    assert exploration_steps(KlConfig(exploration_share=0.3), 9) == 3
    assert [needs_reference(preset(name)) for name in ("apo", "grpo_d", "dapo")] == [True, True, False]


def test_what_is_scored_before_the_first_update() -> None:
    """The reference's pass and the policy's own, which engine log-probabilities spare."""
    for name, own in {"apo": [1, 2], "dapo": [0, 1], "rloo": [2, 3]}.items():
        assert [scoring_passes(preset(name), updates) for updates in (1, 4)] == own, name
        engine = dataclasses.replace(preset(name), old_logprobs="engine")
        assert {scoring_passes(engine, updates) for updates in (1, 4)} == {int(needs_reference(engine))}, name


def run(logprobs: torch.Tensor, rows: slice = slice(None), **changes: Any) -> TokenObjective:
    """Two sequences of one and three tokens; ratios 2, 1, 1/2, 1; reference ratios exp(x) 1, 2, 1, 1/2."""
    tokens: dict[str, torch.Tensor] = {
        "old": torch.tensor([-1.0 - LOG2, -1.0, -1.0 + LOG2, -1.0], dtype=F64),
        "ref": torch.tensor([-1.0, -1.0 + LOG2, -1.0, -1.0 - LOG2], dtype=F64),
        "advantages_T": torch.tensor([1.0, -2.0, -2.0, -2.0], dtype=F64),
        "policy_weights_T": torch.full((4,), 1 / 4, dtype=F64),
        "kl_token_weights_T": torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6], dtype=F64),
        "kl_weights_T": torch.tensor([1.0, 0.5, 0.5, 0.5], dtype=F64),
    } | {key: value for key, value in changes.items() if key != "settings"}
    cut = {key: value[rows] for key, value in tokens.items()}
    old, ref = cut.pop("old"), cut.pop("ref")
    return token_objective(logprobs[rows], old, ref, kl_coefficient=0.1, settings=APO, metric_weight=0.25, **cut)


def test_token_objective_by_hand() -> None:
    logprobs = torch.full((4,), -1.0, dtype=F64, requires_grad=True)
    result = run(logprobs)
    # PG: clipped -1.2; 2; clipped 0.8 * 2 = 1.6; 2. k3: 0; 1 - log 2; 0; log 2 - 1/2, their sum 1/2.
    policy, raw = (-1.2 + 2 + 1.6 + 2) / 4, 0.5 / 6
    expected = {
        "loss/policy": policy,
        "loss/kl": 0.1 * raw / 2,
        "kl/raw": raw,
        "kl/weighted": raw / 2,
        "policy/clip_fraction": 0.5,
        "policy/ratio": (2 + 1 + 0.5 + 1) / 4,
        "policy/kl_old": ((0.5 - 1 + LOG2) + (2 - 1 - LOG2)) / 4,
    }
    assert {name: value.item() for name, value in result.metrics.items()} == pytest.approx(expected)
    assert result.loss.item() == pytest.approx(policy + 0.05 * raw)
    result.loss.backward()
    # -ratio * A / 4 where not clipped, plus 0.1 * 1/6 * 1/2 * (1 - exp(x))
    expected_grad = [0.0, 0.5 - 0.1 / 12, 0.0, 0.5 + 0.05 / 12]
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx(expected_grad)


def test_microbatches_sum_to_the_whole() -> None:
    whole_logprobs = torch.full((4,), -1.3, dtype=F64, requires_grad=True)
    parts_logprobs = whole_logprobs.detach().clone().requires_grad_()
    whole = run(whole_logprobs)
    parts = [run(parts_logprobs, slice(0, 1)), run(parts_logprobs, slice(1, 3)), run(parts_logprobs, slice(3, 4))]
    whole.loss.backward()
    sum(part.loss for part in parts).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(parts_logprobs.grad, whole_logprobs.grad)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(value.item()), name


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
def test_tokens_without_weight_contribute_exactly_nothing(bad: float) -> None:
    logprobs = torch.tensor([-1.0, bad, -1.0, bad], dtype=F64, requires_grad=True)
    live = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=F64)
    changes: dict[str, Any] = {"policy_weights_T": live / 2, "kl_token_weights_T": live / 2}
    result = run(logprobs, **changes)
    good = run(torch.full((4,), -1.0, dtype=F64), **changes)
    assert result.loss.item() == good.loss.item() and math.isfinite(good.loss.item())
    assert {k: v.item() for k, v in result.metrics.items()} == {k: v.item() for k, v in good.metrics.items()}
    result.loss.backward()
    assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[1] == 0 and logprobs.grad[3] == 0


def test_no_tokens_give_a_zero_that_can_be_differentiated() -> None:
    logprobs = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    result = token_objective(
        logprobs,
        empty,
        empty,
        advantages_T=empty,
        policy_weights_T=empty,
        kl_token_weights_T=empty,
        kl_weights_T=empty,
        kl_coefficient=0.1,
        settings=APO,
        metric_weight=1.0,
    )
    result.loss.backward()
    assert result.loss.item() == 0 and result.loss.dtype == torch.float32


def test_a_coefficient_without_a_reference_is_refused() -> None:
    zeros = torch.zeros(2)
    weights = {name: zeros for name in ("advantages_T", "policy_weights_T", "kl_token_weights_T", "kl_weights_T")}
    with pytest.raises(ValueError, match="needs ref_logprobs_T"):
        token_objective(zeros, zeros, None, kl_coefficient=0.1, settings=APO, metric_weight=0.5, **weights)
    result = token_objective(zeros, zeros, None, kl_coefficient=0.0, settings=APO, metric_weight=0.5, **weights)
    assert "kl/raw" not in result.metrics


def test_the_weights_reproduce_both_means() -> None:
    lengths = torch.tensor([1, 3])
    values = torch.tensor([4.0, 1.0, 2.0, 6.0], dtype=F64)
    for kind, mean in (("token_mean", 13 / 4), ("sequence_mean", (4 + 3) / 2)):
        weights = token_weights(lengths, torch.ones(2), kind=kind).repeat_interleave(lengths)
        assert (weights * values).sum().item() == pytest.approx(mean)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_settings(name: str) -> None:
    validate_objective(preset(name), 8, 100)


def test_presets_and_validation_need_no_torch() -> None:
    imports = "megatron_apo.objective.presets, megatron_apo.objective.validation"
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "group_size", "message"),
    [
        (preset("apo"), 1, "sampling.group_size=1: must be at least 2; a group of one always has zero advantage"),
        (dataclasses.replace(APO, kl=KlConfig()), 8, "objective.kl.coefficient=0: must be above 0"),
        (dataclasses.replace(APO, stcr=StcrConfig(base=1.0)), 8, "objective.stcr.base=1.0"),
        (
            dataclasses.replace(preset("apo_stcr_only"), kl=KlConfig()),
            8,
            "objective.kl.coefficient=0: must be above 0 with objective.name=apo_stcr_only",
        ),
        (
            dataclasses.replace(APO, kl=KlConfig(schedule="grpo_d", minimum=0.2, maximum=0.1)),
            8,
            "objective.kl.minimum=0.2: must not exceed",
        ),
        (
            dataclasses.replace(APO, kl=KlConfig(schedule="grpo_d", maximum=0.1, exploration_steps=101)),
            8,
            "objective.kl.exploration_steps=101",
        ),
        (dataclasses.replace(APO, dads=DadsConfig(curve="x")), 8, "curve=x: must be one of one_minus_exp, exp"),
        (dataclasses.replace(APO, kl=KlConfig(estimator="k9")), 8, "estimator=k9: must be one of k1, k2, k3"),
        (dataclasses.replace(APO, reduction="sum"), 8, "objective.reduction=sum: must be one of token_mean"),
        (dataclasses.replace(APO, clip_low=1.5), 8, "objective.clip_low=1.5"),
        (dataclasses.replace(APO, microbatch_sequences=0), 8, "objective.microbatch_sequences=0"),
        (dataclasses.replace(APO, importance="word"), 8, "objective.importance=word: must be one of token, sequence"),
        (
            dataclasses.replace(APO, kl=KlConfig(coefficient=0.1, placement="reward")),
            8,
            "objective.kl.placement=reward: must be loss with objective.dads.enabled=true",
        ),
        (
            dataclasses.replace(APO, kl=KlConfig(schedule="grpo_d", maximum=0.1, exploration_share=1.5)),
            8,
            "objective.kl.exploration_share=1.5",
        ),
        (
            dataclasses.replace(
                APO, kl=KlConfig(schedule="grpo_d", maximum=0.1, exploration_share=0.3, exploration_steps=3)
            ),
            8,
            "objective.kl.exploration_steps=3: must be 0 with objective.kl.exploration_share=0.3",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="truncate"), old_logprobs="engine"),
            8,
            "objective.mismatch.correction=truncate: needs objective.old_logprobs=trainer",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="mask", upper=0.0)),
            8,
            "objective.mismatch.upper=0.0",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="mask", lower=3.0)),
            8,
            "objective.mismatch.lower=3.0: 0 <= lower < 1 < upper must hold",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="mask", lower=1.0)),
            8,
            "objective.mismatch.lower=1.0: 0 <= lower < 1 < upper must hold",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="mask", lower=0.1, upper=1.0)),
            8,
            "objective.mismatch.upper=1.0: 0 <= lower < 1 < upper must hold",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="truncate", upper=0.5)),
            8,
            "objective.mismatch.upper=0.5: must be at least 1 with objective.mismatch.correction=truncate",
        ),
        (
            dataclasses.replace(APO, mismatch=MismatchConfig(correction="truncate", lower=0.5)),
            8,
            "objective.mismatch.lower=0.5: must be 0 with objective.mismatch.correction=truncate",
        ),
    ],
)
def test_contradictions_are_refused(settings: ObjectiveConfig, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        validate_objective(settings, group_size, 100)
