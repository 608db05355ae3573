"""A set of weights as a private file in shared memory: how they reach an engine's worker processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "megatron_apo-weights-"
_HEADER_BYTES_PER_TENSOR = 1024  # name, dtype, shape and offsets in the file's JSON; more than they take
_SPARE_BYTES = 16 << 20  # left in shared memory for the others that use it


def _folder(tensors: Mapping[str, torch.Tensor]) -> Path:
    """Shared memory where it can hold ``tensors`` (a container often has 64 MiB), else the temporary directory."""
    needed = sum(tensor.numel() * tensor.element_size() + _HEADER_BYTES_PER_TENSOR for tensor in tensors.values())
    if os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free > needed + _SPARE_BYTES:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _remove_abandoned(folder: Path) -> None:
    """Remove weight folders of this user whose writer is gone: a killed one cannot, and shared memory is memory.

    A writer holds a lock on its folder for as long as that is in use, and the kernel lets go of it with the process.
    (On the folder and not on the file, because safetensors writes aside and renames.)
    """
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or already gone
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(descriptor)


def _create(folder: Path) -> tuple[int, Path]:
    """A new folder, mode 0700, and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # taken for abandoned by another process before it was locked
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if path.exists():
            return descriptor, path
        os.close(descriptor)


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
    for candidate in (_SHARED_MEMORY, Path(tempfile.gettempdir())):
        _remove_abandoned(candidate)
    descriptor, folder = _create(_folder(tensors))
    path = folder / "weights.safetensors"
    try:
        save_file(tensors, path)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
