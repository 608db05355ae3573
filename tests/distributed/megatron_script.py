"""What a rank of the example scripts runs in tests: the script's own ``main``, with its numbers written to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from examples.megatron_script.train import main
from examples.own_model.train import main as own_model


def losses(directory: Path, *, arguments: list[str]) -> None:
    """Writes the losses that this rank saw (none before the last stage) to ``losses-RANK.json``."""
    history = main(arguments)
    (directory / f"losses-{os.environ['RANK']}.json").write_text(json.dumps(history), encoding="utf-8")


def metrics(directory: Path, *, arguments: list[str]) -> None:
    """Writes the metrics of each update of the script with a model of its own to ``metrics.json``."""
    own_model([*arguments, "--metrics", str(directory / "metrics.json")])
