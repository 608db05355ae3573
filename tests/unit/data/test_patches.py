"""Patches are the processor's to the bit, whatever the picture's size; a processor that does otherwise is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_apo.data.patches import cut_patches, normalise, patch_format
from megatron_apo.platform.torchvision_cpu import register_missing_operators


def processor(**settings: Any) -> Any:
    register_missing_operators()
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(**settings)


def noise(width: int, height: int) -> Image.Image:
    """Smooth and rough parts, black, white and full colours."""
    draw = np.random.default_rng(width * 10_000 + height)
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width)[None, :, None]
    pixels[: height // 4, : width // 3] = (255, 0, 7)
    return Image.fromarray(pixels)


SIZES = [(28, 28), (56, 84), (57, 83), (640, 480), (481, 333), (1, 150), (190, 1), (29, 400), (1021, 765), (3, 3)]


@pytest.mark.parametrize("limits", [(56 * 56, 28 * 28 * 1280), (28 * 28 * 4, 28 * 28 * 20), (448 * 448, 448 * 480)])
def test_the_processors_own_pixels(limits: tuple[int, int]) -> None:
    own = processor(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    made_by = patch_format(own, "policy")
    for size in SIZES:
        picture = noise(*size)
        expected = own(images=[picture], return_tensors="pt")
        grid = tuple(expected["image_grid_thw"][0].tolist())
        patches = cut_patches(picture, grid, patch_size=14, merge_size=2)
        assert patches.dtype == torch.uint8 and patches.shape == (grid[1] * grid[2], 3, 196)
        assert torch.equal(normalise(patches, made_by).flatten(1), expected["pixel_values"]), size


def test_other_means_patches_and_frames() -> None:
    own = processor(image_mean=[0.1, 0.5, 0.3], image_std=[0.9, 0.2, 0.31], patch_size=16, temporal_patch_size=3)
    made_by = patch_format(own, "policy")
    expected = own(images=[noise(300, 200)], return_tensors="pt")
    patches = cut_patches(noise(300, 200), tuple(expected["image_grid_thw"][0].tolist()), patch_size=16, merge_size=2)
    assert torch.equal(normalise(patches, made_by).flatten(1), expected["pixel_values"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_normalize": False}, "do_normalize=False, and pictures are cut with do_normalize=True"),
        ({"resample": 2}, "resample=.*2.*, and pictures are cut with resample=3"),
    ],
)
def test_a_processor_of_other_steps(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"model.path=policy: its image processor has {words}"):
        patch_format(processor(**settings), "policy")


def test_a_library_that_resizes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level in one pixel, as another release may round: found before a prompt is made."""
    own = processor()
    resize = type(own).resize

    def off_by_one(self: Any, *args: Any, **named: Any) -> torch.Tensor:
        resized = resize(self, *args, **named).clone()
        resized[..., 5, 7] ^= 1
        return resized

    monkeypatch.setattr(type(own), "resize", off_by_one)
    with pytest.raises(ValueError, match="makes other pixels of a picture than the trainer does"):
        patch_format(own, "policy")
