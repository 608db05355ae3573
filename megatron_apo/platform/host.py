"""What this machine needs before the first import of Megatron-Core, torchvision or transformers."""

from __future__ import annotations

import atexit
import gc

from megatron_apo.platform import megatron_on_cpu
from megatron_apo.platform.torchvision_cpu import register_missing_operators


def prepare() -> None:
    """Answers for a missing GPU, and lets the program end promptly; idempotent.

    First thing in every program: transformers looks for torchvision and torchaudio when it is first imported, and
    remembers what it found.
    """
    # At its end the interpreter looks for garbage in all that torch, transformers and vLLM made, several times over:
    # seconds of work for nothing, on a busy machine a minute. The last of the exit handlers takes that away from it.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    register_missing_operators()
    megatron_on_cpu.install()
