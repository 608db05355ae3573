"""The Transformer Engine spec equals the local one on a GPU, in bfloat16: logits and gradients of packed sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.config import ParallelConfig
from megatron_apo.parallel.groups import initialise, shut_down
from model_providers.qwen_vl.layers import packed_layout
from model_providers.qwen_vl.loading import global_parameters, load_hf_checkpoint, model_rows
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import to_hf
from tests.unit.model_providers.reference import VOCAB, make_checkpoint, model_arguments, pack

Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


def run(directory: Path, groups: Any, layer_spec: str, dtype: torch.dtype) -> Result:
    """Logits and gradients by published name, both in float32."""
    settings = BuildSettings(dtype=dtype, layer_spec=layer_spec)
    model = QwenVLModel(read_shape(directory), settings, pg_collection=groups.collection).cuda()
    load_hf_checkpoint(model, directory, tensor_rank=0, tensor_size=1)
    (ids, positions, layout), images = model_arguments(pack(model.shape.vision.patch_values), model.shape.vision_tokens)
    placed = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in images.items()}
    boundaries = packed_layout(layout.cu_seqlens_q.cuda(), layout.max_seqlen_q)
    logits = model(ids.cuda(), positions.cuda(), boundaries, **placed)[0, :, :VOCAB].float()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).cuda()
    (torch.log_softmax(logits, -1) * weights).sum().backward()
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in global_parameters(model):
        assert parameter.grad is not None, name
        gradients |= {hf: part.float() for hf, part in to_hf(model_rows(model)[name], [parameter.grad])}
    return logits.detach(), gradients


def error(found: Result, exact: Result) -> tuple[float, float]:
    """Largest difference of a logit; largest |g - g'| / max(|g'|, 1e-3 of the global norm) of a tensor."""
    total = torch.stack([gradient.norm() for gradient in exact[1].values()]).norm()
    worst = max(
        float((found[1][name] - gradient).norm() / max(gradient.norm(), 1e-3 * total))
        for name, gradient in exact[1].items()
    )
    return float((found[0] - exact[0]).abs().max()), worst


@pytest.mark.gpu
def test_equals_the_local_spec(tmp_path: Path) -> None:
    """Both bfloat16 results are held against local float32: Transformer Engine may not be further off than local is,
    but for a factor of two between two roundings."""
    pytest.importorskip("transformer_engine.pytorch")
    directory = make_checkpoint(tmp_path / "policy", tied=False)
    groups = initialise(ParallelConfig(), seed=0)
    try:
        exact = run(directory, groups, "local", torch.float32)
        local = error(run(directory, groups, "local", torch.bfloat16), exact)
        fused = error(run(directory, groups, "transformer_engine", torch.bfloat16), exact)
    finally:
        shut_down()
    print(f"\nlocal bfloat16: logits {local[0]:.1e}, gradients {local[1]:.1e}; fused {fused[0]:.1e}, {fused[1]:.1e}")
    assert fused[0] <= 2 * local[0]
    assert fused[1] <= 2 * local[1]
