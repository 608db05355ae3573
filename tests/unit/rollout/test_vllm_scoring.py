"""The check that vLLM's vision tower computed with the pixel values that the other backends get."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_apo.records import Prompt, PromptImage
from megatron_apo.rollout.vllm.scoring import PixelRecorder, check_pixels

IMAGES = (PromptImage("small.png", "s", (1, 2, 2)), PromptImage("large.png", "l", (1, 2, 4)))
PIXELS = {"s": torch.randn(4, 6), "l": torch.randn(8, 6)}
PROMPT = Prompt("p", (1,), (1,), IMAGES, "?", "4")


class Tower(torch.nn.Module):
    """Takes patches as vLLM's vision towers do."""

    def forward(self, x: torch.Tensor, grid_thw: list[list[int]]) -> torch.Tensor:
        return x


def seen_by(tower: Tower, pixels: torch.Tensor) -> list[str]:
    recorder = PixelRecorder()
    recorder.model_runner = SimpleNamespace(get_model=lambda: SimpleNamespace(visual=tower))
    recorder.record_pixels()
    tower(pixels, grid_thw=[list(image.grid_thw) for image in IMAGES])
    return recorder.recorded_pixels()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_of_a_batch_are_told_apart(dtype: torch.dtype) -> None:
    seen = seen_by(Tower(), torch.cat([PIXELS["s"], PIXELS["l"]]).to(dtype))
    assert len(seen) == 2
    check_pixels([PROMPT], lambda image: PIXELS[image.sha256], dtype, seen)


def test_other_pixels_are_named() -> None:
    moved = PIXELS["l"].clone()
    moved[3, 3] = torch.nextafter(moved[3, 3], torch.tensor(9.0))
    seen = seen_by(Tower(), torch.cat([PIXELS["s"], moved]))
    with pytest.raises(ValueError, match="image large.png: vLLM's vision tower did not get"):
        check_pixels([PROMPT], lambda image: PIXELS[image.sha256], torch.float32, seen)
