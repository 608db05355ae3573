"""Reads ``.metadata`` of a torch_dist checkpoint, a pickle, without running what somebody may have put into it."""

from __future__ import annotations

import enum
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

UnpicklingError = pickle.UnpicklingError  # what Megatron's and torch's own loading raises for what they refuse
_KNOWN = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    # The plans that Megatron keeps beside a training checkpoint's tensors, to save the next one faster.
    "torch.distributed.checkpoint.planner": {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem"}
    | {"WriteItemType"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},  # what Python 3.13 calls them
}


def _member(kind: Any, name: str) -> Any:
    """Nothing but a member of an enumeration, in place of ``getattr``."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise pickle.UnpicklingError(f"it asks for {name} of {kind!r}, which no checkpoint needs")
    return kind[name]


class _Reader(pickle.Unpickler):
    """Makes only what torch and Megatron-Core write into that file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python before 3.11.4 writes members of an enumeration
            return _member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def read_metadata_file(path: Path) -> Metadata:
    """The contents of ``path``. ValueError where it is damaged, or would run code; nothing of it is run."""
    try:
        with path.open("rb") as file:
            metadata = _Reader(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); take the checkpoint from its source again") from error
    except (ValueError, OverflowError, MemoryError) as error:  # lengths out of damaged bytes
        raise ValueError(f"{path}: damaged ({error}); copy the checkpoint again") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(
            f"{path}: holds {type(metadata).__name__}, not torch's metadata; take the checkpoint from its source again"
        )
    return metadata
