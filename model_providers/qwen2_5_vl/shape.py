"""The shape of a Qwen2.5-VL, read from a Hugging Face ``config.json`` of any generation.

The ``transformers`` config class is the authority: it reads the published flat form (``rope_scaling``) and the nested
form (``rope_parameters``) alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MODEL_TYPE = "qwen2_5_vl"


@dataclass(frozen=True)
class VisionShape:
    """The vision tower; lengths in pixels for ``patch_size`` and ``window_size``."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    full_attention_layers: tuple[int, ...]
    in_channels: int
    out_hidden: int
    tokens_per_second: int

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class Qwen25VLShape:
    """Everything about the architecture that the weights do not say."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    tied: bool
    norm_epsilon: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_positions: int
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision: VisionShape


def _config_json(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"model.path={directory}: no config.json there; give a Hugging Face checkpoint directory")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: holds {type(loaded).__name__}, expected an object; copy the file again")
    return loaded


def read_shape(directory: str | Path) -> Qwen25VLShape:
    """Reads the shape of the checkpoint in ``directory``.

    Raises ValueError when there is no config, when it is not a Qwen2.5-VL's, or when it asks for something that this
    provider does not express.
    """
    from transformers import Qwen2_5_VLConfig

    directory = Path(directory)
    raw = _config_json(directory)
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"model.path={directory}: model_type is {raw.get('model_type')!r}, expected {MODEL_TYPE!r}; "
            "give the directory of a Qwen2.5-VL checkpoint"
        )
    config = Qwen2_5_VLConfig.from_dict(raw)
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    if text.use_sliding_window:
        raise ValueError(f"{directory}: use_sliding_window=true is not supported; Qwen2.5-VL is published without it")
    if text.hidden_act != "silu" or vision.hidden_act != "silu":
        raise ValueError(f"{directory}: hidden_act must be 'silu', found {text.hidden_act!r} and {vision.hidden_act!r}")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{directory}: rope_type={rope.get('rope_type')!r} is not supported; only plain mrope is")
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Qwen25VLShape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_size=head_size,
        ffn=text.intermediate_size,
        vocab=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
        norm_epsilon=text.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        mrope_section=tuple(rope["mrope_section"]),
        max_positions=text.max_position_embeddings,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision=VisionShape(
            hidden=vision.hidden_size,
            layers=vision.depth,
            heads=vision.num_heads,
            ffn=vision.intermediate_size,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            full_attention_layers=tuple(vision.fullatt_block_indexes),
            in_channels=vision.in_channels,
            out_hidden=vision.out_hidden_size,
            tokens_per_second=vision.tokens_per_second,
        ),
    )
