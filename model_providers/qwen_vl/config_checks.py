"""What a ``config.json`` must say before a model is built from it: every refusal names the value, the file, the remedy.

``transformers`` fills what is missing with defaults and accepts numbers that fit no model; here they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

REMEDY = "copy the file again from where the weights came from"
_TEXT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
               "vocab_size", "max_position_embeddings")  # fmt: skip
_VISION_SIZES = ("depth", "num_heads", "patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels")
_WINDOWED_SIZES = ("hidden_size", "intermediate_size", "out_hidden_size", "window_size", "tokens_per_second")
# What the weights' shapes do not show of the tower: a default in its place would be found by nobody.
_VISION_UNSEEN = {"qwen2_5_vl": ("num_heads", "window_size", "fullatt_block_indexes"), "qwen2_vl": ("num_heads",)}
_ABBREVIATING = (Version("4.45.dev0"), Version("4.50"))  # from, to: see _is_abbreviated
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id")

_Problem = tuple[str, object, str]  # name, value, what it must be


def refuse(path: Path, problems: Iterator[_Problem]) -> None:
    """ValueError for the first of ``problems``."""
    for name, value, rule in problems:
        raise ValueError(f"{path}: {name}={value!r}: {rule}; {REMEDY}")


def check_sections(path: Path, raw: Mapping[str, object]) -> None:
    """ValueError for a section or a value that is missing, which defaults would replace."""
    refuse(path, _section_problems(raw))
    refuse(path, _vision_section_problems(raw))


def _section_problems(raw: Mapping[str, object]) -> Iterator[_Problem]:
    text, prefix = raw, ""
    if "text_config" in raw:
        nested, prefix = raw["text_config"], "text_config."
        if not isinstance(nested, Mapping):
            yield "text_config", nested, "must be an object with the language model's sizes"
            return
        text = nested
    if not isinstance(raw.get("vision_config"), Mapping):
        yield "vision_config", raw.get("vision_config"), "must be an object with the vision tower's sizes"
    for name in _TEXT_SIZES:
        if name not in text:
            yield f"{prefix}{name}", None, "is missing; must be a whole number above 0"
    if "rms_norm_eps" not in text:
        yield f"{prefix}rms_norm_eps", None, "is missing; must be a number above 0"
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        yield f"{prefix}rope_scaling", rope, "must be an object with mrope_section (rope_parameters in newer files)"
    elif "mrope_section" not in rope:
        yield f"{prefix}rope_scaling", dict(rope), "must have mrope_section, the pairs of time, height and width"
    elif "rope_theta" not in rope and "rope_theta" not in text:
        yield f"{prefix}rope_theta", None, "is missing; must be a number above 0"


def _vision_section_problems(raw: Mapping[str, object]) -> Iterator[_Problem]:
    vision, family = raw["vision_config"], raw.get("model_type")
    assert isinstance(vision, Mapping)
    required = ["tokens_per_second"] if family == "qwen2_5_vl" else []
    if not _is_abbreviated(raw):
        required += _VISION_UNSEEN[str(family)]
    for name in required:
        if name not in vision:
            yield f"vision_config.{name}", None, "is missing; the weights do not show it, and a default may differ"


def _is_abbreviated(raw: Mapping[str, object]) -> bool:
    """Whether transformers 4.45 to 4.49 wrote ``raw``, which leave out of a section what equals its class's defaults.

    Those are the defaults that transformers fills in again. ``tokens_per_second`` is there all the same: no published
    model has the default.
    """
    try:
        version = Version(str(raw.get("transformers_version")))
    except InvalidVersion:
        return False
    return _ABBREVIATING[0] <= version < _ABBREVIATING[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def check_values(path: Path, config: Any, vision_activation: str) -> None:
    """ValueError for the first value in transformers' ``config`` that fits no model, or none that is expressed here."""
    text, vision = config.text_config, config.vision_config
    refuse(path, _size_problems(text, vision))
    refuse(path, _text_problems(text))
    refuse(path, _token_problems(config, text.vocab_size))
    refuse(path, _vision_problems(text, vision, vision_activation))


