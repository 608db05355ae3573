"""Logits and every gradient equal transformers' Qwen2.5-VL and Qwen2-VL, for packed sequences of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.weight_map import hf_names, published_name, to_hf
from tests.gradients import BOUND, largest_error
from tests.unit.model_providers.reference import (
    VOCAB,
    build_model,
    make_checkpoint,
    model_arguments,
    pack,
    transformers_logits,
    transformers_model,
)

Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["qwen2_5_vl-untied", "qwen2_5_vl-tied", "qwen2_vl-untied", "qwen2_vl-tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param.split("-")
    return make_checkpoint(tmp_path_factory.mktemp(request.param), tied=tied == "tied", family=family)


def loss_of(logits_TV: torch.Tensor) -> torch.Tensor:
    """A sum in which every token and every vocabulary entry has a weight of its own."""
    weights = torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(5))
    return (torch.log_softmax(logits_TV, -1) * weights).sum()


def from_transformers(checkpoint: Path, dtype: torch.dtype) -> tuple[torch.Tensor, Gradients]:
    model = transformers_model(checkpoint, dtype)
    packed = pack(model.config.vision_config.in_channels * 2 * 14**2)
    logits = torch.cat(transformers_logits(model, packed))
    loss_of(logits).backward()
    return logits.detach(), {published_name(name): p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def references(checkpoint: Path) -> dict[torch.dtype, tuple[torch.Tensor, Gradients]]:
    return {dtype: from_transformers(checkpoint, dtype) for dtype in (torch.float32, torch.float64)}


@pytest.mark.parametrize(
    "settings",
    [{"recompute": "none"}, {"recompute": "selective"}, {"recompute": "full"}, {"vision_ffn_multiple": 1}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_logits_and_gradients_equal_transformers(
    checkpoint: Path,
    references: dict[torch.dtype, tuple[torch.Tensor, Gradients]],
    one_process: Groups,
    settings: dict[str, Any],
) -> None:
    model = build_model(checkpoint, one_process, **settings).train()
    packed = pack(model.shape.vision.patch_values)
    arguments, images = model_arguments(packed, model.shape.vision_tokens)
    logits = model(*arguments, **images)[0, :, :VOCAB]
    loss_of(logits).backward()
    gradients: Gradients = {}
    for name, parameter in global_parameters(model):
        assert parameter.grad is not None, name
        gradients |= dict(to_hf(model_rows(model)[name], [parameter.grad]))

    expected, reference = references[torch.float32]
    exact, exact_gradients = references[torch.float64]
    error, worst = largest_error(gradients, reference)
    floor, floor_worst = largest_error(reference, exact_gradients)
    ours, ours_worst = largest_error(gradients, exact_gradients)
    difference = float((logits.detach() - expected).abs().max())
    noise = float((expected - exact).abs().max())
    print(
        f"\n{checkpoint.name}, {settings}: logits up to {float(expected.abs().max()):.2f} differ by "
        f"{difference:.1e} (transformers fp32 from fp64: {noise:.1e}); gradients by {error:.1e} ({worst}); from fp64: "
        f"transformers {floor:.1e} ({floor_worst}), ours {ours:.1e} ({ours_worst})"
    )
    assert set(gradients) == set(reference) == set(hf_names(model.shape))
    assert difference < 1e-4
    assert error <= BOUND, worst


def test_padding_of_the_vision_ffn_stays_zero(checkpoint: Path, one_process: Groups) -> None:
    """Its gradients are exactly zero, so no update, nor weight decay, moves it."""
    model = build_model(checkpoint, one_process, vision_ffn_multiple=80).train()
    arguments, images = model_arguments(pack(model.shape.vision.patch_values), model.shape.vision_tokens)
    loss_of(model(*arguments, **images)[0]).backward()
    ffn, padded = model.shape.vision.ffn, -(-model.shape.vision.ffn // 80) * 80
    assert padded > ffn
    assert model.vision_model is not None
    for layer in model.vision_model.layers:
        parts = 2 if model.shape.vision.gated else 1
        for tensor in (layer.mlp.linear_fc1.weight, layer.mlp.linear_fc1.bias):
            assert tensor.shape[0] == parts * padded
            for part in (*tensor.chunk(parts), *tensor.grad.chunk(parts)):
                assert not part[ffn:].any()
        for tensor in (layer.mlp.linear_fc2.weight, layer.mlp.linear_fc2.weight.grad):
            assert not tensor[:, ffn:].any()
            assert tensor[:, :ffn].any()


def test_a_sequence_does_not_see_its_neighbours(checkpoint: Path, one_process: Groups) -> None:
    model = build_model(checkpoint, one_process).eval()
    packed = pack(model.shape.vision.patch_values)
    arguments, images = model_arguments(packed, model.shape.vision_tokens)
    with torch.no_grad():
        before = model(*arguments, **images)[0]
        second = len(packed.sequences[0])
        ids = arguments[0].clone()
        ids[0, :second] = torch.where(ids[0, :second] < 280, (ids[0, :second] + 1) % 280, ids[0, :second])
        after = model(ids, *arguments[1:], **images)[0]
    assert not torch.equal(before[:second], after[:second])
    assert torch.equal(before[second:], after[second:])
