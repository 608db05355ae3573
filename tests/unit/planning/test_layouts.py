"""Which layouts fit, what they need, what is written and what is said when nothing fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.cli import main
from megatron_apo.config_loading import load_config
from megatron_apo.planning.layouts import GIB, make_plans
from megatron_apo.planning.request import Request
from megatron_apo.planning.sizes import KNOWN, find_model
from megatron_apo.planning.state import Parameter, buckets, parameter_count, stage_parameters, state_bytes

SEVEN = Request(KNOWN["Qwen2.5-VL-7B"], gpus=8, memory_gib=80)


def test_published_parameter_counts() -> None:
    counts = {name: parameter_count(size) for name, size in KNOWN.items()}
    assert counts["Qwen2.5-VL-3B"] == 3_754_622_976
    assert counts["Qwen2.5-VL-7B"] == 8_292_166_656
    assert counts["Qwen2-VL-2B"] == 2_208_985_600
    assert counts["Qwen2-VL-7B"] == 8_291_375_616


def test_buckets_by_hand() -> None:
    """Backwards: c 0..70; b from 128 on, shared: a bucket of its own; a alone. Buckets end at multiples of 128."""
    found = buckets([Parameter("a", 100), Parameter("b", 65, shared=True), Parameter("c", 70)], 2)
    assert found == [(128, [(0, 70)]), (128, [(0, 65)]), (128, [(0, 100)])]
    second = state_bytes([Parameter("a", 100)], dtype="bfloat16", data=2, distributed=True, rank=1)
    assert (second.weights, second.gradients, second.optimizer) == (256, 512, 36 * 12 + 4)


def test_plans_stay_within_memory_and_are_ranked() -> None:
    fit, unfit, refused = make_plans(SEVEN)
    assert fit and unfit
    assert [plan.cost for plan in fit] == sorted(plan.cost for plan in fit)
    assert all(max(plan.training, plan.generation) <= 80 * GIB and plan.kv_tokens >= 65536 for plan in fit)
    assert all(plan.problem for plan in unfit)
    assert any("heads 28 is not a multiple of tensor 8" in reason for reason in refused)
    for plan in fit:
        sizes = plan.layout.parallel
        assert plan.data * sizes.tensor * sizes.pipeline * sizes.context == 8
        assert sum(plan.layers) == 28
        training = sum(size for name, size in plan.memory.items() if name not in ("engine weights", "KV cache"))
        assert training == plan.training


def test_uneven_first_stages_are_considered() -> None:
    fit, _, _ = make_plans(SEVEN)
    assert any(0 < plan.layers[0] < plan.layers[-1] for plan in fit)


def test_separate_engines_have_their_gpus_alone() -> None:
    fit, _, _ = make_plans(replace(SEVEN, placement="separate", engine_gpus=4))
    together, _, _ = make_plans(SEVEN)
    assert all(plan.data * plan.layout.parallel.tensor <= 4 for plan in fit)
    assert fit[0].kv_tokens > max(plan.kv_tokens for plan in together)


def test_nothing_fits_names_every_factor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "Qwen2.5-VL-72B", "--gpus", "2", "--memory", "24"]) == 2
    said = capsys.readouterr().err
    for factor in ("73,410,777,344", "2 GPUs", "24 GiB", "16384 tokens", "16384 patches", "65536 KV", "colocated"):
        assert factor in said
    assert "more GPUs, or GPUs with more memory" in said


@pytest.mark.parametrize(
    ("model", "gpus", "ways"),
    [
        # 20 bytes a parameter (weights, reference, gradients, optimizer 12) are 70 GiB: it is a matter of the last ten
        ("Qwen2.5-VL-3B", 1, ["--no-reference (no KL)", "--tokens 4096 --patches 4096", "--gpus 2", "--gpus 4"]),
        ("Qwen2.5-VL-72B", 16, ["--gpus 32", "--gpus 64"]),
    ],
)
def test_nothing_fits_names_what_would_do(
    model: str, gpus: int, ways: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "--model", model, "--gpus", str(gpus), "--memory", "80"]
    assert main(asked) == 2
    named = capsys.readouterr().err.partition("any one of these would do: ")[2].strip().split("; ")
    assert named == ways
    for way in named:
        assert main([*asked, *way.removesuffix(" (no KL)").split()]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus_per_node": 0}, "--gpus-per-node=0: must be at least 1"),
        ({"gpus": 0}, "--gpus=0: must be at least 1"),
        ({"gpus": 10**6}, "--gpus=1000000: must be at most"),
        ({"memory_gib": -5.0}, "--memory=-5: must be GiB above the reserve of 4"),
        ({"memory_gib": float("inf")}, "--memory=inf"),
        ({"memory_gib": float("nan")}, "--memory=nan"),
        ({"reserve_gib": -1.0}, "--reserve=-1: must be a number of GiB"),
        ({"patches": -1}, "--patches=-1"),
        ({"placement": "separate", "engine_gpus": 8}, "--engine-gpus=8: must lie between 1 and 7"),
        ({"placement": "separate", "gpus": 1}, "--gpus=1: separate rollouts need at least 2"),
        ({"engine_gpus": 4}, "--engine-gpus=4: colocated engines have no GPUs of their own"),
        ({"frozen": ("head",)}, "--freeze=head: must be one of vision, merger, language"),
        ({"frozen": ("vision", "merger", "language")}, "leaves nothing to train"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_plans(replace(SEVEN, **change))


def test_unknown_models_and_directories_are_refused(tmp_path: Path) -> None:
    for name in ("Qwen2.5-VL-8B", str(tmp_path)):
        with pytest.raises(ValueError, match="neither a directory .* nor a known size"):
            find_model(name)


def test_more_data_ranks_hold_less_each_and_together_everything() -> None:
    held = stage_parameters(KNOWN["Qwen2-VL-2B"], tensor=2, first=True, last=True, layers=28)
    elements = sum(parameter.elements for parameter in held)
    for ranks in (1, 3, 64):
        parts = [
            state_bytes(held, dtype="bfloat16", data=ranks, distributed=True, rank=rank).optimizer
            for rank in range(ranks)
        ]
        steps = sum(parts) - 12 * elements  # 4 bytes for every tensor that a rank holds a piece of
        assert 4 * len(held) <= steps <= 4 * (len(held) + ranks - 1 + (ranks > 1))


def test_frozen_parts_are_weights_alone() -> None:
    fit, _, _ = make_plans(replace(SEVEN, frozen=("vision", "merger")))
    whole = {plan.layout: plan for plan in make_plans(SEVEN)[0]}
    alike = [plan for plan in fit if plan.layout in whole]
    assert alike
    for plan in alike:
        before, now = whole[plan.layout].memory, plan.memory
        if len(plan.layers) == 1:
            assert now["gradients"] < before["gradients"] and now["optimizer"] < before["optimizer"]
            assert now["vision"] == 0 < before["vision"]
            assert now["weights"] == pytest.approx(before["weights"], rel=1e-4)


def test_both_phases_add_up_and_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes by hand for 7B on one node: TP 4 x DP 2, bfloat16."""
    assert main(["plan", "--model", "Qwen2.5-VL-7B", "--gpus", "8", "--memory", "80"]) == 0
    said = capsys.readouterr().out
    training, generation = (
        next(line for line in said.splitlines() if line.strip().startswith(phase))
        for phase in ("training:", "generation:")
    )
    shard = 8_292_166_656 / 4 / GIB  # elements of a tensor rank
    for part, size in {"weights": 2 * shard, "gradients": 4 * shard, "optimizer": 12 * shard / 2}.items():
        assert f"{part} {size:.1f}" in training
    assert "the engine sleeps" in training
    assert f"engine weights {2 * 4 * shard:.1f}" in generation and "optimizer" in generation.partition(";")[2]
    for line in (training, generation):
        total, parts = line.partition(":")[2].partition(";")[0].split(" = ")
        assert float(total) == pytest.approx(sum(float(part.split()[-1]) for part in parts.split(" + ")), abs=0.5)


