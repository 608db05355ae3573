"""Megatron's conventional ``model_provider`` callable, for another Megatron training script to use as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megatron.core.process_groups_config import ProcessGroupCollection

from model_providers.qwen_vl.loading import load_hf_checkpoint
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape

GROUPS = ["tp", "cp", "pp", "embd", "pos_embd"]


class ModelProvider(Protocol):
    """What Megatron's ``get_model`` calls once for each chunk of a pipeline stage."""

    def __call__(
        self, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None
    ) -> QwenVLModel: ...


def model_provider_for(
    directory: str | Path, settings: BuildSettings, *, model_type: str, load_weights: bool = True
) -> ModelProvider:
    """The provider of the checkpoint in ``directory``; its models come with their weights unless told otherwise.

    Call it after Megatron's ``parallel_state.initialize_model_parallel`` with the sizes of ``settings``. Raises
    ValueError for a directory without such a checkpoint, or of another ``model_type``.
    """
    shape = read_shape(directory)
    if shape.model_type != model_type:
        raise ValueError(
            f"model.path={directory}: model_type is {shape.model_type!r}, expected {model_type!r}; use "
            f"model_providers.{shape.model_type}.provider"
        )

    def model_provider(pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None) -> QwenVLModel:
        groups = ProcessGroupCollection.use_mpu_process_groups(GROUPS)
        model = QwenVLModel(
            shape,
            settings,
            pg_collection=groups,
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if load_weights:
            load_hf_checkpoint(model, directory, tensor_rank=groups.tp.rank(), tensor_size=groups.tp.size())
        return model

    return model_provider
