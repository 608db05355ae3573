"""Which layouts fit, what they need, what is written and what is said when nothing fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apo.cli import main
from megatron_apo.config_loading import load_config
from megatron_apo.planning.layouts import GIB, Request, make_plans
from megatron_apo.planning.sizes import KNOWN, find_model
from megatron_apo.planning.state import Parameter, buckets, parameter_count, state_bytes

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


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="--gpus=0: must be at least 1"):
        make_plans(replace(SEVEN, gpus=0))
    with pytest.raises(ValueError, match="--engine-gpus=8: must lie between 1 and 7"):
        make_plans(replace(SEVEN, placement="separate", engine_gpus=8))
    with pytest.raises(ValueError, match="neither a directory .* nor a known size"):
        find_model("Qwen2.5-VL-8B")


def test_written_settings_load_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    command = ["plan", "--model", "Qwen2.5-VL-7B", "--gpus", "8", "--memory", "80", "--json", "--write", str(path)]
    assert main(command) == 0
    best = json.loads(capsys.readouterr().out)["fits"][0]
    config = load_config(path)
    for name in ("tensor", "pipeline", "context", "first_stage_layers", "sequence", "distributed_optimizer"):
        assert getattr(config.parallel, name) == best[name]
    assert config.model.recompute == best["recompute"]
    assert main(command) == 2  # it does not write over a file
