"""Megatron's conventional ``model_provider`` callable for Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path

from model_providers.qwen_vl import provider
from model_providers.qwen_vl.megatron_config import BuildSettings

MODEL_TYPE = "qwen2_5_vl"


def model_provider_for(
    directory: str | Path, settings: BuildSettings, *, load_weights: bool = True
) -> provider.ModelProvider:
    """See ``model_providers.qwen_vl.provider.model_provider_for``; the checkpoint must be a Qwen2.5-VL."""
    return provider.model_provider_for(directory, settings, model_type=MODEL_TYPE, load_weights=load_weights)
