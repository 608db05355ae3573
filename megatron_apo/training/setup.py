"""Builds what a training process holds: the model under Megatron's DDP, its optimizer, its schedule, the reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from megatron_apo.config import Config, ModelConfig, OptimizerConfig, ParallelConfig
from megatron_apo.layout import layout_of
from megatron_apo.parallel.groups import Groups, launched_processes
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.training.reference import HostReference, Reference, ResidentReference
from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, check_layout
from model_providers.qwen_vl.loading import load_hf_checkpoint
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import QwenVLShape, read_shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class TrainingState:
    """Everything of a trainer that lives on this rank. ``reference`` is None when no KL is asked for; ``frozen`` says
    which parts of the model are.

    ``model`` holds the chunks of this pipeline stage, one unless the pipeline is interleaved.
    """

    shape: QwenVLShape
    settings: BuildSettings
    model: list[Any]
    optimizer: Any
    scheduler: OptimizerParamScheduler
    reference: Reference | None
    frozen: dict[str, bool]


def build_settings(config: Config) -> BuildSettings:
    """The provider's settings from ours."""
    return BuildSettings(
        dtype=DTYPES[config.model.dtype],
        layer_spec=config.model.layer_spec,
        recompute=config.model.recompute,
        tensor=config.parallel.tensor,
        pipeline=config.parallel.pipeline,
        virtual_pipeline=config.parallel.virtual_pipeline,
        first_stage_layers=config.parallel.first_stage_layers,
        context=config.parallel.context,
        sequence_parallel=config.parallel.sequence,
        vision_ffn_multiple=config.model.vision_ffn_multiple,
    )


def check_shape_layout(
    parallel: ParallelConfig, shape: QwenVLShape, world_size: int, *, vision_ffn_multiple: int = VISION_FFN_MULTIPLE
) -> None:
    """ValueError naming every factor and everything wrong with the layout for this model and so many processes."""
    check_layout(layout_of(parallel, world_size, vision_ffn_multiple=vision_ffn_multiple), shape.divided)


def check_model_layout(config: Config) -> None:
    """ValueError naming everything wrong with the layout for this model and this many processes; starts nothing."""
    register_missing_operators()  # before transformers is first imported
    shape = read_shape(config.model.path)
    check_shape_layout(
        config.parallel, shape, launched_processes(), vision_ffn_multiple=config.model.vision_ffn_multiple
    )


def empty_chunks(shape: QwenVLShape, settings: BuildSettings, groups: Groups) -> list[QwenVLModel]:
    """This rank's pipeline stage, its weights not yet set: as many chunks as the layout has.

    The first stage's first chunk has the vision tower and the embedding, the last stage's last chunk the output.
    """
    count = settings.virtual_pipeline
    return [
        QwenVLModel(
            shape,
            settings,
            pg_collection=groups.collection,
            pre_process=groups.first_stage and number == 0,
            post_process=groups.last_stage and number == count - 1,
            vp_stage=number if count > 1 else None,
        ).to(groups.device)
        for number in range(count)
    ]


def build_chunks(
    shape: QwenVLShape, settings: BuildSettings, groups: Groups, directory: str | Path
) -> list[QwenVLModel]:
    """``empty_chunks`` with the weights of the Hugging Face checkpoint in ``directory``."""
    chunks = empty_chunks(shape, settings, groups)
    for chunk in chunks:
        load_hf_checkpoint(chunk, directory, tensor_rank=groups.tensor_rank, tensor_size=groups.tensor_size)
    return chunks


def for_scoring(chunks: list[QwenVLModel], settings: BuildSettings) -> list[Any]:
    """The chunks ready for forward passes only."""
    return [_wrap(chunk, settings).eval().requires_grad_(False) for chunk in chunks]


def frozen_parts(config: ModelConfig) -> dict[str, bool]:
    """Which parts of the model take no gradient."""
    return {"vision": config.freeze_vision, "merger": config.freeze_merger, "language": config.freeze_language}


def freeze(model: QwenVLModel, config: ModelConfig) -> None:
    """Takes the gradient from the parts that ``config`` freezes: they get no gradient buffer and no optimizer state."""
    frozen = frozen_parts(config)
    for name, parameter in model.named_parameters():
        if name.startswith("language_model."):
            part = "language"
        else:
            part = "merger" if name.startswith("vision_model.merger.") else "vision"
        parameter.requires_grad_(not frozen[part])


def _wrap(model: QwenVLModel, settings: BuildSettings) -> Any:
    return Float16Module(model.config, model) if settings.dtype == torch.bfloat16 else model


def _distribute(model: QwenVLModel, settings: BuildSettings, *, sharded: bool) -> Any:
    """The model under Megatron's DDP: a gradient buffer, reduced over data and context ranks."""
    model.config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=sharded
        ),
        _wrap(model, settings),
    )


def _optimizer_config(config: OptimizerConfig, settings: BuildSettings, distributed: bool) -> MegatronOptimizerConfig:
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.minimum_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.epsilon,
        clip_grad=config.clip_gradient,
        params_dtype=settings.dtype,
        bf16=settings.dtype == torch.bfloat16,
        use_distributed_optimizer=distributed,
    )


def _scheduler(optimizer: Any, config: OptimizerConfig, updates: int) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.learning_rate,
        min_lr=config.minimum_learning_rate,
        lr_warmup_steps=min(config.warmup_steps, max(updates - 1, 0)),
        lr_decay_steps=max(updates, 1),
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=max(updates, 1),
        wd_incr_style="constant",
        # A resumed run may be longer or shorter than it was planned (run.steps): the settings say how it goes on.
        override_opt_param_scheduler=True,
        use_checkpoint_opt_param_scheduler=False,
    )


def build_training_state(config: Config, groups: Groups, *, updates: int, reference: bool) -> TrainingState:
    """Loads ``config.model.path`` into this rank's part of the layout, ready to train for ``updates`` updates.

    Raises ValueError for an impossible layout or a directory that is not a whole checkpoint of either family.
    """
    shape, settings = read_shape(config.model.path), build_settings(config)
    check_shape_layout(config.parallel, shape, groups.world_size, vision_ffn_multiple=config.model.vision_ffn_multiple)
    sharded = config.parallel.distributed_optimizer
    model = []
    for chunk in build_chunks(shape, settings, groups, config.model.path):
        freeze(chunk, config.model)
        model.append(_distribute(chunk, settings, sharded=sharded))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron warns on every build that apex is missing; see describe_optimizer
        optimizer = get_megatron_optimizer(_optimizer_config(config.optimizer, settings, sharded), model)
    initial: Reference | None = None
    if reference and config.model.reference == "host":
        initial = HostReference(model)  # before anything has moved the policy: these are the initial weights
    elif reference:
        initial = ResidentReference(for_scoring(build_chunks(shape, settings, groups, config.model.path), settings))
    scheduler = _scheduler(optimizer, config.optimizer, updates)
    return TrainingState(shape, settings, model, optimizer, scheduler, initial, frozen_parts(config.model))


def describe_optimizer(optimizer: Any) -> str:
    """Which Adam runs: Transformer Engine's, apex's or torch's."""
    inner = optimizer
    while hasattr(inner, "chained_optimizers"):
        inner = inner.chained_optimizers[0]
    base = getattr(inner, "optimizer", inner)
    return f"{type(base).__module__}.{type(base).__name__}"
