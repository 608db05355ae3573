"""Tensors' bytes into files, by the kernel where they lie in a file already."""

from __future__ import annotations

import errno
import os
import sys
from io import FileIO
from pathlib import Path

import torch

Origin = tuple[Path, int]  # the file that holds a tensor's numbers one after the other, and from which byte


def write_tensor(file: FileIO, tensor: torch.Tensor, origin: Origin | None = None) -> None:
    """Writes ``tensor`` where ``file`` stands. OSError when there is no room."""
    sent = 0 if origin is None else _send(file, *origin, tensor.nbytes)
    if sent < tensor.nbytes:
        write_bytes(file, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data[sent:])


def write_bytes(file: FileIO, data: bytes | memoryview) -> None:
    """Writes all of ``data``; the system takes at most 2 GiB at a time."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[file.write(rest) :]


def _send(file: FileIO, source: Path, offset: int, count: int) -> int:
    """Bytes that the kernel copied from file to file: ``count``, or fewer where it cannot."""
    sent = 0
    if sys.platform != "linux":
        return sent
    with source.open("rb", buffering=0) as opened:
        while sent < count:
            try:
                now = os.sendfile(file.fileno(), opened.fileno(), offset + sent, count - sent)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # not between these file systems
                    return sent
                raise
            if now == 0:
                raise OSError(f"{source}: became shorter while it was read")
            sent += now
    return sent
