"""A small model of each family with every tensor random, sequences of every kind, and transformers' results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.layers import packed_layout
from model_providers.qwen_vl.loading import load_hf_checkpoint
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.mrope import mrope_position_ids
from model_providers.qwen_vl.shape import VisionTokens, read_shape

IMAGE, VIDEO, START, END, VOCAB = 290, 291, 292, 293, 301
Grid = tuple[int, int, int]

# Windows are 4 x 4 patches: whole, ragged on one or both sides, one merged patch, and 1:20.
GRIDS: dict[str, Grid] = {
    "whole": (1, 8, 8),
    "ragged": (1, 6, 10),
    "smallest": (1, 2, 2),
    "wide": (1, 2, 40),
    "tall": (1, 14, 2),
    "clip": (3, 4, 10),
    "film": (2, 8, 2),
}
# Seconds from one temporal patch of a video to the next; with two positions a second the clip's are 0, 1 and 3.
SECONDS: dict[str, float] = {"clip": 0.75, "film": 1.0}
# (images of the prompt, response tokens); "ragged" is shown by two sequences and encoded once.
SEQUENCES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("whole",), 5),
    (("ragged", "smallest", "tall"), 9),
    ((), 7),
    (("wide",), 1),
    (("ragged",), 4),
    ((), 1),
    (("clip",), 3),
    (("film", "ragged", "clip"), 2),
)


def config(*, tied: bool, family: str = "qwen2_5_vl") -> Any:
    """Sizes of which no two are equal by accident: a swapped dimension does not fit."""
    from transformers import AutoConfig

    text = dict(
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=184,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    )
    vision = dict(depth=3, num_heads=2, patch_size=14, spatial_merge_size=2, in_channels=3, temporal_patch_size=2)
    if family == "qwen2_5_vl":
        vision |= dict(hidden_size=64, intermediate_size=100, out_hidden_size=128, tokens_per_second=2)
        vision |= dict(window_size=56, fullatt_block_indexes=[1])
    else:
        vision |= dict(embed_dim=64, mlp_ratio=3, hidden_size=128)
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
    )


def make_checkpoint(
    directory: Path, *, tied: bool, dtype: torch.dtype = torch.float32, family: str = "qwen2_5_vl"
) -> Path:
    """A published checkpoint with every tensor random, norm weights and biases too."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(config(tied=tied, family=family))
    randomise(model, seed=1)
    model.to(dtype).save_pretrained(directory)
    return directory


def randomise(model: torch.nn.Module, *, seed: int) -> None:
    """Gives every parameter random values, norm weights around 1 and the others around 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if ("norm" in name or "ln_q" in name) and not name.endswith("bias") else 0.0
            parameter.copy_(centre + 0.08 * torch.randn(parameter.shape, generator=generator))


@dataclass(frozen=True)
class Packed:
    """The sequences, packed, and each of them alone."""

    prompts: list[list[int]]
    responses: list[list[int]]
    images: list[tuple[str, ...]]
    pixels: dict[str, torch.Tensor]

    @property
    def sequences(self) -> list[list[int]]:
        return [p + r for p, r in zip(self.prompts, self.responses, strict=True)]

    def grids(self, index: int) -> list[Grid]:
        return [GRIDS[name] for name in self.images[index]]


def pack(patch_values: int, *, seed: int = 3) -> Packed:
    """``SEQUENCES`` with random tokens and pixels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(0, 280, (count,), generator=generator).tolist()

    pixels = {name: torch.randn(t * h * w, patch_values, generator=generator) for name, (t, h, w) in GRIDS.items()}
    prompts = []
    for images, _ in SEQUENCES:
        prompt = draw(4)
        for name in images:
            t, h, w = GRIDS[name]
            prompt += [START, *[VIDEO if name in SECONDS else IMAGE] * (t * h * w // 4), END, *draw(2)]
        prompts.append(prompt)
    return Packed(prompts, [draw(count) for _, count in SEQUENCES], [images for images, _ in SEQUENCES], pixels)


def build_model(directory: Path, groups: Groups, **settings: Any) -> QwenVLModel:
    """The provider's model with the checkpoint's weights."""
    model = QwenVLModel(read_shape(directory), BuildSettings(**settings), pg_collection=groups.collection)
    load_hf_checkpoint(model, directory, tensor_rank=0, tensor_size=1)
    return model


def model_arguments(packed: Packed, tokens: VisionTokens) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the provider's forward takes for all sequences at once."""
    distinct = list(dict.fromkeys(name for images in packed.images for name in images))
    first_row, row = {}, 0
    for name in distinct:
        first_row[name] = row
        row += len(packed.pixels[name]) // 4
    features = [
        torch.arange(len(packed.pixels[name]) // 4) + first_row[name] for images in packed.images for name in images
    ]
    positions = [
        mrope_position_ids(
            prompt, len(response), packed.grids(i), tokens, [SECONDS.get(name, 0.0) for name in packed.images[i]]
        )
        for i, (prompt, response) in enumerate(zip(packed.prompts, packed.responses, strict=True))
    ]
    lengths = [len(sequence) for sequence in packed.sequences]
    boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids = torch.tensor([[token for sequence in packed.sequences for token in sequence]])
    return (ids, torch.cat(positions, dim=1)[:, None], packed_layout(boundaries, max(lengths))), {
        "pixel_values_LC": torch.cat([packed.pixels[name] for name in distinct]),
        "image_grids": [GRIDS[name] for name in distinct],
        "image_positions_K": torch.isin(ids[0], torch.tensor([IMAGE, VIDEO])).nonzero().squeeze(1),
        "image_features_K": torch.cat(features),
    }


def transformers_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model; in float64 its norms too, which otherwise compute in float32."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).to(dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = MethodType(_norm_in_own_precision, module)
    return model.eval()


def _norm_in_own_precision(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


Shown = tuple[torch.Tensor, Grid, float]  # patches, their grid, and the seconds between a video's temporal patches


def transformers_logits_of(
    model: Any, sequence: Sequence[int], shown: Sequence[Shown], positions_3T: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits [tokens, V] of one sequence and its images and videos; transformers finds the positions if not given."""
    ids = torch.tensor([sequence])
    given: dict[str, Any] = {}
    for videos, pixels, grids in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [each for each in shown if bool(each[2]) == videos]
        if chosen:
            given[pixels] = torch.cat([patches for patches, _, _ in chosen]).to(next(model.parameters()).dtype)
            given[grids] = torch.tensor([grid for _, grid, _ in chosen])
            if videos and model.config.model_type == "qwen2_5_vl":
                given["second_per_grid_ts"] = torch.tensor([seconds for _, _, seconds in chosen])
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if positions_3T is not None:
        # Without a mask transformers takes positions that do not count up by one for the starts of packed sequences.
        given |= {"position_ids": positions_3T[:, None], "attention_mask": torch.ones_like(ids)}
    logits: torch.Tensor = model(input_ids=ids, mm_token_type_ids=kinds, **given).logits[0]
    return logits


def transformers_logits(model: Any, packed: Packed) -> list[torch.Tensor]:
    """Logits [tokens, V] of each sequence on its own."""
    return [
        transformers_logits_of(
            model, sequence, [(packed.pixels[name], GRIDS[name], SECONDS.get(name, 0.0)) for name in images]
        )
        for sequence, images in zip(packed.sequences, packed.images, strict=True)
    ]
