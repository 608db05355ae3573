"""``python -m megatron_apo plan``: its arguments, its table, its JSON and the settings it writes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megatron_apo.config import Config, ModelConfig, RolloutConfig, TrainingConfig
from megatron_apo.config_loading import dump_config, validate
from megatron_apo.planning.layouts import GIB, Plan, Request, describe, make_plans
from megatron_apo.planning.sizes import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    default = Request.__dataclass_fields__

    def number(name: str, kind: type, what: str, field: str = "", **more: Any) -> None:
        known: dict[str, Any] = {} if more.get("required") else {"default": default[field or name].default}
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=what, **known, **more)

    parser.add_argument("--model", required=True, metavar="DIR|NAME", help="checkpoint directory or Qwen2.5-VL-7B, …")
    number("gpus", int, "GPUs in all", required=True)
    number("memory", float, "GiB of memory of one GPU", required=True)
    number("tokens", int, "tokens of a packed microbatch")
    number("patches", int, "image patches (14 x 14 pixels) of a microbatch")
    number("microbatches", int, "microbatches of an update on one replica")
    number("kv-tokens", int, "tokens that an engine's KV cache must hold", "kv_tokens")
    number("reserve", float, "GiB kept for the CUDA context, communication and fragmentation", "reserve_gib")
    number("engine-gpus", int, "GPUs of the engines alone, with --rollout separate", "engine_gpus")
    parser.add_argument("--rollout", choices=("colocated", "separate"), default="colocated", help="where engines run")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of weights")
    parser.add_argument("--no-reference", action="store_true", help="train without KL: no reference model in memory")
    parser.add_argument("--show", type=int, default=8, metavar="N", help="layouts in the table (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--write", metavar="FILE", help="write the best layout as YAML settings")


def plan(options: argparse.Namespace) -> None:
    """Runs the command; ValueError for a request that nothing fits."""
    request = Request(
        model=find_model(options.model),
        gpus=options.gpus,
        memory_gib=options.memory,
        tokens=options.tokens,
        patches=options.patches,
        microbatches=options.microbatches,
        placement=options.rollout,
        engine_gpus=options.engine_gpus,
        kv_tokens=options.kv_tokens,
        dtype=options.dtype,
        reference=not options.no_reference,
        reserve_gib=options.reserve,
    )
    if options.write and Path(options.write).exists():
        raise ValueError(f"--write={options.write}: exists already; name a file that does not")
    fit, unfit, refused = make_plans(request)
    if options.json:
        print(json.dumps({"fits": [_plain(p) for p in fit], "too_big": [_plain(p) for p in unfit], "refused": refused}))
    else:
        print(table(fit, unfit, refused, options.show))
    if options.write:
        Path(options.write).write_text(dump_config(settings(request, fit[0], options.model)), encoding="utf-8")


def _plain(found: Plan) -> dict[str, Any]:
    return {"recompute": found.layout.recompute, **asdict(found.layout.parallel), **_numbers(found)}


def _numbers(found: Plan) -> dict[str, Any]:
    plain = asdict(found)
    del plain["layout"]
    return plain


def settings(request: Request, best: Plan, model: str) -> Config:
    """The winning layout as settings; ``model.path`` stays empty for a known name."""
    colocated = request.placement == "colocated"
    share = (best.generation - best.memory["weights"] - best.memory["reference"] if colocated else best.generation) / (
        request.memory_gib * GIB
    )
    config = replace(
        Config(),
        model=ModelConfig(
            path=model if Path(model, "config.json").is_file() else "",
            dtype=request.dtype,
            layer_spec="transformer_engine",
            recompute=best.layout.recompute,
        ),
        parallel=best.layout.parallel,
        rollout=RolloutConfig(gpu_memory_utilization=round(min(0.95, share), 2)),
        training=TrainingConfig(tokens_per_microbatch=request.tokens, logits_chunk_tokens=request.chunk),
    )
    validate(config)
    return config


_COLUMNS = ("TP", "PP", "CP", "DP", "layers", "recompute", "weights", "ref", "grads", "optim", "activ", "vision",
            "head", "train", "engine", "KV", "KV tokens", "cost")  # fmt: skip


def _row(found: Plan, best: float) -> list[str]:
    parallel, memory = found.layout.parallel, found.memory
    layers = f"{found.layers[0]}+{len(found.layers) - 1}x{found.layers[-1]}" if len(found.layers) > 1 else "all"
    parts = ("weights", "reference", "gradients", "optimizer", "activations", "vision", "logits")
    return [
        *(str(size) for size in (parallel.tensor, parallel.pipeline, parallel.context, found.data)),
        layers,
        found.layout.recompute,
        *(f"{memory[name] / GIB:.1f}" for name in parts),
        f"{found.training / GIB:.1f}",
        f"{memory['engine weights'] / GIB:.1f}/{found.engine_tensor}",
        f"{found.kv_cache / GIB:.1f}",
        str(found.kv_tokens),
        f"{found.cost / best:.2f}",
    ]


def table(fit: list[Plan], unfit: list[Plan], refused: list[str], show: int) -> str:
    """What the terminal shows: layouts that fit, the reasons of those that do not. Memory in GiB."""
    rows = [list(_COLUMNS), *(_row(found, fit[0].cost) for found in fit[:show])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"\n{len(fit)} layouts fit; memory in GiB on the fullest GPU, cost relative to the best.")
    if unfit:
        lines.append(f"\n{len(unfit)} do not fit, nearest first:")
        lines += [f"  {describe(found.layout)}: {found.problem}" for found in unfit[:show]]
    if refused:
        lines.append(f"\n{len(refused)} are impossible:")
        lines += [f"  {reason}" for reason in refused[:show]]
    return "\n".join(lines)
