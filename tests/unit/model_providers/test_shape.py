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


MISSING = object()
PUBLISHED_QWEN2_VL = "published/qwen2_vl_7b/flat"


def written(directory: Path, form: str, change: dict[str, Any]) -> Path:
    config = json.loads((FIXTURES / form / "config.json").read_text())
    for key, value in change.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        if value is MISSING:
            del place[name]
        else:
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
            r"model_type is 'llava' \(Qwen2_5_VLForConditionalGeneration\), expected 'qwen2_5_vl' or 'qwen2_vl'; give",
        ),
        ("flat", {"model_type": ["qwen2_vl"]}, r"model_type is \['qwen2_vl'\] \(.*\), expected"),
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


# (form, changes, name and value in the message, what it must be); the fixtures' 3B has hidden 2048, 16 heads of 128.
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("flat", {"rope_scaling": MISSING}, "rope_scaling=None", "must be an object with mrope_section"),
    ("flat", {"rope_scaling": None}, "rope_scaling=None", "must be an object with mrope_section"),
    ("flat", {"rope_scaling": 7}, "rope_scaling=7", "must be an object with mrope_section"),
    ("flat", {"rope_scaling": {"type": "mrope"}}, "rope_scaling={'type': 'mrope'}", "must have mrope_section"),
    ("nested", {"text_config.rope_parameters": MISSING}, "text_config.rope_scaling=None", "must be an object with"),
    ("nested", {"text_config.rope_parameters": None}, "text_config.rope_scaling=None", "must be an object with"),
    ("flat", {"rope_scaling.mrope_section": [16, 24, 20]}, "mrope_section=[16, 24, 20]", "that sum to 64"),
    ("flat", {"rope_scaling.mrope_section": [32, 32]}, "mrope_section=[32, 32]", "must be three whole numbers"),
    ("flat", {"rope_scaling.mrope_section": [0, 32, 32]}, "mrope_section=[0, 32, 32]", "must be three whole numbers"),
    ("flat", {"rope_scaling.mrope_section": "abc"}, "mrope_section='abc'", "must be three whole numbers"),
    ("flat", {"rope_theta": -1.0}, "rope_theta=-1.0", "must be a number above 0"),
    ("flat", {"hidden_size": "abc"}, "'hidden_size' expected int, got str (value: 'abc')", ""),
    ("flat", {"vision_config.depth": "abc"}, "'depth' expected int, got str (value: 'abc')", ""),
    ("flat", {"hidden_size": MISSING}, "hidden_size=None", "is missing; must be a whole number above 0"),
    ("flat", {"rms_norm_eps": MISSING}, "rms_norm_eps=None", "is missing; must be a number above 0"),
    ("nested", {"text_config.rms_norm_eps": MISSING}, "text_config.rms_norm_eps=None", "is missing; must be a number"),
    ("flat", {"rope_theta": MISSING}, "rope_theta=None", "is missing; must be a number above 0"),
    ("nested", {"text_config.rope_parameters.rope_theta": MISSING}, "text_config.rope_theta=None", "is missing"),
    *(
        (form, {f"vision_config.{name}": MISSING}, f"vision_config.{name}=None", "is missing; the weights do not show")
        for form in ("flat", "nested")
        for name in ("tokens_per_second", "window_size", "fullatt_block_indexes", "num_heads")
    ),
    (PUBLISHED_QWEN2_VL, {"vision_config.num_heads": MISSING}, "vision_config.num_heads=None", "is missing"),
    (PUBLISHED_QWEN2_VL, {"rms_norm_eps": MISSING}, "rms_norm_eps=None", "is missing; must be a number above 0"),
    ("nested", {"text_config.vocab_size": MISSING}, "text_config.vocab_size=None", "is missing"),
    ("nested", {"text_config": None}, "text_config=None", "must be an object with the language model's sizes"),
    ("flat", {"vision_config": MISSING}, "vision_config=None", "must be an object with the vision tower's sizes"),
    ("nested", {"vision_config": 5}, "vision_config=5", "must be an object with the vision tower's sizes"),
    ("flat", {"num_hidden_layers": 0}, "num_hidden_layers=0", "must be a whole number above 0"),
    ("flat", {"num_key_value_heads": True}, "num_key_value_heads", ""),
    ("flat", {"rms_norm_eps": 0.0}, "rms_norm_eps=0.0", "must be a number above 0"),
    ("flat", {"num_attention_heads": 3}, "num_attention_heads=3", "must divide hidden_size=2048"),
    ("flat", {"num_key_value_heads": 3}, "num_key_value_heads=3", "must divide num_attention_heads=16"),
    ("flat", {"image_token_id": 151936}, "image_token_id=151936", "must lie in the vocabulary, 0 to 151935"),
    ("flat", {"video_token_id": 151655}, "video_token_id=151655", "must differ from image_token_id"),
    ("flat", {"vision_config.window_size": 14}, "vision_config.window_size=14", "must be at least 28 pixels"),
    ("flat", {"vision_config.num_heads": 3}, "vision_config.num_heads=3", "must divide the tower's width 1280"),
    ("flat", {"vision_config.num_heads": 640}, "vision_config.num_heads=640", "heads of a multiple of 4"),
    ("flat", {"vision_config.patch_size": 0}, "vision_config.patch_size=0", "must be a whole number above 0"),
    (
        "flat",
        {"vision_config.fullatt_block_indexes": [99]},
        "vision_config.fullatt_block_indexes=[99]",
        "must name layers 0 to 31",
    ),
    (PUBLISHED_QWEN2_VL, {"vision_config.num_heads": 3}, "vision_config.num_heads=3", "must divide the tower's width"),
    (PUBLISHED_QWEN2_VL, {"vision_config.embed_dim": 0}, "vision_config.embed_dim=0", "must be a whole number above 0"),
    (PUBLISHED_QWEN2_VL, {"num_attention_heads": 5}, "num_attention_heads=5", "must divide hidden_size=3584"),
    (PUBLISHED_QWEN2_VL, {"vision_config": MISSING}, "vision_config=None", "must be an object"),
]


