"""What is asked of the planner, and what of it cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_apo.planning.sizes import ModelSize
from megatron_apo.planning.state import PARTS

MOST_GPUS = 16384  # beyond, the candidates alone take minutes


@dataclass(frozen=True)
class Request:
    """What is asked for. ``tokens`` and ``patches`` of one microbatch of one replica; ``microbatches`` of an update;
    ``reserve_gib`` for the CUDA context, communication and fragmentation; ``engine_gpus`` only with placement separate;
    ``frozen`` of state.PARTS.
    """

    model: ModelSize
    gpus: int
    memory_gib: float
    tokens: int = 16384
    patches: int = 16384
    microbatches: int = 8
    placement: str = "colocated"  # or "separate"
    engine_gpus: int = 0
    kv_tokens: int = 65536
    dtype: str = "bfloat16"
    reference: bool = True
    frozen: tuple[str, ...] = ()
    reserve_gib: float = 4.0
    chunk: int = 512
    gpus_per_node: int = 8

    @property
    def trainer_gpus(self) -> int:
        """GPUs that train; with placement separate the engines' are not among them."""
        return self.gpus - (self.engine_gpus if self.placement == "separate" else 0)


def check_request(request: Request) -> None:
    """ValueError for the first number that cannot be."""
    for name in ("gpus", "tokens", "microbatches", "kv_tokens", "chunk", "gpus_per_node"):
        if getattr(request, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(request, name)}: must be at least 1")
    if request.gpus > MOST_GPUS:
        raise ValueError(f"--gpus={request.gpus}: must be at most {MOST_GPUS}; plan one part of the cluster")
    if request.patches < 0:
        raise ValueError(f"--patches={request.patches}: must be at least 0")
    if not (math.isfinite(request.reserve_gib) and request.reserve_gib >= 0):
        raise ValueError(f"--reserve={request.reserve_gib:g}: must be a number of GiB, 0 or more")
    if not (math.isfinite(request.memory_gib) and request.memory_gib > request.reserve_gib):
        raise ValueError(
            f"--memory={request.memory_gib:g}: must be GiB above the reserve of {request.reserve_gib:g} GiB (--reserve)"
        )
    for part in request.frozen:
        if part not in PARTS:
            raise ValueError(f"--freeze={part}: must be one of {', '.join(PARTS)}")
    if set(request.frozen) == set(PARTS):
        raise ValueError(f"--freeze={','.join(request.frozen)}: leaves nothing to train; name fewer parts")
    _check_placement(request)


def _check_placement(request: Request) -> None:
    if request.placement != "separate":
        if request.engine_gpus:
            raise ValueError(
                f"--engine-gpus={request.engine_gpus}: colocated engines have no GPUs of their own; give --rollout "
                "separate too, or leave it out"
            )
        return
    if request.gpus < 2:
        raise ValueError(f"--gpus={request.gpus}: separate rollouts need at least 2: one trains, one generates")
    if not 0 < request.engine_gpus < request.gpus:
        raise ValueError(
            f"--engine-gpus={request.engine_gpus}: must lie between 1 and {request.gpus - 1} with separate rollouts on "
            f"--gpus={request.gpus}; trainer and engines need one at least each"
        )
