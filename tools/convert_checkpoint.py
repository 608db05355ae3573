"""Qwen2.5-VL and Qwen2-VL checkpoints between Hugging Face and Megatron: see --help, docs/conversion.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.conversion.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
