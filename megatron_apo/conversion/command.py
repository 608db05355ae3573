"""The command line of ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

_EXAMPLES = """examples:
  python tools/convert_checkpoint.py hf-to-megatron Qwen2.5-VL-3B-Instruct megatron-3b
  python tools/convert_checkpoint.py verify Qwen2.5-VL-3B-Instruct megatron-3b
  python tools/convert_checkpoint.py megatron-to-hf megatron-3b back
  python tools/convert_checkpoint.py megatron-to-hf runs/a/checkpoints/step_000050 out --hf-files Qwen2.5-VL-3B-Instruct
  python tools/convert_checkpoint.py inspect megatron-3b --tensors
  torchrun --nproc-per-node 4 tools/convert_checkpoint.py hf-to-megatron SOURCE TARGET --tensor 2 --pipeline 2

A Megatron checkpoint (torch_dist) can be read by every layout, whichever wrote it. The exit status is 0, 1 when verify
finds a difference, 2 after an error; after an error the target is what it was before.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Hugging Face <-> Megatron checkpoints, bit for bit.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "hf-to-megatron": "safetensors -> torch_dist",
        "megatron-to-hf": "torch_dist -> sharded safetensors with config, tokenizer and processor files",
        "inspect": "what a checkpoint of either form holds",
        "verify": "compare two checkpoints of either form, every bit of every tensor",
    }
    for name, text in about.items():
        command = commands.add_parser(
            name, help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("source" if name != "inspect" else "checkpoint", type=Path)
        if name != "inspect":
            command.add_argument("target" if name != "verify" else "other", type=Path)
        if name in ("hf-to-megatron", "verify"):
            command.add_argument("--tensor", type=int, default=1, help="tensor-parallel processes (torchrun)")
            command.add_argument("--pipeline", type=int, default=1, help="pipeline stages (torchrun)")
        if name != "hf-to-megatron":
            command.add_argument(
                "--hf-files", help="config and tokenizer of a Megatron checkpoint that has none inside"
            )
        if name == "inspect":
            command.add_argument("--tensors", action="store_true", help="list every tensor")
        if name.endswith(("to-hf", "to-megatron")):
            command.add_argument("--force", action="store_true", help="replace the target once the new one is whole")
        if name == "megatron-to-hf":
            command.add_argument("--shard-size", type=float, default=5.0, metavar="GB", help="of one file (default 5)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    from megatron_apo.platform.host import prepare

    prepare()
    warnings.filterwarnings("ignore")  # Megatron's and torch's about their own internals
    logging.disable(logging.WARNING)
    from megatron_apo.parallel.status import PhaseError

    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(options)
    except PhaseError:
        return 2  # the rank that failed says why
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_launcher(f"error: {error}")
        return 2
    except KeyboardInterrupt as error:
        print("interrupted: nothing was left under the target's name that was not there before", file=sys.stderr)
        return 143 if isinstance(error, _TerminatedError) else 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell_launcher(message: str) -> None:
    """Has torchrun's summary of a failed job, which comes last, say ``message`` of this process."""
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")  # set by torchrun
    if reply:
        Path(reply).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a conversion as Ctrl-C does."""


def _terminate(number: int, frame: object) -> None:
    raise _TerminatedError


def _run(options: argparse.Namespace) -> int:
    from megatron_apo.conversion import convert
    from megatron_apo.conversion.verify import inspect, verify

    if options.command == "inspect":
        print("\n".join(inspect(options.checkpoint, hf_files=options.hf_files, tensors=options.tensors)))
        return 0
    if options.command == "verify":
        layout = convert.Layout(options.tensor, options.pipeline)
        differences, equal = verify(options.source, options.other, hf_files=options.hf_files, layout=layout)
        if differences or equal:  # nothing of either is known beside rank 0
            print(f"{equal} tensors equal bit for bit, {len(differences)} differ")
        print("\n".join(differences), end="\n" if differences else "")
        return 1 if differences else 0
    if options.command == "hf-to-megatron":
        layout = convert.Layout(options.tensor, options.pipeline)
        convert.hf_to_megatron(
            options.source,
            options.target,
            layout=layout,
            force=options.force,
        )
    else:
        if not 0 < options.shard_size < math.inf:
            raise ValueError(f"--shard-size {options.shard_size}: must be above 0 GB, and finite")
        convert.megatron_to_hf(
            options.source,
            options.target,
            hf_files=options.hf_files,
            shard_bytes=int(options.shard_size * 1e9),
            force=options.force,
        )
    return 0
