"""What the ranks of the comparison tests run: the tool's own command line."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_apo.comparison import compare  # noqa: F401 - imported once here, inherited by every rank
from megatron_apo.comparison.command import main
from megatron_apo.platform.torchvision_cpu import register_missing_operators

register_missing_operators()
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402, F401 - as above


def command(directory: Path, *, arguments: list[str], status: int = 0) -> None:
    """Runs tools/compare_logprobs.py's command line on this rank, its files into ``directory``."""
    torch.set_num_threads(1)
    found = main([*arguments, "--output", str(directory), "--no-plot"])
    assert found == status, (arguments, found)
