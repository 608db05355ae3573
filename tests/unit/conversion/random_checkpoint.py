"""Checkpoints of any size with every number random, without building a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import weight_map
from tests.unit.model_providers.reference import config


def random_checkpoint(
    directory: Path,
    *,
    tied: bool = False,
    family: str = "qwen2_5_vl",
    dtype: torch.dtype = torch.float32,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    scale: float = 1.0,
) -> Path:
    """Writes one of 4 layers and 4 heads everywhere (2 key-value heads), so that tensor and pipeline 4 divide it."""
    directory.mkdir(parents=True)
    config(tied=tied, family=family).save_pretrained(directory)
    settings = json.loads((directory / "config.json").read_text())
    settings["text_config"] |= {"num_hidden_layers": 4, **(text or {})}
    settings["text_config"].pop("layer_types", None)
    settings["vision_config"] |= {"num_heads": 4, **(vision or {})}
    (directory / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: (scale * torch.randn(shape, generator=generator)).to(dtype)
        for row in weight_map(read_shape(directory))
        if row.exported
        for name, shape in zip(row.hf, row.shapes, strict=True)
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
