"""The shape of a Qwen2.5-VL or Qwen2-VL, read from a Hugging Face ``config.json`` of any generation.

The ``transformers`` config classes are the authority: they read the published flat form (``rope_scaling``) and the
nested form (``rope_parameters``) alike. ``model_type`` decides the family; what follows from it is said by the shape's
own fields, so that nothing else asks for the family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_providers.qwen_vl.config_checks import REMEDY, check_sections, check_values
from model_providers.qwen_vl.layout import Divided


@dataclass(frozen=True)
class VisionTokens:
    """What a model's config says of images and videos in a sequence.

    ``tokens_per_second``: time positions of a video in a second; 0: a temporal patch advances them by one, whatever
    its seconds.
    """

    image_token_id: int
    video_token_id: int
    spatial_merge_size: int
    tokens_per_second: int


@dataclass(frozen=True)
class VisionShape:
    """The vision tower; lengths in pixels for ``patch_size`` and ``window_size``.

    ``window_size`` is 0 where no layer has windows. ``tokens_per_second`` is 0 where a video's time positions count its
    frames, whatever its rate. ``gated``: SwiGLU, else one linear layer, quick GELU, one linear layer.
    """

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
    norm: str = "RMSNorm"  # or "LayerNorm", which has biases
    gated: bool = True

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class QwenVLShape:
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
    model_type: str = "qwen2_5_vl"

    @property
    def vision_tokens(self) -> VisionTokens:
        """What the positions of a sequence depend on."""
        return VisionTokens(
            self.image_token_id, self.video_token_id, self.vision.spatial_merge_size, self.vision.tokens_per_second
        )

    @property
    def divided(self) -> Divided:
        """The sizes that a layout shares between ranks."""
        return Divided(
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            ffn=self.ffn,
            vocab=self.vocab,
            vision_heads=self.vision.heads,
            vision_merger=self.vision.hidden * self.vision.spatial_merge_size**2,
            vision_ffn=self.vision.ffn,
        )


def _config_json(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"model.path={directory}: no config.json there; give a Hugging Face checkpoint directory")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: holds {type(loaded).__name__}, expected an object; copy the file again")
    return loaded


def _classes(raw: dict[str, object]) -> str:
    """What ``config.json`` says of the architecture, where it says something."""
    classes = raw.get("architectures")
    return f" ({', '.join(map(str, classes))})" if isinstance(classes, list) and classes else ""


def _qwen2_5_vl_vision(vision: Any) -> VisionShape:
    return VisionShape(
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
    )


def _qwen2_vl_vision(vision: Any) -> VisionShape:
    return VisionShape(
        hidden=vision.embed_dim,
        layers=vision.depth,
        heads=vision.num_heads,
        ffn=int(vision.embed_dim * vision.mlp_ratio),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        window_size=0,
        full_attention_layers=tuple(range(vision.depth)),
        in_channels=vision.in_channels,
        out_hidden=vision.hidden_size,  # the tower's own width is called embed_dim
        tokens_per_second=0,
        norm="LayerNorm",
        gated=False,
    )


# model_type -> (transformers' config class, the vision tower's shape from it, its activation)
FAMILIES = {
    "qwen2_5_vl": ("Qwen2_5_VLConfig", _qwen2_5_vl_vision, "silu"),
    "qwen2_vl": ("Qwen2VLConfig", _qwen2_vl_vision, "quick_gelu"),
}


def read_shape(directory: str | Path) -> QwenVLShape:
    """Reads the shape of the checkpoint in ``directory``, of either family.

    Raises ValueError when there is no config, when it is of another family, when a value is missing or fits no model,
    or when it asks for something that the providers do not express.
    """
    directory = Path(directory)
    raw = _config_json(directory)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model.path={directory}: model_type is {model_type!r}{_classes(raw)}, expected "
            f"{' or '.join(map(repr, FAMILIES))}; give the directory of a Qwen2.5-VL or Qwen2-VL checkpoint"
        )
    path = directory / "config.json"
    check_sections(path, raw)
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    config_class, vision_shape, activation = FAMILIES[model_type]
    try:
        config = getattr(transformers, config_class).from_dict(raw)
    except (StrictDataclassError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}; {REMEDY}") from error
    text, vision = config.text_config, config.vision_config
    check_values(path, config, activation)
    return QwenVLShape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        ffn=text.intermediate_size,
        vocab=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
        norm_epsilon=text.rms_norm_eps,
        rope_theta=float(text.rope_parameters["rope_theta"]),
        mrope_section=tuple(text.rope_parameters["mrope_section"]),
        max_positions=text.max_position_embeddings,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision=vision_shape(vision),
        model_type=model_type,
    )
