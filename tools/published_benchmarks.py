"""The papers' benchmarks by lmms-eval, beside the published figures: see --help, docs/evaluation.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.evaluation.lmms_eval import main  # noqa: E402
from megatron_apo.platform.program import run  # noqa: E402

if __name__ == "__main__":
    run(main)
