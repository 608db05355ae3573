"""Images that do not match each other are refused with their numbers, before anything is computed from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.image_inputs import check_image_inputs
from model_providers.qwen_vl.model import QwenVLModel
from tests.unit.model_providers.reference import GRIDS, SEQUENCES, build_model, make_checkpoint, model_arguments, pack

PATCHES = sum(t * h * w for t, h, w in GRIDS.values())
MERGED = PATCHES // 4
Images = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, one_process: Groups) -> QwenVLModel:
    return build_model(make_checkpoint(tmp_path_factory.mktemp("images"), tied=True), one_process).eval()


@pytest.fixture
def fed(model: QwenVLModel) -> tuple[tuple[Any, ...], Images]:
    return model_arguments(pack(model.shape.vision.patch_values), model.shape.vision_tokens)


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[Images], Images]:
    return lambda images: images | {name: change(images[name])}


def without(*names: str) -> Callable[[Images], Images]:
    return lambda images: images | dict.fromkeys(names)


def last(value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.cat((tensor[:-1], torch.tensor([value])))


def both_cut(rows: int) -> Callable[[Images], Images]:
    names = ("image_positions_K", "image_features_K")
    return lambda images: images | {name: images[name][:rows] for name in names}


SHOWN = sum(math.prod(GRIDS[name]) // 4 for images, _ in SEQUENCES for name in images)  # image tokens, shared ones too
MISFED: dict[str, tuple[Callable[[Images], Images], str]] = {
    "patches too many": (
        replaced("pixel_values_LC", lambda pixels: torch.cat((pixels, pixels[:4]))),
        f"pixel_values_LC: {PATCHES + 4} patches, but the {len(GRIDS)} image_grids ask for {PATCHES}",
    ),
    "patches too few": (replaced("pixel_values_LC", lambda pixels: pixels[:-1]), f"pixel_values_LC: {PATCHES - 1} "),
    "a grid too few": (replaced("image_grids", lambda grids: grids[:-1]), f"but the {len(GRIDS) - 1} image_grids ask"),
    "positions too few": (
        replaced("image_positions_K", lambda rows: rows[:-3]),
        f"{SHOWN - 3} positions but {SHOWN} features",
    ),
    "features too few": (
        replaced("image_features_K", lambda rows: rows[:-3]),
        f"{SHOWN} positions but {SHOWN - 3} features",
    ),
    "tokens too few": (
        both_cut(MERGED - 3),
        f"{MERGED - 3} image tokens, but the patches make {MERGED} merged features",
    ),
    "no tokens": (both_cut(0), f"0 image tokens, but the patches make {MERGED} merged features"),
    "no patches": (without("pixel_values_LC"), f"pixel_values_LC: no patches, but {SHOWN} image_positions_K and"),
    "empty patches": (replaced("pixel_values_LC", lambda pixels: pixels[:0]), "pixel_values_LC: no patches, but"),
    "no positions": (without("image_positions_K"), f"0 positions but {SHOWN} features"),
    "no indices": (without("image_positions_K", "image_features_K"), "0 image tokens, but the patches make"),
    "a feature too far": (
        replaced("image_features_K", last(MERGED)),
        f"image_features_K: 0 to {MERGED}, must lie in 0 to {MERGED - 1}; there are {MERGED} merged patches",
    ),
    "a feature below 0": (replaced("image_features_K", last(-1)), "image_features_K: -1 to "),
    "a position too far": (replaced("image_positions_K", last(100000)), "to 100000, must lie in 0 to "),
    "a position below 0": (replaced("image_positions_K", last(-2)), "image_positions_K: -2 to "),
    "narrow patches": (
        replaced("pixel_values_LC", lambda pixels: pixels[:, :-1]),
        f"pixel_values_LC: shape ({PATCHES}, 1175), must be [patches, 1176]",
    ),
    "a grid that does not merge": (
        replaced("image_grids", lambda grids: [(1, 3, 4), *grids[1:]]),
        "image_grids[0]=(1, 3, 4): must be (time, height, width) in patches, all positive",
    ),
    "an empty grid": (replaced("image_grids", lambda grids: [*grids, (0, 2, 2)]), "image_grids[7]=(0, 2, 2): must be"),
    "a flat grid": (replaced("image_grids", lambda grids: [(8, 8), *grids[1:]]), "image_grids[0]=(8, 8): must be"),
}


@pytest.mark.parametrize("name", MISFED)
def test_misfed_images_are_refused(model: QwenVLModel, fed: tuple[tuple[Any, ...], Images], name: str) -> None:
    arguments, images = fed
    misfeed, message = MISFED[name]
    with torch.no_grad(), pytest.raises(ValueError, match=re.escape(message)):
        model(*arguments, **misfeed(images))


def test_images_as_they_should_be(model: QwenVLModel, fed: tuple[tuple[Any, ...], Images]) -> None:
    """Those of the table before they are spoilt, and no images in either spelling."""
    arguments, images = fed
    assert images["image_positions_K"].numel() == SHOWN and len(images["pixel_values_LC"]) == PATCHES
    nothing = torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        shown = model(*arguments, **images)
        none = model(*arguments)
        empty = model(
            *arguments,
            pixel_values_LC=images["pixel_values_LC"][:0],
            image_grids=[],
            image_positions_K=nothing,
            image_features_K=nothing,
        )
    assert torch.equal(none, empty) and not torch.equal(none, shown)


def test_only_sizes_are_read_of_tensors_elsewhere(model: QwenVLModel) -> None:
    """As on a GPU, whose numbers cost a wait: tensors without any (meta) pass, and their sizes are still checked."""
    with torch.device("meta"):
        pixels, indices = torch.empty(16, 1176), torch.empty(4, dtype=torch.int64)
    check_image_inputs(model.shape.vision, 9, pixels, [(1, 4, 4)], indices, indices)
    with pytest.raises(ValueError, match="16 patches, but the 1 image_grids ask for 24"):
        check_image_inputs(model.shape.vision, 9, pixels, [(1, 4, 6)], indices, indices)


def test_a_context_rank_may_show_a_part_of_an_image(model: QwenVLModel) -> None:
    pixels, rows = torch.zeros(16, 1176), torch.arange(3)
    check_image_inputs(model.shape.vision, 9, pixels, [(1, 4, 4)], rows, rows, context=2)
    with pytest.raises(ValueError, match="3 image tokens, but the patches make 4 merged features"):
        check_image_inputs(model.shape.vision, 9, pixels, [(1, 4, 4)], rows, rows)
