"""Memory that a process and its child see alike: what the child puts there, nobody has to send."""

from __future__ import annotations

import fcntl
import mmap
import os


class SharedBytes:
    """Bytes behind a file descriptor without a name. Whoever makes them grows them; they never shrink.

    ``descriptor``: what a child was given; None makes new ones. A child that is out of its mind can write nonsense
    there, but cannot take the memory away under its parent's hands: that is sealed.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("megatron_apo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.descriptor = descriptor
        self._size = 0
        self._mapped: mmap.mmap | None = None

    def grow(self, count: int) -> None:
        """From now on there are ``count`` bytes at least."""
        if count > self._size:
            os.ftruncate(self.descriptor, count)
            self._map(count)

    def first(self, count: int) -> memoryview:
        """The first ``count`` bytes; ValueError when there are fewer."""
        if count > self._size:
            self._map(os.fstat(self.descriptor).st_size)
        if self._mapped is None or count > self._size:
            raise ValueError(f"{count:,} bytes of {self._size:,} that are shared")
        return memoryview(self._mapped)[:count]

    def close(self) -> None:
        """Gives the descriptor back; the memory goes with the last view of it."""
        self._mapped = None
        os.close(self.descriptor)

    def _map(self, size: int) -> None:
        if size:
            self._mapped, self._size = mmap.mmap(self.descriptor, size), size
