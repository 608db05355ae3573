"""``python -m megatron_apo plan``: its arguments, its table, its JSON and the settings it writes."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from megatron_apo.planning.layouts import GIB, Plan, describe, make_plans
from megatron_apo.planning.request import Request
from megatron_apo.planning.sizes import KNOWN, find_model
from megatron_apo.planning.state import PARTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    default = Request.__dataclass_fields__

    def number(name: str, kind: type, what: str, field: str = "", **more: Any) -> None:
        known: dict[str, Any] = {} if more.get("required") else {"default": default[field or name].default}
        said = what if more.get("required") else f"{what} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=said, **known, **more)

    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help=f"checkpoint directory, or one of {', '.join(KNOWN)}"
    )
    number("gpus", int, "GPUs in all, trainer and engines", required=True)
    number("gpus-per-node", int, "GPUs of a node; tensor ranks stay within one", "gpus_per_node")
    number("memory", float, "GiB of memory of one GPU", required=True)
    number("tokens", int, "tokens of a packed microbatch")
    number("patches", int, "image patches (14 x 14 pixels) of a microbatch")
    number("microbatches", int, "microbatches of an update on one replica")
    number("kv-tokens", int, "tokens that an engine's KV cache must hold", "kv_tokens")
    number("reserve", float, "GiB kept for the CUDA context, communication and fragmentation", "reserve_gib")
    number("engine-gpus", int, "GPUs of the engines alone, with --rollout separate", "engine_gpus")
    parser.add_argument(
        "--rollout",
        choices=("colocated", "separate"),
        default="colocated",
        help="where engines run: on the trainer's GPUs or on others (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of weights (default: %(default)s)"
    )
    parser.add_argument("--no-reference", action="store_true", help="train without KL: no reference model in memory")
    parser.add_argument(
        "--freeze", default="", metavar="PARTS", help=f"frozen parts, comma-separated, of {', '.join(PARTS)}"
    )
    parser.add_argument("--show", type=int, default=8, metavar="N", help="layouts in the table (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--write", metavar="FILE", help="write the best layout as YAML settings; never over a file")


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
        gpus_per_node=options.gpus_per_node,
        frozen=tuple(part.strip() for part in options.freeze.split(",") if part.strip()),
    )
    if options.show < 1:
        raise ValueError(f"--show={options.show}: must be at least 1")
    if options.write:
        _check_writable(Path(options.write))
    fit, unfit, refused = make_plans(request)
    if options.json:
        print(json.dumps({"fits": [_plain(p) for p in fit], "too_big": [_plain(p) for p in unfit], "refused": refused}))
    else:
        print(table(request, fit, unfit, refused, options.show))
    if options.write:
        Path(options.write).write_text(written(request, fit[0], options.model), encoding="utf-8")


def _check_writable(path: Path) -> None:
    if path.exists():
        raise ValueError(f"--write={path}: exists already; name a file that does not")
    if not path.parent.is_dir():
        raise ValueError(f"--write={path}: {path.parent} is not a directory; make it first")


def _plain(found: Plan) -> dict[str, Any]:
    return {"recompute": found.layout.recompute, **asdict(found.layout.parallel), **_numbers(found)}


def _numbers(found: Plan) -> dict[str, Any]:
    plain = asdict(found)
    del plain["layout"]
    return plain


def settings(request: Request, best: Plan, model: str) -> dict[str, dict[str, Any]]:
    """The winning layout as sections of settings: what the plan decides and nothing else."""
    known = ("tensor", "pipeline", "context", "first_stage_layers", "sequence", "distributed_optimizer")
    engine = best.memory["engine weights"] + best.kv_cache  # the reserve is the trainer's context too: not vLLM's
    share = math.floor(100 * engine / (request.memory_gib * GIB)) / 100
    chosen: dict[str, dict[str, Any]] = {
        "model": {
            **({"path": model} if Path(model, "config.json").is_file() else {}),
            "dtype": request.dtype,
            "layer_spec": "transformer_engine",
            "recompute": best.layout.recompute,
            **{f"freeze_{part}": True for part in request.frozen},
        },
        "parallel": {name: getattr(best.layout.parallel, name) for name in known},
        "rollout": {"gpu_memory_utilization": max(0.01, share)},
        "training": {"tokens_per_microbatch": request.tokens, "logits_chunk_tokens": request.chunk},
    }
    if request.dtype == "bfloat16":
        chosen["sync"] = {"logprob_gate": 0.05}  # engine and trainer differ by the rounding of bfloat16
    if not request.reference:  # what is left of APO without a KL term, which it is refused to be called by
        stcr = {"stcr": {"enabled": True}, "reduction": "token_mean", "kl": {"coefficient": 0.0}}
        chosen["objective"] = {"name": "grpo", **stcr}
    return chosen


def written(request: Request, best: Plan, model: str) -> str:
    """The YAML file of ``settings``, with the plan's numbers above them."""
    missing = "" if Path(model, "config.json").is_file() else "model.path, "
    lines = [
        f"{model} on {request.gpus} GPUs of {request.memory_gib:g} GiB, rollouts {request.placement}: "
        f"{describe(best.layout)}, data {best.data}.",
        *phases(request, best).splitlines(),
        f"The settings that the plan does not decide keep their defaults: give {missing}data.train and the rest,",
        "here or as --section.key=value. layer_spec: local instead where there is no Transformer Engine.",
    ]
    if request.placement == "colocated":
        lines.append(_BOTH_AWAKE)
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(settings(request, best, model), sort_keys=False)