def test_a_recompute_setting_that_saves_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """torch's attention keeps no score matrix: recomputing it keeps as much where sequences are equally long."""
    fit, _, _ = make_plans(SEVEN)
    assert any(plan.layout.recompute == "selective" and not plan.layout.parallel.context > 1 for plan in fit)
    assert main(["plan", "--model", "Qwen2.5-VL-7B", "--gpus", "8", "--memory", "80"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " selective " in line and "+" not in line]
    assert all(row[2] != "1" for row in rows if row[0].isdigit())


def test_the_table_says_each_reason_once_and_what_this_version_does_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    """On three GPUs a node, a tensor size of 3 is impossible with every pipeline and context size."""
    asked = ["plan", "--model", "Qwen2.5-VL-7B", "--gpus", "24", "--gpus-per-node", "3", "--memory", "80"]
    assert main([*asked, "--show", "20"]) == 0
    said = capsys.readouterr().out
    impossible = said.partition("Impossible: ")[2].splitlines()
    wrong = [line.strip() for line in impossible[1:]]
    reasons = [line.rpartition(" (")[0] for line in wrong]
    assert len(set(reasons)) == len(reasons)
    assert len([reason for reason in reasons if reason.startswith("heads 28 is not a multiple of tensor 3")]) == 2
    assert "layers 28 is not a multiple of pipeline 24 and first_stage_layers is not set" in "".join(wrong)
    assert sum(int(line.rpartition("(")[2].split()[0]) for line in wrong) == int(impossible[0].split()[0])
    assert "this version does not do that yet" in said
    assert main([*asked, "--rollout", "separate", "--engine-gpus", "12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(plan["tensor"] <= 3 for plan in [*found["fits"], *found["too_big"]])
    assert any("qkv rows 4608" in reason for reason in found["refused"])  # every size, there


def test_the_stage_that_needs_most_is_named() -> None:
    """Even stages: the first, with the tower. Fewer layers there, and one microbatch without patches: the last."""
    fit, unfit, _ = make_plans(replace(SEVEN, patches=0, microbatches=1))
    stages = {plan.layers: plan.stage for plan in [*fit, *unfit] if plan.layout.parallel.pipeline == 2}
    assert stages[14, 14] == 0 and stages[11, 17] == 1


COMMAND = ["plan", "--model", "Qwen2.5-VL-7B", "--gpus", "8", "--memory", "80"]


def test_written_settings_are_the_plan_and_leave_the_objective_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    assert main([*COMMAND, "--json", "--write", str(path)]) == 0
    best = json.loads(capsys.readouterr().out)["fits"][0]
    config = load_config(path)
    for name in ("tensor", "pipeline", "context", "first_stage_layers", "sequence", "distributed_optimizer"):
        assert getattr(config.parallel, name) == best[name]
    assert config.model.recompute == best["recompute"]
    assert config.objective == load_config(None).objective  # APO with both its parts
    assert config.sync.logprob_gate == 0.05  # bfloat16
    used = config.rollout.gpu_memory_utilization * 80 * GIB
    engine = best["memory"]["engine weights"] + best["kv_cache"]
    assert engine - 0.8 * GIB <= used <= engine  # what the trainer keeps, and its CUDA context, are not vLLM's
    assert main([*COMMAND, "--write", str(path)]) == 2  # it does not write over a file
    assert main([*COMMAND, "--write", str(tmp_path / "none" / "config.yaml")]) == 2


def test_written_settings_freeze_and_drop_the_reference_as_planned(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert main([*COMMAND, "--freeze", "vision,merger", "--no-reference", "--write", str(path)]) == 0
    config = load_config(path)
    assert config.model.freeze_vision and config.model.freeze_merger and not config.model.freeze_language
    assert config.objective.kl.coefficient == 0 and not config.objective.dads.enabled and config.objective.stcr.enabled
    assert config.objective.reduction == load_config(None, []).objective.reduction
