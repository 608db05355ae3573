"""A model's config that vLLM cannot be given is named before vLLM is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apo.rollout.vllm.engine import architectures_of


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json cannot be read"),
        (b"\xff{}", r"config\.json cannot be read"),
        (b"[]", "names no architectures"),
        (b'{"architectures": []}', "names no architectures"),
    ],
)
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        architectures_of(str(tmp_path))


def test_the_architectures_are_those_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2VLForConditionalGeneration"]}')
    assert architectures_of(str(tmp_path)) == ["Qwen2VLForConditionalGeneration"]
