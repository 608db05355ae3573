"""Commands of the product, each in forked ranks of its own (``tests.distributed.launcher``): imports are paid once.

A rank's exit status and all that it wrote to stderr, native code included, are in ``rank<N>.json`` of its directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import megatron_apo.compose
import megatron_apo.data.pixels
import megatron_apo.sft  # noqa: F401 - imported here once for all ranks
from megatron_apo.cli import main
from megatron_apo.platform.torchvision_cpu import register_missing_operators

register_missing_operators()
from transformers import AutoProcessor, Qwen2_5_VLConfig  # noqa: E402, F401 - as above: slow to import


def command(directory: Path, words: list[str], lose_images_on: int = -1) -> None:
    """Runs ``python -m megatron_apo *words`` on this rank.

    ``lose_images_on``: a rank on which the images cannot be found once their prompts are made, as on a machine whose
    share is gone.
    """
    rank = int(os.environ["RANK"])
    if os.environ["WORLD_SIZE"] == "1":
        as_without_a_launcher()
    if rank == lose_images_on:
        _lose_images()
    log, started, kept = directory / f"rank{rank}.stderr", time.monotonic(), os.dup(2)
    with log.open("w") as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            status = main(words)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
    answer = {"status": status, "stderr": log.read_text(), "seconds": time.monotonic() - started}
    (directory / f"rank{rank}.json").write_text(json.dumps(answer))


def as_without_a_launcher() -> None:
    """Forgets what a launcher says of ranks."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        del os.environ[name]


def answers(directory: Path) -> list[dict[str, Any]]:
    """What ``command`` left of each rank."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("rank*.json"))]


def _lose_images() -> None:
    load = megatron_apo.data.pixels.load_image

    def elsewhere(path: str, *, sha256: str) -> Any:
        return load(f"{path}.gone", sha256=sha256)

    megatron_apo.data.pixels.load_image = elsewhere  # type: ignore[assignment]
