"""Enumerates layouts of a model on GPUs, weighs both phases of each and ranks those that fit.

Ranking: among layouts that fit, the least estimated time of an update first. Its parts are stated in docs/planning.md:
recomputation, the pipeline's bubble, the messages of tensor and context ranks. It orders layouts; it predicts no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from megatron_apo.config import ParallelConfig
from megatron_apo.layout import layout_of
from megatron_apo.planning import activations
from megatron_apo.planning.activations import Budget
from megatron_apo.planning.request import Request, check_request
from megatron_apo.planning.sizes import ModelSize
from megatron_apo.planning.state import BYTES, StateBytes, parameter_count, stage_parameters, state_bytes
from model_providers.qwen_vl.layout import Divided, check_layout, stage_layers

GIB = 2**30
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Layout:
    """One candidate."""

    parallel: ParallelConfig
    recompute: str


@dataclass(frozen=True)
class Plan:
    """A layout, its ``memory`` that of ``stage``, which needs most while training; all memory in bytes.

    ``training`` has the engine asleep. ``generation`` has the optimizer state and the gradient buffers on the host
    and the weights of trainer, reference and engine on the GPU; what is then free, ``kv_cache``, holds ``kv_tokens``.
    """

    layout: Layout
    data: int
    layers: tuple[int, ...]
    stage: int
    memory: dict[str, int]
    training: int
    generation: int
    kv_cache: int
    kv_tokens: int
    engine_tensor: int
    cost: float
    problem: str = ""


def _check(request: Request, parallel: ParallelConfig) -> int:
    model = request.model
    return check_layout(
        layout_of(parallel, request.trainer_gpus),
        Divided(
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_size=model.head_size,
            ffn=model.ffn,
            vocab=model.vocab,
            vision_heads=model.v_heads,
            vision_merger=model.merged,
            vision_ffn=model.v_ffn,
        ),
    )


def _first_stages(model: ModelSize, stages: int) -> Iterator[int]:
    """0 for even stages, and the sizes of a smaller first one that leave the others equal: it has the tower too."""
    if stages == 1:
        yield 0
        return
    if model.layers % stages == 0:
        yield 0
    even = -(-model.layers // stages)
    found = [n for n in range(even - 1, 0, -1) if (model.layers - n) % (stages - 1) == 0]
    yield from found[:3]


def candidates(request: Request) -> Iterator[Layout]:
    """Layouts worth weighing; impossible ones among them are refused by ``check_layout``."""
    world = request.trainer_gpus
    sizes = [size for size in range(1, world + 1) if world % size == 0]
    for tensor in (size for size in sizes if size <= request.gpus_per_node):
        for pipeline in sizes:
            for context in sizes:
                if world % (tensor * pipeline * context) or pipeline > request.model.layers:
                    continue
                for first in list(_first_stages(request.model, pipeline)) or [0]:
                    parallel = ParallelConfig(
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        first_stage_layers=first,
                        sequence=tensor > 1,
                        distributed_optimizer=world > tensor * pipeline,
                    )
                    for recompute in RECOMPUTE:
                        yield Layout(parallel, recompute)


@lru_cache(maxsize=4096)
def _state(
    model: ModelSize,
    tensor: int,
    ends: tuple[bool, bool],
    layers: int,
    data: int,
    distributed: bool,
    dtype: str,
    frozen: tuple[str, ...],
) -> tuple[StateBytes, int]:
    """A stage's weights, gradients and optimizer state, and its weights without the optimizer's padding. ``ends``:
    whether it is the first and the last."""
    held = stage_parameters(model, tensor=tensor, first=ends[0], last=ends[1], layers=layers)
    state = state_bytes(held, dtype=dtype, data=data, distributed=distributed, frozen=frozen)
    return state, sum(parameter.elements for parameter in held) * BYTES[dtype]


def _stage_memory(request: Request, layout: Layout, data: int, stage: int, layers: int) -> dict[str, int]:
    """Bytes of one rank of stage ``stage`` while training."""
    parallel, model = layout.parallel, request.model
    stages, split = parallel.pipeline, parallel.tensor if parallel.sequence else 1
    first, last = stage == 0, stage == stages - 1
    budget = Budget(-(-request.tokens // parallel.context), request.patches, request.dtype, request.chunk)
    tensor, context, sequence = parallel.tensor, parallel.context, parallel.sequence
    ranks, sharded = data * context, parallel.distributed_optimizer
    state, unpadded = _state(
        model, tensor, (first, last), layers, ranks, sharded, request.dtype, tuple(sorted(request.frozen))
    )
    in_flight = min(stages - stage, request.microbatches)  # one forward, one backward: what a stage is ahead
    saved = activations.language_layers(
        model, budget, layers, tensor=tensor, context=context, sequence=sequence, recompute=layout.recompute
    )
    saved += activations.final_norm(model, budget, split=split) if last else 0
    again = activations.recomputed(
        model, budget, tensor=tensor, context=context, sequence=sequence, recompute=layout.recompute
    )
    vision = once = 0.0
    if first:
        vision = activations.vision_tower(
            model, budget, tensor=tensor, sequence=sequence, recompute=layout.recompute, frozen=request.frozen
        )
        if "vision" not in request.frozen:
            once = activations.recomputed_vision(
                model, budget, tensor=tensor, sequence=sequence, recompute=layout.recompute
            )
    # One after the other, never together: the head, a language layer going backward, a layer of the tower.
    logits = activations.head(model, budget, tensor=tensor) if last else 0.0
    between = activations.between_layers(model, budget)
    after_head = max(0.0, again + between - logits)
    after_language = max(0.0, once + between - max(again + between, logits))
    return {
        "weights": state.weights,
        "reference": unpadded if request.reference else 0,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "activations": round(saved * in_flight + after_head),
        "vision": round(vision * in_flight + after_language),
        "logits": round(logits),
        "reserve": round(request.reserve_gib * GIB),
    }


def _engine(request: Request, resident: int, gpus: int) -> tuple[int, int, int, int]:
    """(tensor ranks, bytes of weights, bytes and tokens of KV cache) of the smallest engine whose cache is enough.

    ``resident``: what else is on its GPU while it generates.
    """
    model = request.model
    weights = parameter_count(model) * BYTES[request.dtype]
    free = round(request.memory_gib * GIB) - resident
    best = (1, weights, free - weights, 0)
    for size in (1, 2, 4, 8):
        if size > gpus or gpus % size or model.heads % size:
            continue
        keys = max(1, model.kv_heads // size) * model.head_size
        per_token = 2 * model.layers * keys * BYTES[request.dtype]
        cache = free - -(-weights // size)
        best = (size, -(-weights // size), cache, max(0, cache // per_token))
        if best[3] >= request.kv_tokens:
            break
    return best


def _cost(request: Request, layout: Layout, data: int, layers: list[int]) -> float:
    """Relative time of an update; docs/planning.md states each part."""
    parallel = layout.parallel
    compute = {"none": 1.0, "selective": 1.05, "full": 1.33}[layout.recompute]
    # Context ranks share the tokens, not the patches: images lie at the beginnings of sequences, on one of the ranks.
    tower = parameter_count(replace(request.model, layers=0, vocab=0)) * request.patches / request.tokens
    tower *= parallel.context
    per_layer = (parameter_count(request.model) - parameter_count(replace(request.model, layers=0))) / (
        request.model.layers
    )
    work = [count * per_layer + (tower if stage == 0 else 0) for stage, count in enumerate(layers)]
    slowest = max(work) * parallel.pipeline / sum(work)  # 1 where stages are equally busy
    bubble = 1 + (parallel.pipeline - 1) / request.microbatches
    messages = 1 + 0.06 * (parallel.tensor - 1) ** 0.5 + 0.08 * (parallel.context - 1) ** 0.5
    return compute * slowest * bubble * messages / (data * parallel.tensor * parallel.pipeline * parallel.context)


def weigh(request: Request, layout: Layout) -> Plan:
    """The plan of one layout; ``problem`` says why it does not fit. ValueError when the layout is impossible."""
    data = _check(request, layout.parallel)
    layers = stage_layers(layout_of(layout.parallel, request.trainer_gpus), request.model.layers)
    stages = [_stage_memory(request, layout, data, stage, count) for stage, count in enumerate(layers)]
    worst = max(range(len(stages)), key=lambda stage: sum(stages[stage].values()))
    training = sum(stages[worst].values())
    colocated = request.placement == "colocated"
    resident = stages[0]["reserve"]
    if colocated:
        resident += max(memory["weights"] + memory["reference"] for memory in stages)
    gpus = request.gpus if colocated else request.engine_gpus
    size, weights, cache, tokens = _engine(request, resident, gpus)
    problems, limit = [], request.memory_gib * GIB
    if training > limit:
        parts = sorted(stages[worst].items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts)
        problems.append(
            f"training needs {training / GIB:.1f} of {request.memory_gib:g} GiB on stage {worst} (most: {named})"
        )
    if tokens < request.kv_tokens:
        problems.append(
            f"generation leaves {max(0, cache) / GIB:.1f} GiB of KV cache, {tokens} tokens, fewer than --kv-tokens "
            f"{request.kv_tokens} (engine weights {weights / GIB:.1f} on {size} ranks, beside them "
            f"{resident / GIB:.1f} GiB)"
        )
    memory = {**stages[worst], "engine weights": weights, "KV cache": max(0, cache)}
    cost = _cost(request, layout, data, layers)
    return Plan(
        layout,
        data,
        tuple(layers),
        worst,
        memory,
        training,
        resident + weights + max(0, cache),
        max(0, cache),
        tokens,
        size,
        cost,
        "; ".join(problems),
    )


def make_plans(request: Request) -> tuple[list[Plan], list[Plan], list[str]]:
    """(those that fit, best first; those that do not, nearest first; refusals of impossible layouts).

    Raises ValueError when nothing fits, naming every factor of the request and the layout that comes nearest.
    """
    check_request(request)
    fit: list[Plan] = []
    unfit: list[Plan] = []
    refused: list[str] = []
    for layout in candidates(request):
        try:
            plan = weigh(request, layout)
        except ValueError as error:
            refused.append(str(error))
            continue
        (unfit if plan.problem else fit).append(plan)
    fit.sort(key=lambda plan: (plan.cost, plan.training))
    unfit.sort(key=lambda plan: plan.training)
    refused = list(dict.fromkeys(refused))
    if not fit:
        raise ValueError(_nothing_fits(request, unfit, refused))
    return fit, unfit, refused


def describe(layout: Layout) -> str:
    """Short words for a layout."""
    parallel = layout.parallel
    words = [f"tensor {parallel.tensor}", f"pipeline {parallel.pipeline}", f"context {parallel.context}"]
    words += [f"first stage {parallel.first_stage_layers}"] if parallel.first_stage_layers else []
    return ", ".join([*words, f"recompute {layout.recompute}"])


def _nothing_fits(request: Request, unfit: list[Plan], refused: list[str]) -> str:
    frozen = ", ".join(request.frozen) or "nothing"
    asked = (
        f"nothing fits: {parameter_count(request.model):,} parameters in {request.dtype} on {request.gpus} GPUs "
        f"({request.trainer_gpus} train) of {request.memory_gib:g} GiB ({request.reserve_gib:g} reserved), "
        f"{request.tokens} tokens and {request.patches} patches a microbatch, {request.microbatches} microbatches, "
        f"rollouts {request.placement} with {request.kv_tokens} KV tokens, reference model "
        f"{'yes' if request.reference else 'no'}, frozen: {frozen}"
    )
    if not unfit:
        return f"{asked}; no layout is possible: {refused[0] if refused else 'no divisors'}"
    nearest = "\n".join(f"  {describe(plan.layout)}: {plan.problem}" for plan in unfit[:3])
    enough = [words for words, other in _remedies(request) if _anything_fits(other)]
    remedy = f"any one of these would do: {'; '.join(enough)}" if enough else "more GPUs, or GPUs with more memory"
    return f"{asked}; nearest:\n{nearest}\n{remedy}"


def _remedies(request: Request) -> Iterator[tuple[str, Request]]:
    """Requests a step smaller than ``request``, each with what to say for it."""
    if request.reference:
        yield "--no-reference (no KL)", replace(request, reference=False)
    if request.tokens > 1:
        tokens, patches = -(-request.tokens // 4), -(-request.patches // 4)
        yield f"--tokens {tokens} --patches {patches}", replace(request, tokens=tokens, patches=patches)
    if request.kv_tokens > 1:
        fewer = -(-request.kv_tokens // 4)
        yield f"--kv-tokens {fewer}", replace(request, kv_tokens=fewer)
    for times in (2, 4):
        engines = request.engine_gpus * times
        yield f"--gpus {request.gpus * times}", replace(request, gpus=request.gpus * times, engine_gpus=engines)


def _anything_fits(request: Request) -> bool:
    return any(plan is not None and not plan.problem for plan in map(partial(_try, request), candidates(request)))


def _try(request: Request, layout: Layout) -> Plan | None:
    try:
        return weigh(request, layout)
    except ValueError:
        return None
