"""What the vision tower makes for many images: a batched attention a layer, and nothing of patches x patches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.model import QwenVLModel
from tests.unit.model_providers.reference import Grid, build_model, make_checkpoint

# 64, 60, 80, 28 and 4 patches; windows are 4 x 4, whole and ragged.
GRIDS: list[Grid] = [(1, 8, 8), (1, 6, 10), (1, 2, 40), (1, 14, 2), (1, 2, 2)]
WINDOWED_LAYERS, LAYERS = 2, 3


class Watch(TorchDispatchMode):
    """Counts operations by name; ``largest``: elements of the largest tensor of any kind; ``cells``: query-key pairs of
    the forward pass's attention, padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.largest = 0
        self.cells = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.").split(".")[0]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.calls[name] = self.calls.get(name, 0) + 1
        if "scaled_dot_product" in name and not name.endswith("backward"):
            batch, _, queries, _ = args[0].shape
            self.cells += batch * queries * args[1].shape[2]
        for leaf in results:
            self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out

    @property
    def attentions(self) -> int:
        """Calls of SDPA kernels in the forward pass, fused or not."""
        return sum(
            count
            for name, count in self.calls.items()
            if "scaled_dot_product" in name and not name.endswith("backward")
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, one_process: Groups) -> Iterator[dict[str, QwenVLModel]]:
    checkpoint: Path = make_checkpoint(tmp_path_factory.mktemp("policy"), tied=False)
    yield {
        recompute: build_model(checkpoint, one_process, recompute=recompute)
        for recompute in ("none", "selective", "full")
    }


def watch(model: QwenVLModel, grids: list[Grid]) -> Watch:
    """Forward and backward of the vision tower under a ``Watch``."""
    tower = model.vision_model
    assert tower is not None
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), model.shape.vision.patch_values)
    with Watch() as seen:
        tower(pixels, grids).square().sum().backward()
    return seen


def test_one_attention_a_layer_however_many_images(models: dict[str, QwenVLModel]) -> None:
    """Of frames that differ much in size, one for each bucket: here of 60 to 80 patches, and of 28 and 4."""
    assert watch(models["none"], GRIDS[:1]).attentions == LAYERS
    ragged, many = watch(models["none"], GRIDS), watch(models["none"], GRIDS * 4)
    assert ragged.attentions == WINDOWED_LAYERS + 2
    assert many.calls == ragged.calls


def test_small_images_beside_a_large_one_are_cheap(models: dict[str, QwenVLModel]) -> None:
    """A frame of 1,600 patches, and 16 of 4: padded to the large one's they would cost 17 times as much."""
    alone, beside = watch(models["none"], [(1, 40, 40)]), watch(models["none"], [(1, 40, 40)] + [(1, 2, 2)] * 16)
    assert beside.cells < 1.02 * alone.cells


def test_no_tensor_of_patches_by_patches(models: dict[str, QwenVLModel]) -> None:
    """48 images of 944 patches in 4: a dense mask has 2,832^2 elements, our largest tensor is some hundred a patch."""
    grids = GRIDS * 12
    patches = sum(t * h * w for t, h, w in grids)
    assert watch(models["none"], grids).largest < patches * patches // 2


def test_the_largest_tensor_grows_as_the_images(models: dict[str, QwenVLModel]) -> None:
    few, many = (watch(models["none"], GRIDS * count).largest for count in (2, 8))
    assert many <= 4 * few


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recompute_applies_to_the_tower(models: dict[str, QwenVLModel], recompute: str) -> None:
    """Each layer's attention runs once more in the backward pass."""
    assert watch(models[recompute].train(), GRIDS).attentions == 2 * (WINDOWED_LAYERS + 2)
