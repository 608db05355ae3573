"""Hugging Face's weights into torch_dist files, slice by slice, without a model that holds them.

Plan, keys and metadata are Megatron's and torch's own; only how the numbers come into the files is not: tensor after
tensor, from file to file where they lie there in one piece.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.distributed.checkpoint as torch_checkpoint
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_apo.conversion.megatron_files import sharded_state
from megatron_apo.conversion.raw_files import write_bytes, write_tensor
from megatron_apo.conversion.together import Progress, together
from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import CheckpointReader, fill, global_parameters, mapped_rows, model_rows
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.slices import Slice, rank_slices
from model_providers.qwen_vl.weight_map import WeightRow

WRITERS = 2  # files that a process writes at the same time; Megatron's default


@dataclass(frozen=True)
class _Part:
    """Rows of a parameter from ``first``, as Megatron stores them."""

    row: WeightRow
    slices: list[Slice]
    parameter_shape: tuple[int, ...]
    first: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def write(self, file: FileIO, reader: CheckpointReader) -> None:
        mapped = mapped_rows(self.row, reader, self.slices, self.first, self.shape)
        if mapped is not None:
            write_tensor(file, *mapped)
            return
        whole = torch.empty(self.parameter_shape, dtype=self.dtype)
        fill(whole, self.row, reader, self.slices)
        write_tensor(file, whole[self.first : self.first + self.shape[0]])


def save_weights(
    model: QwenVLModel, reader: CheckpointReader, groups: Groups, directory: Path, progress: Progress
) -> None:
    """Writes this rank's part of the weights of ``reader`` into the existing directory ``directory``. Collective.

    ``model`` is this rank's stage, its weights of no account (it may be on the meta device); ``progress(count)`` hears
    of every so many bytes. OSError when they cannot be written.
    """
    state, parts = _without_numbers(model, groups)
    try:
        dist_checkpointing.save(state, str(directory), sharded_strategy=_Strategy(parts, reader, progress))
    except CheckpointException as error:
        why = next(iter(error.failures.values()))[0]
        if isinstance(why, KeyboardInterrupt):
            raise why from None
        raise OSError(f"{directory}: the weights could not be written: {why}") from error


def _without_numbers(model: QwenVLModel, groups: Groups) -> tuple[dict[str, Any], dict[MetadataIndex, _Part]]:
    """The stage's sharded state with memory that is never touched, and what each part of it is to be."""
    state = sharded_state([model])
    weights, rows, found = state["model0"], model_rows(model), {}
    for (local, parameter), (name, _) in zip(model.named_parameters(), global_parameters(model), strict=True):
        shape, entry, first = tuple(parameter.shape), weights[local], 0
        slices = rank_slices(rows[name], shape, groups.tensor_rank, groups.tensor_size)
        parts: list[ShardedTensor] = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        weights[local] = [replace(part, data=torch.empty(part.local_shape, dtype=part.dtype)) for part in parts]
        for part in parts:  # one, or the gate and the up projection
            index = MetadataIndex(part.key, part.global_offset)
            found[index] = _Part(rows[name], slices, shape, first, tuple(part.local_shape), part.dtype)
            first += part.local_shape[0]
    return state, found


@contextmanager
def _without_checksums() -> Iterator[None]:
    """In this thread: nobody reads the CRC-32 in torch's archives, which would take longer than writing them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class _Strategy(SaveShardedStrategy):  # type: ignore[misc]
    """Megatron's torch_dist strategy with another writer."""

    def __init__(self, parts: dict[MetadataIndex, _Part], reader: CheckpointReader, progress: Progress) -> None:
        super().__init__("torch_dist", 1)
        self._parts, self._reader, self._progress = parts, reader, progress

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        torch_checkpoint.save(
            mcore_to_pyt_state_dict(renamed, False),
            storage_writer=_Writer(Path(checkpoint_dir), self._parts, self._reader, self._progress),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


class _Writer(torch_checkpoint.FileSystemWriter):
    """torch's writer of archives one after the other, with the numbers of ``parts`` in the place of the tensors'."""

    def __init__(
        self, directory: Path, parts: dict[MetadataIndex, _Part], reader: CheckpointReader, progress: Progress
    ) -> None:
        super().__init__(directory)
        self._directory, self._parts, self._reader, self._progress = directory, parts, reader, progress

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the items of ``plan`` into ``WRITERS`` files at the same time."""
        buckets: list[list[WriteItem]] = [[] for _ in range(WRITERS)]
        held = [0] * WRITERS
        for item in sorted(plan.items, key=_bytes, reverse=True):
            smallest = held.index(min(held))
            buckets[smallest].append(item)
            held[smallest] += _bytes(item)
        names = [f"{plan.storage_data.prefix}{number}.distcp" for number in range(WRITERS)]
        tasks = [
            partial(self._write_file, name, items, planner) for name, items in zip(names, buckets, strict=True) if items
        ]
        future: Future[list[WriteResult]] = Future()
        future.set_result([result for results in together(tasks, self._progress) for result in results])
        return future

    def _write_file(
        self, name: str, items: list[WriteItem], planner: SavePlanner, progress: Progress
    ) -> list[WriteResult]:
        results = []
        with _without_checksums(), (self._directory / name).open("wb", buffering=0) as file:
            for item in items:
                start, data = file.tell(), planner.resolve_data(item)
                if isinstance(data, io.BytesIO):
                    write_bytes(file, data.getbuffer())
                else:
                    archive = _Archive(file, data, self._parts[item.index], self._reader)
                    archive.save()
                    progress(data.nbytes)
                length = file.tell() - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
            os.fsync(file.fileno())
        return results


def _bytes(item: WriteItem) -> int:
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return 0
    assert item.tensor_data.chunk is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


class _Archive(io.RawIOBase):
    """What torch.save writes of ``tensor`` goes to ``file``, but for its memory: there, the numbers of ``part``."""

    def __init__(self, file: FileIO, tensor: torch.Tensor, part: _Part, reader: CheckpointReader) -> None:
        self._file, self._tensor, self._part, self._reader = file, tensor, part, reader
        self._failure: OSError | None = None

    def save(self) -> None:
        """Writes the archive. OSError as the file system gave it: torch hides it behind one about its own position."""
        try:
            torch.save(self._tensor, cast(IO[bytes], self))
        except RuntimeError:
            if self._failure is not None:
                raise self._failure from None
            raise

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            if np.frombuffer(data, dtype=np.uint8).ctypes.data == self._tensor.data_ptr():
                assert len(data) == self._tensor.nbytes
                self._part.write(self._file, self._reader)
            else:
                write_bytes(self._file, data)
        except OSError as error:
            self._failure = error
            raise
        return len(data)
