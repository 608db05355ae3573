"""Megatron's conventional ``model_provider`` callable, for another Megatron training script to use as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megatron.core.process_groups_config import ProcessGroupCollection

from model_providers.qwen2_5_vl.loading import load_hf_checkpoint
from model_providers.qwen2_5_vl.megatron_config import BuildSettings
from model_providers.qwen2_5_vl.model import Qwen25VLModel
from model_providers.qwen2_5_vl.shape import read_shape

MODEL_TYPE = "qwen2_5_vl"
GROUPS = ["tp", "cp", "pp", "embd", "pos_embd"]


class ModelProvider(Protocol):
    """What Megatron's ``get_model`` calls once for each chunk of a pipeline stage."""

    def __call__(
        self, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None
    ) -> Qwen25VLModel: ...


def model_provider_for(
    directory: str | Path, settings: BuildSettings, *, load_weights: bool = True, model_type: str = MODEL_TYPE
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

    def model_provider(
        pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None
    ) -> Qwen25VLModel:
        groups = ProcessGroupCollection.use_mpu_process_groups(GROUPS)
        model = Qwen25VLModel(
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
