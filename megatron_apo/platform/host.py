"""What this machine needs before the first import of Megatron-Core, torchvision or transformers."""

from __future__ import annotations

from megatron_apo.platform import megatron_on_cpu
from megatron_apo.platform.torchvision_cpu import register_missing_operators


def prepare() -> None:
    """Answers for a missing GPU; idempotent, and nothing where there is one.

    First thing in every program: transformers looks for torchvision and torchaudio when it is first imported, and
    remembers what it found.
    """
    register_missing_operators()
    megatron_on_cpu.install()
