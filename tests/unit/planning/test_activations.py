"""What the planner says a microbatch leaves for the backward pass, against what autograd really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from megatron_apo.planning import activations
from megatron_apo.planning.activations import Budget
from megatron_apo.planning.sizes import find_model
from model_providers.qwen_vl.layers import packed_layout
from tests.unit.model_providers.reference import build_model, make_checkpoint

TOKENS, SEQUENCES = 512, 4
GRIDS = [(1, 16, 16)] * 2  # 56 x 56 pixel windows of 4 x 4 patches: all windows and frames equally long
PATCHES = 512
ONCE = 6  # bytes a token and value of a head, kept once and not planned: the float32 rotary angles, indices, boundaries
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), tied=True, family=request.param)


class Saved:
    """Bytes of the storages that autograd keeps, parameters and buffers left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._known = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive: an address must not be used twice

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._storages[storage.data_ptr()] = storage
        return tensor

    def __enter__(self) -> Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_planned_is_what_autograd_keeps(
    dtype: str, recompute: str, checkpoint: Path, one_process: Groups
) -> None:
    model = build_model(checkpoint, one_process, dtype=DTYPES[dtype], recompute=recompute)
    size, budget = find_model(str(checkpoint)), Budget(TOKENS, PATCHES, dtype)

    boundaries = torch.arange(0, TOKENS + 1, TOKENS // SEQUENCES, dtype=torch.int32)
    position = torch.arange(TOKENS // SEQUENCES).repeat(SEQUENCES).expand(3, 1, TOKENS)
    with Saved(model) as kept:
        hidden = model(
            torch.arange(TOKENS)[None] % 280, position, packed_layout(boundaries, TOKENS // SEQUENCES), output="hidden"
        )
    planned = activations.language_layers(size, budget, size.layers, recompute=recompute)
    planned += activations.final_norm(size, budget)
    assert hidden.requires_grad
    assert planned <= kept.bytes() <= 1.005 * planned + TOKENS * ONCE * size.head_size

    patches = torch.randn(PATCHES, size.v_patch_values, generator=torch.Generator().manual_seed(0))
    with Saved(model) as kept:
        features = model.vision_model(patches, GRIDS)
    planned = activations.vision_tower(size, budget, recompute=recompute)
    assert features.requires_grad
    assert planned <= kept.bytes() <= 1.005 * planned + PATCHES * ONCE * size.v_hidden // size.v_heads
