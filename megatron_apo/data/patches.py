"""From a picture to the patches a Qwen-VL vision tower takes, by the steps of the checkpoint's processor.

The same resizing by the same library and the same arithmetic, bit for bit, in another order: patches are cut from the
8-bit picture and normalised when they are needed. That is an eighth of the bytes to keep and to send (no float32, and
each frame once where the processor repeats a still image ``temporal_patch_size`` times), at a third of the time.

Shape suffixes: L patches, H channels (3), P pixels of a patch, C values per patch (H x frames x P).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

# Nothing is written to the bytes that Pillow gives.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

CHANNELS = 3
_BICUBIC = 3  # Pillow's number, which processors are saved with


@dataclass(frozen=True)
class PatchFormat:
    """What a processor does to pictures: pixels a side of a patch, patches a side of an image token, frames a still
    image stands for; ``mean`` and ``std`` by channel, of values that ``rescale_factor`` brought to 0 … 1."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float


def patch_format(image_processor: Any, directory: object) -> PatchFormat:
    """That of a transformers image processor, loaded from ``directory``; ValueError for one that does other steps."""
    steps = {name: True for name in ("do_resize", "do_rescale", "do_normalize")} | {"resample": _BICUBIC}
    for name, value in steps.items():
        found = getattr(image_processor, name)
        if found != value:
            raise ValueError(
                f"model.path={directory}: its image processor has {name}={found}, and pictures are cut with "
                f"{name}={value}, as every Qwen2-VL and Qwen2.5-VL was trained; restore its preprocessor_config.json"
            )
    found_format = PatchFormat(
        patch_size=image_processor.patch_size,
        merge_size=image_processor.merge_size,
        temporal_patch_size=image_processor.temporal_patch_size,
        mean=tuple(image_processor.image_mean),
        std=tuple(image_processor.image_std),
        rescale_factor=image_processor.rescale_factor,
    )
    _check_equal(image_processor, found_format, directory)
    return found_format


def cut_patches(
    picture: Image.Image,
    grid_thw: tuple[int, int, int],
    *,
    patch_size: int,
    merge_size: int,
    out: memoryview | None = None,
) -> torch.Tensor:
    """uint8 [L, H, P]: ``picture`` (RGB) resized to the grid, its patches in the order of the tower's image tokens.

    ``out``: L x H x P bytes of the caller's to put them into.
    """
    _, rows, columns = grid_thw
    size = (rows * patch_size, columns * patch_size)
    # Four bytes a pixel, as Pillow has them: torch resizes those in half the time of three.
    pixels = torch.frombuffer(picture.tobytes("raw", "RGBX"), dtype=torch.uint8)
    planes = pixels.view(1, picture.height, picture.width, CHANNELS + 1).permute(0, 3, 1, 2)
    if planes.shape[2:] != size:
        planes = functional.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    items = _planar(planes[0].permute(1, 2, 0)).numpy().view(f"V{patch_size}")
    tokens = (CHANNELS, rows // merge_size, merge_size, patch_size, columns // merge_size, merge_size)
    # A patch's row of pixels is one item to numpy: a copy of items is several times faster than one of bytes.
    ordered = items.reshape(tokens).transpose(1, 4, 2, 5, 0, 3)
    into = np.empty(items.size, items.dtype) if out is None else np.frombuffer(out, items.dtype)
    into.reshape(ordered.shape)[:] = ordered
    return torch.from_numpy(into.view(np.uint8)).view(rows * columns, CHANNELS, patch_size**2)


def _planar(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [3, height, width] of uint8 [height, width, 4]; through whole pixels, in half the time of bytes."""
    whole = pixels.contiguous().view(torch.int32)[..., 0]
    planes = torch.empty((CHANNELS, *whole.shape), dtype=torch.uint8)
    for channel, plane in enumerate(planes):
        plane.copy_(whole >> 8 * channel)  # the lowest byte: the first in memory
    return planes


def normalise(patches_LHP: torch.Tensor, made_by: PatchFormat) -> torch.Tensor:
    """float32 [L, H, frames, P] of uint8 [L, H, P], on its device: each value is (v - mean) / std.

    The frames are one in memory; ``flatten(1)`` writes them out as the tower's input, [L, C].
    """
    device = patches_LHP.device
    # The processor's own expressions: another grouping of the same product rounds differently.
    mean = torch.tensor(made_by.mean, device=device) * (1.0 / made_by.rescale_factor)
    std = torch.tensor(made_by.std, device=device) * (1.0 / made_by.rescale_factor)
    values = patches_LHP.to(torch.float32).sub_(mean[:, None]).div_(std[:, None])
    return values[:, :, None].expand(-1, -1, made_by.temporal_patch_size, -1)


def _check_equal(image_processor: Any, made_by: PatchFormat, directory: object) -> None:
    """One picture both ways: another release of a library may resize otherwise, and engines run the processor."""
    token = made_by.patch_size * made_by.merge_size
    height, width = 2 * token, 3 * token
    values = np.arange((height + 5) * (width - 3) * CHANNELS, dtype=np.int64) * 2654435761 >> 13
    picture = Image.fromarray((values % 256).astype(np.uint8).reshape(height + 5, width - 3, CHANNELS))
    limits = {"shortest_edge": token**2, "longest_edge": height * width}
    output = image_processor(images=[picture], size=limits, return_tensors="pt")
    grid = tuple(output["image_grid_thw"][0].tolist())
    patches = cut_patches(picture, grid, patch_size=made_by.patch_size, merge_size=made_by.merge_size)
    if not torch.equal(normalise(patches, made_by).flatten(1), output["pixel_values"].to(torch.float32)):
        raise ValueError(
            f"model.path={directory}: its image processor ({type(image_processor).__name__}) makes other pixels of a "
            "picture than the trainer does; install the releases of transformers, torchvision and torch that "
            "setup.py names"
        )
