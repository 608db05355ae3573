"""Angles of the multimodal rotary positions (arXiv:2409.12191, section 2.1), for Megatron-Core's language model.

Shape suffixes: T packed tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class MultimodalAngles(torch.nn.Module):
    """In the place of Megatron-Core's ``MultimodalRotaryEmbedding``, whose two faults it has not.

    Megatron's multiplies positions and frequencies as matrices: where TF32 is allowed, they are rounded to 11 bits, and
    positions above 2048 run together. And it cuts the angles over context ranks, though the positions are cut already.
    """

    def __init__(self, head_size: int, base: float) -> None:
        super().__init__()
        # On the CPU even where the model is built on the meta device; no buffer: it stays float32 in a bfloat16 model.
        exponent = torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size
        self.inv_freq = 1.0 / base**exponent

    def forward(self, position_ids: torch.Tensor, mrope_section: Sequence[int], cp_group: Any = None) -> torch.Tensor:
        """int64 [3, 1, T] -> float32 [T, 1, 1, D]: each section of the frequencies turns by its own axis's position."""
        self.inv_freq = self.inv_freq.to(position_ids.device)
        angles = position_ids[..., None].float() * self.inv_freq
        axes = [part[axis] for axis, part in enumerate(angles.split(list(mrope_section), dim=-1))]
        half = torch.cat(axes, dim=-1)
        return torch.cat((half, half), dim=-1).transpose(0, 1)[:, :, None].contiguous()