def _size_problems(text: Any, vision: Any) -> Iterator[_Problem]:
    for name in _TEXT_SIZES:
        if not _is_size(getattr(text, name)):
            yield name, getattr(text, name), "must be a whole number above 0"
    windowed = hasattr(vision, "window_size")
    for name in (*_VISION_SIZES, *(_WINDOWED_SIZES if windowed else ("embed_dim", "hidden_size"))):
        if not _is_size(getattr(vision, name)):
            yield f"vision_config.{name}", getattr(vision, name), "must be a whole number above 0"
    if not windowed and not _is_positive(vision.mlp_ratio):
        yield "vision_config.mlp_ratio", vision.mlp_ratio, "must be a number above 0"
    if not _is_positive(text.rms_norm_eps):
        yield "rms_norm_eps", text.rms_norm_eps, "must be a number above 0"


def _text_problems(text: Any) -> Iterator[_Problem]:
    heads, groups, rope = text.num_attention_heads, text.num_key_value_heads, text.rope_parameters
    size = getattr(text, "head_dim", None)
    if size is None and text.hidden_size % heads:
        yield "num_attention_heads", heads, f"must divide hidden_size={text.hidden_size}"
    if size is not None and not _is_size(size):
        yield "head_dim", size, "must be a whole number above 0"
    if heads % groups:
        yield "num_key_value_heads", groups, f"must divide num_attention_heads={heads}"
    if text.use_sliding_window:
        yield "use_sliding_window", True, "use_sliding_window=true is not supported; these models are published without"
    if text.hidden_act != "silu":
        yield "hidden_act", text.hidden_act, f"hidden_act={text.hidden_act!r} of the language model: must be 'silu'"
    if (kind := rope.get("rope_type", "default")) != "default":
        yield "rope_type", kind, f"rope_type={kind!r} is not supported; only plain mrope is"
    if not _is_positive(rope.get("rope_theta")):
        yield "rope_theta", rope.get("rope_theta"), "must be a number above 0"
    sections, pairs = rope.get("mrope_section"), (size or text.hidden_size // heads) // 2
    if (
        not isinstance(sections, list | tuple)
        or len(sections) != 3
        or not all(map(_is_size, sections))
        or sum(sections) != pairs
    ):
        yield "mrope_section", sections, f"must be three whole numbers that sum to {pairs}, half the head size"


def _token_problems(config: Any, vocab: int) -> Iterator[_Problem]:
    for name in _TOKENS:
        token = getattr(config, name)
        if not isinstance(token, int) or not 0 <= token < vocab:
            yield name, token, f"must lie in the vocabulary, 0 to {vocab - 1}"
    if config.image_token_id == config.video_token_id:
        yield "video_token_id", config.video_token_id, "must differ from image_token_id"


def _vision_problems(text: Any, vision: Any, activation: str) -> Iterator[_Problem]:
    windowed = hasattr(vision, "window_size")
    width = vision.hidden_size if windowed else vision.embed_dim  # Qwen2-VL's hidden_size is the language model's
    if vision.hidden_act != activation:
        rule = f"hidden_act={vision.hidden_act!r} of the vision tower: must be {activation!r}"
        yield "vision_config.hidden_act", vision.hidden_act, rule
    out = getattr(vision, "out_hidden_size", vision.hidden_size)
    if text.hidden_size != out:
        rule = f"the vision tower puts out {out} numbers a token, the language model takes {text.hidden_size}"
        yield "hidden_size", text.hidden_size, rule
    if width % vision.num_heads or width // vision.num_heads % 4:
        rule = f"must divide the tower's width {width} into heads of a multiple of 4 (rows and columns turn half each)"
        yield "vision_config.num_heads", vision.num_heads, rule
    if not windowed:
        return
    side = vision.spatial_merge_size * vision.patch_size
    if vision.window_size < side:
        rule = f"must be at least {side} pixels, one merged patch (spatial_merge_size × patch_size)"
        yield "vision_config.window_size", vision.window_size, rule
    layers = vision.fullatt_block_indexes
    if not isinstance(layers, list | tuple) or not all(
        isinstance(layer, int) and 0 <= layer < vision.depth for layer in layers
    ):
        rule = f"must name layers 0 to {vision.depth - 1} of the tower's {vision.depth}"
        yield "vision_config.fullatt_block_indexes", layers, rule
