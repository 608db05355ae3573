"""A training job of one process on the small random Qwen2.5-VL and its sequences of every kind."""

from __future__ import annotations

from pathlib import Path

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.data.distribution import distribute
from megatron_apo.parallel.groups import Groups
from megatron_apo.records import PromptImage, ReplicaWork, TrainingSample
from megatron_apo.training.forward_step import head_settings
from megatron_apo.training.setup import TrainingState, build_training_state
from megatron_apo.training.update import Trainer, TrainerSettings
from tests.unit.model_providers.reference import GRIDS, SECONDS, Packed, pack

PATCH_VALUES = 3 * 2 * 14 * 14


def job_config(checkpoint: Path, *overrides: str) -> Config:
    """Settings of a job on ``checkpoint``, with a learning rate that moves every weight visibly."""
    return load_config(
        None,
        [f"--model.path={checkpoint}", "--data.train=unused.jsonl", "--optimizer.learning_rate=1e-2", *overrides],
    )


def samples_of(packed: Packed) -> list[TrainingSample]:
    """Supervised samples; the policy weight makes the loss a mean over response tokens."""
    tokens = sum(len(response) for response in packed.responses)
    return [
        TrainingSample(
            prompt_ids=tuple(prompt),
            response_ids=tuple(response),
            images=tuple(PromptImage(name, name, GRIDS[name], SECONDS.get(name, 0.0)) for name in images),
            policy_weight=1.0 / tokens,
        )
        for prompt, response, images in zip(packed.prompts, packed.responses, packed.images, strict=True)
    ]


def work_of(config: Config, packed: Packed, *, updates: int) -> ReplicaWork:
    """The same samples in each of ``updates`` updates."""
    samples = samples_of(packed)
    (work,) = distribute(
        samples,
        [range(len(samples))] * updates,
        tokens_per_microbatch=config.training.tokens_per_microbatch,
        data_parallel=1,
        scalars={"kl_coefficient": 0.0},
    )
    return work


def make_trainer(
    config: Config, groups: Groups, *, updates: int = 4, forbidden: tuple[int, ...] = ()
) -> tuple[Trainer, TrainingState]:
    """A supervised trainer and its state."""
    state = build_training_state(config, groups, updates=updates, reference=False)
    packed = pack(PATCH_VALUES)
    settings = TrainerSettings(config.objective, head_settings(config, forbidden, state.shape.vocab), supervised=True)
    return Trainer(state, groups, settings, pixel_values=lambda image: packed.pixels[image.path]), state
