"""Tensors of a torch_dist checkpoint straight out of its mapped files, whatever layout wrote it.

``.metadata`` says which part of which tensor lies where; a part is a ``torch.save`` archive, whose numbers are used
where they lie. Only what several parts make up is copied.
"""

from __future__ import annotations

import io
import mmap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from megatron_apo import wording
from megatron_apo.conversion.megatron_files import read_metadata, weight_tensors
from megatron_apo.conversion.metadata_file import UnpicklingError
from megatron_apo.conversion.raw_files import Origin


class _Bytes(io.RawIOBase):
    """A file of ``length`` bytes of ``mapping`` from ``offset``."""

    def __init__(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        self._mapping, self._offset, self._length, self._position = mapping, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._offset + self._position
        part = self._mapping[start : min(start + len(buffer), self._offset + self._length)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


@dataclass(frozen=True)
class _Part:
    """Numbers ``offsets`` to ``offsets + sizes`` of a tensor: ``length`` bytes of ``file`` from ``place``."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    place: int
    length: int


class StoredTensors:
    """The weights of the torch_dist checkpoint in ``directory`` by stored name. ValueError when it is not whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        metadata = read_metadata(directory)
        weights = weight_tensors(metadata)
        self.shapes = {name: tuple(entry.size) for name, entry in weights.items()}
        self.dtypes = {name: entry.properties.dtype for name, entry in weights.items()}
        self._parts = {name: _parts(name, entry, metadata, directory) for name, entry in weights.items()}
        self._mappings: dict[str, tuple[mmap.mmap, int]] = {}
        self._lock = Lock()

    def read(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """``sizes`` numbers from ``offsets`` of a tensor: mapped memory if one part holds them all, else a copy."""
        copied, covered = None, 0
        for part in self._parts[name]:
            low = [max(own, asked) for own, asked in zip(part.offsets, offsets, strict=True)]
            high = [
                min(own + size, asked + asked_size)
                for own, size, asked, asked_size in zip(part.offsets, part.sizes, offsets, sizes, strict=True)
            ]
            if any(first >= last for first, last in zip(low, high, strict=True)):
                continue
            found = self._map(name, part)[_box(low, high, part.offsets)]
            if tuple(found.shape) == sizes:
                return found
            if copied is None:
                copied = torch.empty(sizes, dtype=self.dtypes[name])
            copied[_box(low, high, offsets)] = found
            covered += found.numel()
        if copied is None or covered != torch.Size(sizes).numel():
            raise ValueError(f"{self.directory}: parts of {name} are missing from .metadata; convert or copy it again")
        return copied

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        """Where in a file the numbers of ``tensor`` lie one after the other; None if they were put together."""
        if not tensor.is_contiguous():
            return None
        with self._lock:  # another thread may map a file meanwhile
            mappings = list(self._mappings.items())
        for name, (mapping, start) in mappings:
            if 0 <= tensor.data_ptr() - start < len(mapping):
                return self.directory / name, tensor.data_ptr() - start
        return None

    def _map(self, name: str, part: _Part) -> torch.Tensor:
        place = part.place + self._start(name, part)
        mapping, _ = self._mapping(part.file)
        return _numbers(mapping, self.dtypes[name], torch.Size(part.sizes).numel(), place).view(part.sizes)

    def _start(self, name: str, part: _Part) -> int:
        """Where in the archive of ``part`` its numbers begin."""
        mapping, _ = self._mapping(part.file)
        try:
            archive = cast(IO[bytes], _Bytes(mapping, part.place, part.length))
            about = torch.load(archive, map_location="meta", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnpicklingError) as error:
            why = str(error).split("\n", 1)[0]
            raise ValueError(f"{self.directory / part.file}: {name} is damaged ({why}); copy it again") from error
        if not isinstance(about, torch.Tensor):
            raise ValueError(f"{self.directory / part.file}: {name} is {wording.kind(about)} there; copy it again")
        numbers = torch.Size(part.sizes).numel()
        if about.dtype != self.dtypes[name] or about.numel() != numbers or not about.is_contiguous():
            raise ValueError(
                f"{self.directory / part.file}: {name} is stored as {about.dtype} {tuple(about.shape)}, .metadata says "
                f"{self.dtypes[name]} {part.sizes}; convert or copy it again"
            )
        storage = cast(Any, about.untyped_storage())
        start: int = storage._checkpoint_offset + int(about.storage_offset()) * about.itemsize
        return start

    def _mapping(self, name: str) -> tuple[mmap.mmap, int]:
        with self._lock:
            if name not in self._mappings:
                with (self.directory / name).open("rb") as file:
                    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._mappings[name] = mapping, _numbers(mapping, torch.uint8, 1, 0).data_ptr()
            return self._mappings[name]


def _numbers(mapping: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the memory is not to be written to
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset)


def _parts(name: str, entry: TensorStorageMetadata, metadata: Metadata, directory: Path) -> list[_Part]:
    found = []
    places = metadata.storage_data or {}
    for chunk in entry.chunks:
        place = places.get(MetadataIndex(name, chunk.offsets))
        if place is None:
            raise ValueError(f"{directory}: .metadata says of no file that it holds {name}; convert or copy it again")
        found.append(_Part(tuple(chunk.offsets), tuple(chunk.sizes), place.relative_path, place.offset, place.length))
    return found


def _box(low: Sequence[int], high: Sequence[int], origin: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(first - zero, last - zero) for first, last, zero in zip(low, high, origin, strict=True))
