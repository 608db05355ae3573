"""Published configs of both generations give one shape; what the provider cannot express is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_providers.qwen_vl.shape import QwenVLShape, VisionShape, read_shape

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SHAPE_3B = QwenVLShape(
    hidden=2048,
    layers=36,
    heads=16,
    kv_heads=2,
    head_size=128,
    ffn=11008,
    vocab=151936,
    tied=True,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    max_positions=128000,
    image_token_id=151655,
    video_token_id=151656,
    vision_start_token_id=151652,
    vision=VisionShape(
        hidden=1280,
        layers=32,
        heads=16,
        ffn=3420,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        full_attention_layers=(7, 15, 23, 31),
        in_channels=3,
        out_hidden=2048,
        tokens_per_second=2,
    ),
)


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_both_forms_give_the_published_shape(form: str) -> None:
    assert read_shape(FIXTURES / form) == SHAPE_3B


def written(directory: Path, form: str, change: dict[str, Any]) -> Path:
    config = json.loads((FIXTURES / form / "config.json").read_text())
    for key, value in change.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_untied_in_the_flat_form(tmp_path: Path) -> None:
    assert not read_shape(written(tmp_path, "flat", {"tie_word_embeddings": False})).tied


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        (
            "flat",
            {"model_type": "llava"},
            "model_type is 'llava', expected 'qwen2_5_vl' or 'qwen2_vl'; give the directory",
        ),
        ("flat", {"model_type": ["qwen2_vl"]}, r"model_type is \['qwen2_vl'\], expected"),
        ("flat", {"use_sliding_window": True}, "use_sliding_window=true is not supported"),
        ("nested", {"text_config.hidden_act": "gelu"}, "hidden_act='gelu' of the language model: must be 'silu'"),
        ("flat", {"vision_config.hidden_act": "gelu"}, "hidden_act='gelu' of the vision tower: must be 'silu'"),
        ("flat", {"vision_config.out_hidden_size": 64}, "puts out 64 numbers a token, the language model takes 2048"),
        ("nested", {"text_config.rope_parameters.rope_type": "yarn"}, "rope_type='yarn' is not supported"),
    ],
)
def test_what_the_provider_cannot_express(tmp_path: Path, form: str, change: dict[str, Any], message: str) -> None:
    if "rope_type" in str(change):
        change = {**change, "text_config.rope_parameters.factor": 4.0}
    with pytest.raises(ValueError, match=message):
        read_shape(written(tmp_path, form, change))


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json there; give a Hugging Face checkpoint directory"):
        read_shape(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "holds list, expected an object")])
def test_a_damaged_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_shape(tmp_path)
