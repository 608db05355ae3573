"""Bytes of weights, gradients and optimizer state of one rank, exactly as this package builds them.

Two things are followed to the byte. ``stage_parameters`` lists what a pipeline stage holds, in the order of
``named_parameters`` (the order decides where the distributed optimizer cuts). ``state_bytes`` follows Megatron-Core's
``DistributedDataParallel`` and optimizers: gradients in float32 in one flat buffer; with the distributed optimizer that
buffer and the parameters' own start every tensor at a multiple of 64 elements, end every bucket at a multiple of
lcm(128, ranks), and give a shared embedding a bucket of its own; each rank's optimizer holds its piece of each bucket.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from megatron_apo.planning.sizes import ModelSize
from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, padded_width

BYTES = {"float32": 4, "bfloat16": 2}
PARTS = ("vision", "merger", "language")  # what can be frozen


@dataclass(frozen=True)
class Parameter:
    """One tensor of this rank. ``shared``: a tied embedding that two pipeline stages hold."""

    name: str
    elements: int
    shared: bool = False

    @property
    def part(self) -> str:
        """The one of ``PARTS`` that it belongs to."""
        if not self.name.startswith("vision."):
            return "language"
        return "merger" if self.name.startswith("vision.merger.") else "vision"


@dataclass(frozen=True)
class StateBytes:
    """``optimizer``: master weights, both moments and their step counts, on the data-parallel rank that has most."""

    weights: int
    gradients: int
    optimizer: int


def stage_parameters(
    model: ModelSize,
    *,
    tensor: int,
    first: bool,
    last: bool,
    layers: int,
    vision_ffn_multiple: int = VISION_FFN_MULTIPLE,
) -> list[Parameter]:
    """What one rank of a stage with ``layers`` language layers holds, in module order."""
    found = _vision(model, tensor, padded_width(model.v_ffn, vision_ffn_multiple)) if first else []
    shared = model.tied and not (first and last)
    table = -(-model.vocab // tensor) * model.hidden
    if first:
        found.append(Parameter("embedding", table, shared))
    heads = model.heads * model.head_size // tensor
    qkv = (model.heads + 2 * model.kv_heads) * model.head_size // tensor  # fewer kv heads than ranks: parts of heads
    for layer in range(layers):
        parts = {
            "input_layernorm": model.hidden,
            "linear_proj": heads * model.hidden,
            "linear_qkv": qkv * model.hidden,
            "linear_qkv.bias": qkv,
            "pre_mlp_layernorm": model.hidden,
            "linear_fc1": 2 * model.ffn // tensor * model.hidden,
            "linear_fc2": model.ffn // tensor * model.hidden,
        }
        found += [Parameter(f"layers.{layer}.{name}", count) for name, count in parts.items()]
    if last:
        found.append(Parameter("final_layernorm", model.hidden))
        if not (model.tied and first):
            found.append(Parameter("output_layer", table, shared))
    return found


def _vision(model: ModelSize, tensor: int, padded_ffn: int) -> list[Parameter]:
    width, ffn = model.v_hidden, padded_ffn // tensor
    gates = 2 if model.v_gated else 1
    norm = {"weight": width} if model.v_gated else {"weight": width, "bias": width}
    layer = {
        **{f"input_layernorm.{kind}": count for kind, count in norm.items()},
        "linear_proj": width * width // tensor,
        "linear_proj.bias": width,
        "linear_qkv": 3 * width // tensor * width,
        "linear_qkv.bias": 3 * width // tensor,
        **{f"pre_mlp_layernorm.{kind}": count for kind, count in norm.items()},
        "linear_fc1": gates * ffn * width,
        "linear_fc1.bias": gates * ffn,
        "linear_fc2": width * ffn,
        "linear_fc2.bias": width,
    }
    merger = {
        **{f"norm.{kind}": count for kind, count in norm.items()},
        "linear_fc1": model.merged // tensor * model.merged,
        "linear_fc1.bias": model.merged // tensor,
        "linear_fc2": model.hidden * model.merged // tensor,
        "linear_fc2.bias": model.hidden,
    }
    return [
        Parameter("vision.patch_embed", model.v_patch_values * width),
        *(Parameter(f"vision.{i}.{name}", n) for i in range(model.v_layers) for name, n in layer.items()),
        *(Parameter(f"vision.merger.{name}", n) for name, n in merger.items()),
    ]


@lru_cache(maxsize=64)
def parameter_count(model: ModelSize) -> int:
    """Parameters of the whole model as published: a tied table once, no padding."""
    whole = stage_parameters(model, tensor=1, first=True, last=True, layers=model.layers, vision_ffn_multiple=1)
    return sum(parameter.elements for parameter in whole)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def buckets(parameters: list[Parameter], ranks: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """(padded elements, (start, end) of its tensors) of each bucket of the distributed optimizer's buffer."""
    done: list[tuple[int, list[tuple[int, int]]]] = []
    places: list[tuple[int, int]] = []
    end = 0
    divisor = math.lcm(ranks, 128)

    def close(at: int) -> None:
        nonlocal places, end
        done.append((_up(at, divisor), places))
        places, end = [], 0

    for parameter in reversed(parameters):  # in the order in which gradients come
        start = _up(end, 64)
        if parameter.shared and places:
            close(start)
            start = 0
        end = start + parameter.elements
        places.append((start, end))
        if parameter.shared:
            close(end)
    if places:
        close(end)
    return done


def state_bytes(
    parameters: list[Parameter],
    *,
    dtype: str,
    data: int,
    distributed: bool,
    rank: int | None = None,
    frozen: Collection[str] = (),
) -> StateBytes:
    """Bytes of one rank; ``rank``: the data-parallel rank, None for the one whose optimizer holds most.

    Master weights only in bfloat16: float32 parameters are their own. Adam keeps two float32 moments and a float32
    step count for each tensor that the rank holds a piece of. ``frozen``: of ``PARTS``; they are weights alone.
    """
    per_element = 8 if dtype == "float32" else 12
    trained = [p for p in parameters if p.part not in frozen]
    still = sum(p.elements for p in parameters) - sum(p.elements for p in trained)
    if not distributed:
        count = sum(p.elements for p in trained)
        return StateBytes((count + still) * BYTES[dtype], 4 * count, per_element * count + 4 * len(trained))
    found = buckets(trained, data)
    padded = sum(size for size, _ in found)
    held = _held(found, data, per_element)
    return StateBytes((padded + still) * BYTES[dtype], 4 * padded, max(held) if rank is None else held[rank])


def _held(found: list[tuple[int, list[tuple[int, int]]]], ranks: int, per_element: int) -> list[int]:
    """Bytes of optimizer state of each rank: its equal piece of every bucket, without the gaps between tensors."""
    held = [0] * ranks
    for size, places in found:
        piece = size // ranks
        for start, end in places:
            for rank in range(start // piece, -(-end // piece)):
                held[rank] += per_element * (min(end, piece * (rank + 1)) - max(start, piece * rank)) + 4
    return held
