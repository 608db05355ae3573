"""A model's weights in Megatron's ``torch_dist`` form, beside the Hugging Face files that are not weights.

The directory holds Megatron's own files and ``huggingface/`` (config, tokenizer, processor). A training checkpoint
(``step_000050``) is read too: its optimizer is left alone.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import CheckpointReader, fill, global_parameters, mapped_rows, model_rows
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.slices import rank_slices

HUGGINGFACE = "huggingface"
_OF_OPTIMIZER = "optimizer."


def is_megatron(directory: Path) -> bool:
    """Whether ``directory`` looks like a torch_dist checkpoint."""
    return (directory / ".metadata").is_file() or any(directory.glob("*.distcp"))


def read_metadata(directory: Path) -> Metadata:
    """What the checkpoint says of itself. ValueError where a file of it is missing or too short."""
    if not (directory / ".metadata").is_file():
        raise ValueError(
            f"{directory}: no .metadata there: not a whole torch_dist checkpoint; convert or copy it again"
        )
    try:
        metadata = FileSystemReader(directory).read_metadata()
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{directory}/.metadata: cannot be read ({error}); copy the checkpoint again") from error
    ends: dict[str, int] = {}
    for place in (metadata.storage_data or {}).values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        path = directory / name
        if Path(name).name != name:
            raise ValueError(f"{directory}/.metadata: names {name!r}, outside the checkpoint; take it from its source")
        if not path.is_file():
            raise ValueError(f"{path}: named by .metadata but missing; copy the whole checkpoint")
        if path.stat().st_size < end:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {end} or more; copy the file again")
    return metadata


def weight_tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """The model's tensors by Megatron's stored name."""
    return {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OF_OPTIMIZER)
    }


def weights_dtype(directory: Path) -> torch.dtype:
    """The one dtype of the stored weights; ValueError naming the first that has another."""
    dtypes = {name: entry.properties.dtype for name, entry in weight_tensors(read_metadata(directory)).items()}
    if not dtypes:
        raise ValueError(f"{directory}: holds no weights; give a checkpoint of a model")
    first = next(iter(dtypes))
    for name, dtype in dtypes.items():
        if dtype != dtypes[first]:
            raise ValueError(f"{directory}: {name} is {dtype}, {first} {dtypes[first]}; save the model in one dtype")
    return dtypes[first]


def huggingface_files(directory: Path, given: str | None) -> Path:
    """Where the config and tokenizer of a Megatron checkpoint are."""
    place = Path(given) if given else directory / HUGGINGFACE
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{place}: no config.json there; name the directory of the model's Hugging Face files with --hf-files"
        )
    return place


def _sharded(model: Any) -> dict[str, Any]:
    return {"model0": model.sharded_state_dict(metadata={"distrib_optim_sharding_type": "fully_reshardable"})}


def _in_a_storage_of_its_own(view: torch.Tensor) -> torch.Tensor:
    """The same memory; of a tensor that is a part of its storage, Megatron and torch write a copy."""
    start = view.storage_offset() * view.itemsize
    storage = view.untyped_storage()[start : start + view.nbytes]
    return torch.empty(0, dtype=view.dtype).set_(storage, 0, view.shape)  # type: ignore[call-overload,no-any-return]


def _filled(model: QwenVLModel, reader: CheckpointReader, groups: Groups) -> dict[str, Any]:
    """The stage's sharded state with the weights of ``reader``: mapped memory where a file holds a part in one piece.

    What it does not is read into the model's parameters.
    """
    state = _sharded(model)
    weights, rows = state["model0"], model_rows(model)
    for (local, parameter), (name, _) in zip(model.named_parameters(), global_parameters(model), strict=True):
        row, entry, first = rows[name], weights[local], 0
        slices = rank_slices(row, tuple(parameter.shape), groups.tensor_rank, groups.tensor_size)
        parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        mapped = []
        for part in parts:  # one, or the gate's and the up projection's rows
            mapped.append(mapped_rows(row, reader, slices, first, tuple(part.data.shape)))
            first += part.data.shape[0]
        if any(view is None for view in mapped):
            with torch.no_grad():
                fill(parameter, row, reader, slices)
        weights[local] = [
            part if view is None else replace(part, data=_in_a_storage_of_its_own(view))
            for part, view in zip(parts, mapped, strict=True)
        ]
    return state


@contextmanager
def _without_checksums() -> Iterator[None]:
    """torch.load never looks at the CRC-32 in its archives, which takes longer than writing them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def save_weights(model: QwenVLModel, reader: CheckpointReader, groups: Groups, partial: Path) -> None:
    """Writes the weights of ``reader`` that are this stage's into the existing directory ``partial``.

    Collective; OSError when it cannot. ``model`` is where what has to be put together is put together.
    """
    filesystem_async._results_queue = queue.Queue()  # see training/checkpoint.py
    try:
        with _without_checksums():
            dist_checkpointing.save(_filled(model, reader, groups), str(partial))
    except (CheckpointException, RuntimeError) as error:
        raise OSError(f"{partial}: the weights could not be written ({error}); is the disk full?") from error
    if groups.world_size > 1:
        dist.barrier(group=groups.control)


def load_weights(model: Any, directory: Path) -> None:
    """Fills the stage from the checkpoint, whatever layout wrote it. Collective.

    ValueError when it is not whole, or is not this model's.
    """
    read_metadata(directory)
    try:
        loaded = dist_checkpointing.load(_sharded(model), str(directory))
    except (CheckpointingException, CheckpointException, KeyError) as error:
        raise ValueError(
            f"{directory}: does not hold the model that its config.json describes ({error}); give the config it was "
            "saved with"
        ) from error
    model.load_state_dict(loaded["model0"])
