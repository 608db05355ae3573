"""A set of weights as a private file in shared memory: how they reach an engine's worker processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def weight_file(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Path]:
    """Path of a safetensors file holding ``weights``, readable by this user alone and removed on the way out.

    In /dev/shm where there is one, otherwise in the temporary directory. Raises ValueError for a name given twice.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        if name in tensors:
            raise ValueError(f"weight {name!r} is sent twice in one update; the export must name each tensor once")
        tensors[name] = tensor.detach().contiguous()
    folder = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    handle, name = tempfile.mkstemp(prefix="megatron_apo-weights-", suffix=".safetensors", dir=folder)  # mode 0600
    os.close(handle)
    path = Path(name)
    try:
        save_file(tensors, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
