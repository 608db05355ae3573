"""What the images of one microbatch must have in common, before anything is computed from them.

Shape suffixes: T packed tokens, K image tokens, L patches, C values per patch, M merged patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_providers.qwen_vl.shape import VisionShape


def _check_range(name: str, indices_K: torch.Tensor, count: int, what: str) -> None:
    """On the CPU alone: reading a GPU's numbers would make the host wait, and its index kernels assert the range."""
    if indices_K.device.type != "cpu" or not indices_K.numel():
        return
    low, high = int(indices_K.min()), int(indices_K.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name}: {low} to {high}, must lie in 0 to {count - 1}; there are {count} {what}")


def _check_grids(grids: Sequence[tuple[int, int, int]], patches: int, merge: int) -> None:
    for number, grid in enumerate(grids):
        if len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            raise ValueError(
                f"image_grids[{number}]={tuple(grid)}: must be (time, height, width) in patches, all positive, height "
                f"and width multiples of {merge}, the spatial merge"
            )
    expected = sum(time * height * width for time, height, width in grids)
    if expected != patches:
        raise ValueError(
            f"pixel_values_LC: {patches} patches, but the {len(grids)} image_grids ask for {expected} (the sum of time "
            "× height × width); give the patches of each image once, in the order of the grids"
        )


def check_image_inputs(
    vision: VisionShape,
    tokens: int,
    pixel_values_LC: torch.Tensor | None,
    image_grids: Sequence[tuple[int, int, int]],
    image_positions_K: torch.Tensor | None,
    image_features_K: torch.Tensor | None,
    *,
    context: int = 1,
) -> None:
    """ValueError with the numbers when the first stage's image inputs contradict each other or the ``tokens`` T.

    Looks at sizes alone, which the host knows; the indices' range is read where that costs no wait, on the CPU.
    ``context``: ranks that share the sequences; one of several need not show the whole of an image.
    """
    positions = 0 if image_positions_K is None else image_positions_K.numel()
    features = 0 if image_features_K is None else image_features_K.numel()
    if positions != features:
        raise ValueError(
            f"image_positions_K, image_features_K: {positions} positions but {features} features; give each image "
            "token its row of the merged features"
        )
    if pixel_values_LC is None or not pixel_values_LC.shape[0]:
        if positions or len(image_grids):
            raise ValueError(
                f"pixel_values_LC: no patches, but {positions} image_positions_K and {len(image_grids)} image_grids; "
                "give the first stage the images' patches"
            )
        return
    if pixel_values_LC.dim() != 2 or pixel_values_LC.shape[1] != vision.patch_values:
        raise ValueError(
            f"pixel_values_LC: shape {tuple(pixel_values_LC.shape)}, must be [patches, {vision.patch_values}]; flatten "
            "each patch as the model's image processor does"
        )
    _check_grids(image_grids, pixel_values_LC.shape[0], vision.spatial_merge_size)
    merged = pixel_values_LC.shape[0] // vision.spatial_merge_size**2
    if context == 1 and positions < merged:
        raise ValueError(
            f"image_positions_K, image_features_K: {positions} image tokens, but the patches make {merged} merged "
            "features; give each image its tokens' rows, and leave out an image that no token shows"
        )
    if image_positions_K is not None and image_features_K is not None:
        _check_range("image_positions_K", image_positions_K, tokens, "tokens")
        _check_range("image_features_K", image_features_K, merged, "merged patches")
