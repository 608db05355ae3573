"""Log-probabilities of transformers, Megatron and vLLM on the same tokens: see --help, docs/model_providers.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.comparison.command import main  # noqa: E402
from megatron_apo.platform.program import run  # noqa: E402

if __name__ == "__main__":
    run(main)
