"""Megatron's conventional ``model_provider`` callable, for another Megatron training script to use as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from model_providers.qwen_vl.loading import load_hf_checkpoint
from model_providers.qwen_vl.megatron_config import BuildSettings, language_config
from model_providers.qwen_vl.model import QwenVLModel, check_groups
from model_providers.qwen_vl.shape import QwenVLShape, read_shape

GROUPS = ["tp", "cp", "pp", "dp", "embd", "pos_embd"]

# Fields in which a script's TransformerConfig must not contradict the settings (the layout it runs, what it trains in,
# what its loss function returns), and what sets them here. None, 0 and False say the same; of the chunks None and 1.
AGREED = {
    "tensor_model_parallel_size": "BuildSettings.tensor",
    "sequence_parallel": "BuildSettings.sequence_parallel",
    "pipeline_model_parallel_size": "BuildSettings.pipeline",
    "virtual_pipeline_model_parallel_size": "BuildSettings.virtual_pipeline",
    "num_layers_in_first_pipeline_stage": "BuildSettings.first_stage_layers",
    "num_layers_in_last_pipeline_stage": "",
    "account_for_embedding_in_pipeline_split": "",
    "account_for_loss_in_pipeline_split": "",
    "pipeline_model_parallel_layout": "",
    "context_parallel_size": "BuildSettings.context",
    "expert_model_parallel_size": "",
    "params_dtype": "BuildSettings.dtype",
    "calculate_per_token_loss": "",
}


class ModelProvider(Protocol):
    """What Megatron's ``get_model`` calls once for each chunk of a pipeline stage.

    ``pg_collection``: the process groups to build in; None: those of ``parallel_state``. ``config``: a
    TransformerConfig of the script's own, or None, as Megatron passes unless told otherwise. Nothing is built from it:
    it describes one of the two towers, the checkpoint both, and Megatron's wrappers and schedules read
    ``model.config``, which the settings make. A ValueError names the fields of ``AGREED`` in which it contradicts them;
    its other fields are ignored.
    """

    def __call__(
        self,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
        config: TransformerConfig | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> QwenVLModel: ...


def check_config(config: TransformerConfig, shape: QwenVLShape, settings: BuildSettings) -> None:
    """ValueError naming every field of ``AGREED`` in which ``config`` contradicts ``settings``."""
    own, wrong = language_config(shape, settings), []
    for name, setting in AGREED.items():
        given, expected = getattr(config, name, None), getattr(own, name)
        neutral = 1 if name == "virtual_pipeline_model_parallel_size" else 0
        if (given or neutral) != (expected or neutral):
            remedy = f"set {setting} or the config" if setting else "the only value this provider has"
            wrong.append(f"{name}={given}, the provider's is {expected} ({remedy})")
    if wrong:
        raise ValueError(f"config: contradicts the provider's settings: {'; '.join(wrong)}")


def model_provider_for(
    directory: str | Path, settings: BuildSettings, *, model_type: str, load_weights: bool = True
) -> ModelProvider:
    """The provider of the checkpoint in ``directory``; its models come with their weights unless told otherwise.

    Call it after Megatron's ``parallel_state.initialize_model_parallel`` with the sizes of ``settings``. Raises
    ValueError for a directory without such a checkpoint, or of another ``model_type``; the callable raises it for
    settings that are not those of the groups, a layout that the model cannot be cut by and a chunk of another rank.
    """
    shape = read_shape(directory)
    if shape.model_type != model_type:
        raise ValueError(
            f"model.path={directory}: model_type is {shape.model_type!r}, expected {model_type!r}; use "
            f"model_providers.{shape.model_type}.provider"
        )

    def model_provider(
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
        config: TransformerConfig | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> QwenVLModel:
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(GROUPS)
        check_groups(shape, settings, groups, vp_stage, pre_process=pre_process, post_process=post_process)
        if config is not None:
            check_config(config, shape, settings)
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