_COLUMNS = ("TP", "PP", "CP", "DP", "layers", "recompute", "stage", "weights", "ref", "grads", "optim", "activ",
            "vision", "head", "train", "engine", "KV", "KV tokens", "cost")  # fmt: skip
_LEGEND = """Memory in GiB on the fullest GPU, one of pipeline stage `stage`.
  layers  of the language model: 13+2x15 is 13 on the first stage and 15 on each of two more
  engine  weights on each GPU of an engine / its GPUs; KV is what is left there for its cache
  cost    time of an update relative to the best: an estimate that orders layouts and was never measured"""
_BOTH_AWAKE = (
    "Needs an engine that sleeps while the trainer works and a trainer that makes room for it: this version does not "
    "do that yet."
)


def _row(found: Plan, best: float) -> list[str]:
    parallel, memory = found.layout.parallel, found.memory
    layers = f"{found.layers[0]}+{len(found.layers) - 1}x{found.layers[-1]}" if len(found.layers) > 1 else "all"
    parts = ("weights", "reference", "gradients", "optimizer", "activations", "vision", "logits")
    return [
        *(str(size) for size in (parallel.tensor, parallel.pipeline, parallel.context, found.data)),
        layers,
        found.layout.recompute,
        str(found.stage),
        *(f"{memory[name] / GIB:.1f}" for name in parts),
        f"{found.training / GIB:.1f}",
        f"{memory['engine weights'] / GIB:.1f}/{found.engine_tensor}",
        f"{found.kv_cache / GIB:.1f}",
        str(found.kv_tokens),
        f"{found.cost / best:.2f}",
    ]


def phases(request: Request, best: Plan) -> str:
    """Two lines: what is on the fullest GPU while training, and while generating. GiB."""

    def total(parts: dict[str, int]) -> str:
        return f"{sum(parts.values()) / GIB:.1f} = " + " + ".join(
            f"{name} {size / GIB:.1f}" for name, size in parts.items() if size
        )

    memory = best.memory
    engine = {name: memory[name] for name in ("engine weights", "KV cache")}
    training = {name: size for name, size in memory.items() if name not in engine}
    aside = "; the engine sleeps" if request.placement == "colocated" else ""
    said = [f"training:   {total(training)}{aside}"]
    reserve = {"reserve": memory["reserve"]}
    if request.placement == "separate":
        return "\n".join([*said, f"generation: {total({**engine, **reserve})}, on GPUs of its own"])
    trainer = best.generation - sum(engine.values()) - memory["reserve"]
    node, moved = min(request.gpus, request.gpus_per_node), memory["optimizer"] / GIB
    said.append(
        f"generation: {total({'weights and reference': trainer, **engine, **reserve})}; to the host: optimizer "
        f"{moved:.1f} ({moved * node:.0f} for {node} GPUs of a node), released: gradients "
        f"{memory['gradients'] / GIB:.1f}"
    )
    return "\n".join(said)


def _reasons(refused: list[str]) -> list[tuple[str, int]]:
    """What is wrong, each once, and with how many layouts. ``check_layout`` says "layout: <factors>: <what is wrong>
    (<every size>); <remedy>", and the sizes are the same every time."""
    wrong = (message.split(": ", 2)[2].partition(" (divisible by")[0] for message in refused)
    return list(Counter(wrong).items())


def _worth_showing(fit: list[Plan]) -> list[Plan]:
    """Without those that another recompute setting of the same layout beats in time and in memory."""
    return [
        found
        for found in fit
        if not any(
            other.layout.parallel == found.layout.parallel
            and other.cost < found.cost
            and other.training <= found.training
            for other in fit
        )
    ]


def table(request: Request, fit: list[Plan], unfit: list[Plan], refused: list[str], show: int) -> str:
    """What the terminal shows: layouts that fit, the reasons of those that do not. Memory in GiB."""
    shown = _worth_showing(fit)
    rows = [list(_COLUMNS), *(_row(found, fit[0].cost) for found in shown[:show])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"\nLayouts that fit: {len(fit)}. {_LEGEND}")
    if len(shown) < len(fit):
        lines.append(f"{len(fit) - len(shown)} of them are left out: recomputing there costs time and saves nothing.")
    lines.append(f"\nThe best of them, {describe(fit[0].layout)}, of {request.memory_gib:g} GiB:")
    lines += [f"  {line}" for line in phases(request, fit[0]).splitlines()]
    lines += [f"  {_BOTH_AWAKE}"] if request.placement == "colocated" else []
    if unfit:
        lines.append(f"\nDo not fit: {len(unfit)}, nearest first:")
        lines += [f"  {describe(found.layout)}: {found.problem}" for found in unfit[:show]]
    if refused:
        reasons = _reasons(refused)
        lines.append(f"\nImpossible: {len(refused)} (--json has each with every size)")
        lines += [f"  {reason} ({count} layout{'s' if count > 1 else ''})" for reason, count in reasons[:show]]
        lines += [f"  and {len(reasons) - show} more reasons"] if len(reasons) > show else []
    return "\n".join(lines)
