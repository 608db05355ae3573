"""What a sequence and an image cost the trainer: plain numbers, so that data needs to know no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_apo.records import PromptImage, TrainingSample

ImageKey = tuple[str, tuple[int, int, int], float]


@dataclass(frozen=True)
class CostModel:
    """Work by what it is proportional to, all in one unit (FLOPs); the default counts tokens alone.

    ``per_token``: a token in the language model's matrix products; ``per_response_token``: in the output projection
    besides, which only response tokens reach; ``per_pair``: a pair (query, earlier or same key) in all its attentions.
    ``per_patch``: a patch in the vision tower's and merger's products; ``per_window_pair`` and ``per_frame_pair``: a
    pair of patches in the layers that attend within windows of ``window`` x ``window`` patches, and in those that
    attend within frames. ``window`` 0: there are no windows.
    """

    per_token: float = 1.0
    per_response_token: float = 0.0
    per_pair: float = 0.0
    per_patch: float = 0.0
    per_window_pair: float = 0.0
    per_frame_pair: float = 0.0
    window: int = 0

    def sequence(self, prompt: int, response: int) -> float:
        """One sequence in the language model: causal attention sees n (n + 1) / 2 pairs."""
        tokens = prompt + response
        pairs = tokens * (tokens + 1) / 2
        return self.per_token * tokens + self.per_response_token * response + self.per_pair * pairs

    def image(self, grid_thw: tuple[int, int, int]) -> float:
        """One image or video in the vision tower. Windows tile it from its top left corner, so edges are ragged."""
        time, height, width = grid_thw
        frame = (height * width) ** 2
        windows = 0
        if self.window:
            windows = _squares(height, self.window) * _squares(width, self.window)
        patches = self.per_patch * height * width
        return time * (patches + self.per_frame_pair * frame + self.per_window_pair * windows)


def _squares(length: int, side: int) -> int:
    """Sum of the squares of the pieces of ``length`` that are ``side`` long, the last one perhaps shorter."""
    return length // side * side**2 + (length % side) ** 2


def image_key(image: PromptImage) -> ImageKey:
    """What makes two images the same pixels to the vision tower: at another rate, other frames of a file are shown."""
    return (image.sha256, image.grid_thw, image.seconds_per_grid)


def image_costs(samples: Sequence[TrainingSample], costs: CostModel) -> list[dict[ImageKey, float]]:
    """The different images of each sample, with what encoding each costs."""
    known: dict[ImageKey, float] = {}
    found = []
    for sample in samples:
        keys = [image_key(image) for image in sample.images]
        for key in keys:
            if key not in known:
                known[key] = costs.image(key[1])
        found.append({key: known[key] for key in keys})
    return found
