"""A set of weights as a private file in shared memory: how they reach an engine's worker processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

_SHARED_MEMORY = Path("/dev/shm")
_HEADER_BYTES_PER_TENSOR = 1024  # name, dtype, shape and offsets in the file's JSON; more than they take
_SPARE_BYTES = 16 << 20  # left in shared memory for the others that use it


def _folder(tensors: Mapping[str, torch.Tensor]) -> Path:
    """Shared memory where it can hold ``tensors`` (a container often has 64 MiB), else the temporary directory."""
    needed = sum(tensor.numel() * tensor.element_size() + _HEADER_BYTES_PER_TENSOR for tensor in tensors.values())
    if os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free > needed + _SPARE_BYTES:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


@contextmanager
def weight_file(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Path]:
    """Path of a safetensors file holding ``weights``, readable by this user alone and removed on the way out.

    In /dev/shm where that has room for them, otherwise in the temporary directory. Raises ValueError for a name
    given twice.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        if name in tensors:
            raise ValueError(f"weight {name!r} is sent twice in one update; the export must name each tensor once")
        tensors[name] = tensor.detach().contiguous()
    folder = _folder(tensors)
    handle, name = tempfile.mkstemp(prefix="megatron_apo-weights-", suffix=".safetensors", dir=folder)  # mode 0600
    os.close(handle)
    path = Path(name)
    try:
        save_file(tensors, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
