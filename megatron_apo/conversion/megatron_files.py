"""A model's weights in Megatron's ``torch_dist`` form, beside the Hugging Face files that are not weights.

The directory holds Megatron's own files and ``huggingface/`` (config, tokenizer, processor). A training checkpoint
(``step_000050``) is read too: its optimizer is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_apo.conversion.metadata_file import UnpicklingError, read_metadata_file
from megatron_apo.conversion.stored_objects import check_objects
from megatron_apo.training.stored_form import check_vision_ffn
from model_providers.qwen_vl.weight_map import STORED_NORMS

HUGGINGFACE = "huggingface"
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
_OF_OPTIMIZER = "optimizer."


def is_megatron(directory: Path) -> bool:
    """Whether ``directory`` looks like a torch_dist checkpoint."""
    return (directory / ".metadata").is_file() or any(directory.glob("*.distcp"))


def check_is_megatron(directory: Path) -> None:
    """ValueError saying what ``directory`` is instead of a torch_dist checkpoint."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; give that of a Megatron checkpoint (torch_dist)")
    if is_megatron(directory) or (directory / HUGGINGFACE).is_dir():
        return
    if any(directory.glob("*.safetensors")):
        raise ValueError(
            f"{directory}: holds safetensors, Hugging Face's form, not a Megatron checkpoint (torch_dist); convert it "
            "with hf-to-megatron"
        )
    raise ValueError(f"{directory}: no Megatron checkpoint (torch_dist) there: neither .metadata nor *.distcp files")


def check_is_huggingface(directory: Path) -> None:
    """ValueError saying what ``directory`` is instead of a Hugging Face checkpoint."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; give that of a Hugging Face checkpoint")
    if is_megatron(directory):
        raise ValueError(
            f"{directory}: a Megatron checkpoint (torch_dist), not Hugging Face's form; convert it with megatron-to-hf"
        )


def read_metadata(directory: Path) -> Metadata:
    """What the checkpoint says of itself. ValueError where a file of it is missing or too short."""
    check_is_megatron(directory)
    if not (directory / ".metadata").is_file():
        raise ValueError(
            f"{directory}: no .metadata there: not a whole torch_dist checkpoint; convert or copy it again"
        )
    metadata = read_metadata_file(directory / ".metadata")
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


def stored_vision_ffn(directory: Path, tensor: int) -> int | None:
    """How wide the vision FFN is stored, with its padding; None where there is none.

    ValueError when ``tensor`` ranks do not divide it.
    """
    entry = weight_tensors(read_metadata(directory)).get("vision_model.layers.0.mlp.linear_fc2.weight")
    width = None if entry is None else int(entry.size[1])
    if width is not None and width % tensor:
        raise ValueError(
            f"{directory}: its vision FFN is stored {width} wide, which {tensor} tensor ranks do not divide; read it "
            "with another number, or write it again with hf-to-megatron from its Hugging Face form"
        )
    return width


def huggingface_files(directory: Path, given: str | None) -> Path:
    """Where the config and tokenizer of a Megatron checkpoint are."""
    check_is_megatron(directory)
    place = Path(given) if given else directory / HUGGINGFACE
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{place}: no config.json there; name the directory of the model's Hugging Face files with --hf-files"
        )
    return place


def check_names(directory: Path, names: Iterable[str]) -> None:
    """ValueError where norms have the names that the local layer spec once stored them under."""
    if any(f".{norm}" in name for name in names for norm in STORED_NORMS):
        raise ValueError(
            f"{directory}: an earlier version wrote it, with other names of the layers' norms; convert it again from "
            "its Hugging Face source, or read it with that version"
        )


def sharded_state(chunks: Sequence[Any]) -> dict[str, Any]:
    """What Megatron stores of each of the stage's chunks, and where it belongs in the whole model."""
    return {f"model{number}": chunk.sharded_state_dict(metadata=SHARDING) for number, chunk in enumerate(chunks)}


def drop_absent_extra_states(wanted: dict[str, Any], metadata: Metadata) -> dict[str, None]:
    """Takes out of ``wanted`` the extra states that the checkpoint has none of; what to give the chunk in their place.

    Transformer Engine's modules keep there what quantisation needs. The local spec stores empty ones for its linear
    layers, but none for its norms.
    """
    absent = [
        name
        for name, entry in wanted.items()
        if isinstance(entry, ShardedObject)
        and name.endswith("._extra_state")
        and entry.unique_key not in metadata.state_dict_metadata
    ]
    for name in absent:
        del wanted[name]
    return dict.fromkeys(absent)


def load_weights(chunks: Sequence[Any], directory: Path) -> None:
    """Fills the stage's chunks from the checkpoint, whatever layout wrote it. Collective.

    ValueError when it is not whole, or is not this model's.
    """
    metadata = read_metadata(directory)
    for name in ("metadata.json", "common.pt"):
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name}: missing; copy the whole checkpoint")
    sizes = {name: tuple(entry.size) for name, entry in weight_tensors(metadata).items()}
    check_names(directory, sizes)
    check_vision_ffn(directory, sizes, chunks[0].shape, chunks[0].settings)
    check_objects(directory, metadata)
    wanted = sharded_state(chunks)
    absent = [drop_absent_extra_states(state, metadata) for state in wanted.values()]
    keys = list(wanted)
    try:
        loaded = dist_checkpointing.load(wanted, str(directory))
    except UnpicklingError as error:
        raise ValueError(
            f"{directory}: common.pt or a *.distcp file is damaged or holds more than numbers, which is refused; take "
            "the checkpoint from its source again"
        ) from error
    except (CheckpointingException, CheckpointException, KeyError) as error:
        raise ValueError(
            f"{directory}: does not hold the model that its config.json describes ({_reason(error)}); give the config "
            "it was saved with, or copy the checkpoint again"
        ) from error
    for chunk, key, without in zip(chunks, keys, absent, strict=True):
        chunk.load_state_dict({**loaded[key], **without})


def _reason(error: BaseException) -> str:
    """The first failure of several, on one line; torch's own text has every rank's traceback."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    first = next((failure[0] for failure in failures.values()), error)
    return " ".join(f"{type(first).__name__}: {first}".split())[:300]
