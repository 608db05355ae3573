"""What the loop knows of an engine. Back ends: ``rollout/vllm`` and ``rollout/transformers_engine.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from megatron_apo.records import Prompt, Rollout


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn. ``temperature`` 0 means greedy (then ``group_size`` must be 1).

    ``seed`` is the base of the per-response seeds: response i of prompt p of a call uses a seed derived from
    (seed, p's position, i), so the same call gives the same responses. Positions count from ``first_position``: who
    draws a long list call by call gives the place of the call's first prompt in it, and the cuts change no seed.
    """

    group_size: int
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0
    first_position: int = 0


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built from; JSON-serialisable, because it is sent to an engine process."""

    model: str  # directory of the Hugging Face checkpoint
    dtype: str  # "float32" or "bfloat16"
    forbidden_token_ids: tuple[int, ...]
    max_model_len: int
    max_images: int = 1
    tensor_parallel: int = 1
    memory_gib: float = 1.0  # KV cache: GiB on a CPU; on a GPU see gpu_memory_utilization
    gpu_memory_utilization: float = 0.4
    seed: int = 0
    max_num_sequences: int = 256
    min_pixels: int = 0  # of an image, as in DataConfig; 0: the processor's own
    max_pixels: int = 0


@dataclass(frozen=True)
class WeightReceipt:
    """What an engine says it received in one weight update: compared by ``weight_sync.verify`` with what was sent.

    ``hashes``: hexadecimal hash of the bytes of each tensor received, by Hugging Face name. ``loaded``: the names
    (the engine's own) that it wrote. ``missing``: parameters of the engine's model that this update does not cover.
    ``unknown``: names received that belong to no parameter. With either of the two an engine keeps its old weights,
    all of them, and its old version.
    """

    version: int
    hashes: dict[str, str]
    loaded: tuple[str, ...] = field(default=())
    missing: tuple[str, ...] = field(default=())
    unknown: tuple[str, ...] = field(default=())


@runtime_checkable
class RolloutEngine(Protocol):
    """Generates from tokens to tokens and takes new weights while it runs."""

    @property
    def weight_version(self) -> int:
        """Version of the weights in use; 0 for those of the checkpoint it was built from."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        """``sampling.group_size`` rollouts per prompt, in order; raises ValueError when the prompt ids that the
        engine expanded differ from ``prompt.token_ids`` (names the prompt and the first position that differs)."""
        ...

    def update_weights(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> WeightReceipt:
        """Loads the tensors (Hugging Face names, published form), resets every cache, adopts ``version``."""
        ...

    def close(self) -> None:
        """Frees everything; safe to call twice."""
        ...
