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

# Published vision FFNs are 3420, 3456 and 5120 wide. FP8 asks for 16 columns times the tensor ranks: 128 serves up to
# eight ranks, and makes 3456 of 3420.
VISION_FFN_MULTIPLE = 128


def padded_width(width: int, multiple: int) -> int:
    """``width`` rounded up to ``multiple``: how wide the vision FFN is built, whatever the layout."""
    return -(-width // multiple) * multiple


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


def _check_expressible(directory: Path, text: Any, vision: Any, vision_activation: str) -> None:
    rope = text.rope_parameters
    if text.use_sliding_window:
        raise ValueError(f"{directory}: use_sliding_window=true is not supported; these models are published without")
    if text.hidden_act != "silu":
        raise ValueError(f"{directory}: hidden_act={text.hidden_act!r} of the language model: must be 'silu'")
    if vision.hidden_act != vision_activation:
        raise ValueError(
            f"{directory}: hidden_act={vision.hidden_act!r} of the vision tower: must be {vision_activation!r}"
        )
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{directory}: rope_type={rope.get('rope_type')!r} is not supported; only plain mrope is")
    if text.hidden_size != (out := getattr(vision, "out_hidden_size", vision.hidden_size)):
        raise ValueError(f"{directory}: the vision tower puts out {out} numbers a token, the language model takes "
                         f"{text.hidden_size}; its config.json is damaged")  # fmt: skip


def read_shape(directory: str | Path) -> QwenVLShape:
    """Reads the shape of the checkpoint in ``directory``, of either family.

    Raises ValueError when there is no config, when it is of another family, or when it asks for something that the
    providers do not express.
    """
    directory = Path(directory)
    raw = _config_json(directory)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model.path={directory}: model_type is {model_type!r}{_classes(raw)}, expected "
            f"{' or '.join(map(repr, FAMILIES))}; give the directory of a Qwen2.5-VL or Qwen2-VL checkpoint"
        )
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    config_class, vision_shape, activation = FAMILIES[model_type]
    try:
        config = getattr(transformers, config_class).from_dict(raw)
    except (StrictDataclassError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{directory}/config.json: transformers cannot read it ({' '.join(str(error).split())}); copy it again"
        ) from error
    text, vision = config.text_config, config.vision_config
    _check_expressible(directory, text, vision, activation)
    shape = QwenVLShape(
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
    _check_divisions(directory, shape)
    return shape


def _check_divisions(directory: Path, shape: QwenVLShape) -> None:
    for what, whole, part in (
        ("num_attention_heads / num_key_value_heads of the language model", shape.heads, shape.kv_heads),
        ("width / num_heads of the vision tower", shape.vision.hidden, shape.vision.heads),
    ):
        if part < 1 or whole % part:
            raise ValueError(f"{directory}/config.json: {what} = {whole} / {part} leaves a rest; copy the file again")
