"""The engine that the settings ask for: which library, and in which process."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_apo.config import Config
from megatron_apo.data.images import load_image
from megatron_apo.records import PromptImage
from megatron_apo.rollout.engine import EngineSettings, RolloutEngine

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(image: PromptImage) -> Image:
    """The picture of a prompt, refused when the file changed since the prompt was built."""
    return load_image(image.path, sha256=image.sha256)


def engine_settings(config: Config, forbidden_token_ids: Sequence[int], *, max_images: int = 1) -> EngineSettings:
    """What an engine is built from; ``max_images`` of one prompt."""
    return EngineSettings(
        model=config.model.path,
        dtype=config.model.dtype,
        forbidden_token_ids=tuple(forbidden_token_ids),
        max_model_len=config.data.max_prompt_tokens + config.sampling.max_tokens,
        max_images=max_images,
        memory_gib=config.rollout.kv_cache_gib,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        seed=config.run.seed,
        max_num_sequences=config.rollout.max_num_sequences,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )


def build_engine(
    config: Config, forbidden_token_ids: Sequence[int], *, in_process: bool, max_images: int = 1
) -> RolloutEngine:
    """Starts the engine; ``in_process`` is only right for a job of one rank."""
    if config.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError("rollout.engine=vllm: vLLM is not installed; install it, or use rollout.engine: transformers")
    settings = engine_settings(config, forbidden_token_ids, max_images=max_images)
    if not in_process:
        from megatron_apo.rollout.process import EngineProcess

        engine = EngineProcess(config.rollout.engine, settings, timeout_seconds=config.rollout.timeout_seconds)
        engine.wait_until_ready()  # what it cannot serve is told here, before the run writes anything
        return engine
    return engine_here(config.rollout.engine, settings)


def engine_here(kind: str, settings: EngineSettings) -> RolloutEngine:
    """Starts the engine ``kind`` (vllm or transformers) in this process."""
    if kind == "vllm":
        from megatron_apo.rollout.vllm.engine import VllmEngine

        return VllmEngine(settings, open_image)
    from megatron_apo.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(settings, open_image)
