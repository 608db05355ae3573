"""What a rank of the example script runs in tests: the script's own ``main``, with its losses written to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from examples.megatron_script.train import main


def losses(directory: Path, *, arguments: list[str]) -> None:
    """Writes the losses that this rank saw (none before the last stage) to ``losses-RANK.json``."""
    history = main(arguments)
    (directory / f"losses-{os.environ['RANK']}.json").write_text(json.dumps(history), encoding="utf-8")
