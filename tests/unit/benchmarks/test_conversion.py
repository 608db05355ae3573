"""The benchmark's checkpoint is one that the product reads."""

from __future__ import annotations

from pathlib import Path

from benchmarks.conversion import HIDDEN, write_config
from model_providers.qwen_vl.shape import read_shape


def test_its_config_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, layers=3)
    shape = read_shape(tmp_path)
    assert (shape.model_type, shape.layers, shape.hidden) == ("qwen2_5_vl", 3, HIDDEN)