@pytest.mark.parametrize(
    ("form", "change", "named", "rule"), BAD, ids=[f"{form}-{named.partition(',')[0]}" for form, _, named, _ in BAD]
)
def test_a_value_that_fits_no_model(tmp_path: Path, form: str, change: dict[str, Any], named: str, rule: str) -> None:
    with pytest.raises(ValueError) as error:
        read_shape(written(tmp_path, form, change))
    told = str(error.value)
    assert told.startswith(f"{tmp_path / 'config.json'}: ")
    assert named in told and rule in told
    assert told.endswith("; copy the file again from where the weights came from")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json there; give a Hugging Face checkpoint directory"):
        read_shape(tmp_path)


# What transformers 4.49 writes of the tower: without what equals its class's defaults.
ABBREVIATED = {"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "out_hidden_size": 2048,
               "spatial_patch_size": 14, "tokens_per_second": 2}  # fmt: skip


@pytest.mark.parametrize("version", ["4.49.0", "4.49.0.dev0", "4.50.0.dev0"])
def test_the_abbreviated_form_gives_the_published_shape(tmp_path: Path, version: str) -> None:
    written(tmp_path, "flat", {"vision_config": ABBREVIATED, "transformers_version": version})
    assert read_shape(tmp_path) == SHAPE_3B


@pytest.mark.parametrize("version", ["4.41.2", "4.50.0", "5.19.0", None, "unknown"])
def test_abbreviated_by_another_version_is_a_loss(tmp_path: Path, version: str | None) -> None:
    written(tmp_path, "flat", {"vision_config": ABBREVIATED, "transformers_version": version})
    with pytest.raises(ValueError, match=r"config\.json: vision_config\.num_heads=None: is missing; .*; copy the file"):
        read_shape(tmp_path)


def test_the_abbreviated_form_says_the_tokens_of_a_second(tmp_path: Path) -> None:
    """All published models have 2, the class's default is 4."""
    vision = {name: value for name, value in ABBREVIATED.items() if name != "tokens_per_second"}
    written(tmp_path, "flat", {"vision_config": vision, "transformers_version": "4.49.0"})
    with pytest.raises(ValueError, match=r"vision_config\.tokens_per_second=None: is missing"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "holds list, expected an object"),
        ('{"model_type": "qwen2_5_vl", "author": "é"}'.encode("latin-1"), "not valid JSON .*utf-8"),
    ],
)
def test_a_damaged_config(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json: {message}.*; copy the file again"):
        read_shape(tmp_path)
