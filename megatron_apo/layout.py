"""The settings of ``parallel`` as a layout that ``model_providers.qwen_vl.layout`` can hold against a model."""

from __future__ import annotations

from megatron_apo.config import ParallelConfig
from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, Layout


def layout_of(parallel: ParallelConfig, world: int, *, vision_ffn_multiple: int = VISION_FFN_MULTIPLE) -> Layout:
    """The layout of ``world`` processes under these settings."""
    return Layout(
        world=world,
        tensor=parallel.tensor,
        sequence=parallel.sequence,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        first_stage_layers=parallel.first_stage_layers,
        context=parallel.context,
        vision_ffn_multiple=vision_ffn_multiple,
    )
