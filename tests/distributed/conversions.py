"""What the ranks of the conversion tests run: the tool's own command line."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig  # noqa: F401 - imported once here, inherited by every rank

from megatron_apo.conversion import convert, verify  # noqa: F401 - likewise
from megatron_apo.conversion.command import main


def command(directory: Path, *, arguments: list[str], status: int = 0) -> None:
    """Runs tools/convert_checkpoint.py's command line on this rank."""
    torch.set_num_threads(1)
    found = main(arguments)
    assert found == status, (arguments, found)
