"""Sharded safetensors, written tensor by tensor: no shard is ever held in memory.

The format (github.com/huggingface/safetensors): eight bytes little-endian length of a JSON header, the header, the
tensors' bytes without a gap. Names and shapes are known from the weight map, so that headers can be written first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from megatron_apo.conversion.raw_files import Origin, write_bytes, write_tensor

DEFAULT_SHARD_BYTES = 5 * 10**9
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")

Entry = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Shard:
    name: str
    entries: tuple[Entry, ...]


def total_bytes(entries: Sequence[Entry], dtype: torch.dtype) -> int:
    """Bytes of all tensors."""
    return sum(_bytes(shape, dtype) for _, shape in entries)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _plan(entries: Sequence[Entry], dtype: torch.dtype, shard_bytes: int) -> list[_Shard]:
    parts: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        size = _bytes(entry[1], dtype)
        if parts[-1] and held + size > shard_bytes:
            parts.append([])
            held = 0
        parts[-1].append(entry)
        held += size
    if len(parts) == 1:
        return [_Shard("model.safetensors", tuple(parts[0]))]
    names = (f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1))
    return [_Shard(name, tuple(part)) for name, part in zip(names, parts, strict=True)]


def _header(shard: _Shard, dtype: torch.dtype) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard.entries:
        size = _bytes(shape, dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes the tensors of ``entries``, in that order and of one ``dtype``, into ``directory``.

    Shards hold at most ``shard_bytes`` (at least one tensor each); several get an index. Several writers may share the
    work: writer ``share[0]`` of ``share[1]`` writes every so manieth shard. OSError when the disk is full.
    """

    def __init__(
        self,
        directory: Path,
        entries: Sequence[Entry],
        dtype: torch.dtype,
        shard_bytes: int,
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._directory, self._dtype = directory, dtype
        self._shards = _plan(entries, dtype, shard_bytes)
        self._total = total_bytes(entries, dtype)
        own = self._shards[share[0] :: share[1]]
        self._expected = [(shard, position) for shard in own for position in range(len(shard.entries))]
        self._is_first = share[0] == 0
        self._written = 0
        self._background = ThreadPoolExecutor(1)
        self._synced: list[Future[None]] = []
        self._file: FileIO | None = None

    @property
    def names(self) -> list[str]:
        """What this writer is to be given, in order."""
        return [shard.entries[position][0] for shard, position in self._expected]

    def add(self, name: str, tensor: torch.Tensor, origin: Origin | None = None) -> None:
        """Writes the next tensor, of which ``origin`` may say in which file it lies already."""
        shard, position = self._expected[self._written]
        assert (name, tuple(tensor.shape), tensor.dtype) == (*shard.entries[position], self._dtype), name
        if position == 0:
            self._end_shard()
            self._file = (self._directory / shard.name).open("wb", buffering=0)
            write_bytes(self._file, _header(shard, self._dtype))
        assert self._file is not None
        write_tensor(self._file, tensor, origin)
        self._written += 1

    def _end_shard(self) -> None:
        """Has the shard brought to the disk while the next one is written."""
        if self._file is not None:
            self._synced.append(self._background.submit(_sync_and_close, self._file))
            self._file = None

    def finish(self) -> None:
        """Ends the last shard; the first writer writes the index, if there are several shards."""
        assert self._written == len(self._expected), f"{self._written} of {len(self._expected)} tensors were written"
        self._end_shard()
        for synced in self._synced:
            synced.result()
        self.close()
        if self._is_first and len(self._shards) > 1:
            places = {name: shard.name for shard in self._shards for name, _ in shard.entries}
            index = {"metadata": {"total_size": self._total}, "weight_map": places}
            path = self._directory / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2), encoding="utf-8")

    def close(self) -> None:
        """Closes the files that are being written, also after an error."""
        self._background.shutdown()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _sync_and_close(file: FileIO) -> None:
    with file:
        os.fsync(file.fileno())


def copy_other_files(source: Path, target: Path) -> None:
    """Copies what is not weights: config, tokenizer and processor files. ValueError for a link that leads nowhere."""
    for path in sorted(source.iterdir()):
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{path}: a link to {os.readlink(path)}, which is not there; download the whole model")
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHT_FILES):
            shutil.copyfile(path, target / path.name)
