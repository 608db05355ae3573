"""What a torch_dist checkpoint holds beside tensors: objects that torch's own reader would unpickle without asking."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_apo.conversion.metadata_file import UnpicklingError


def check_objects(directory: Path, metadata: Metadata) -> None:
    """ValueError unless every object of the checkpoint is made of numbers and plain containers alone.

    torch reads them with everything allowed; here each is first read with nothing else allowed than that.
    """
    for index, place in metadata.storage_data.items():
        if not isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            continue
        path = directory / place.relative_path
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"{directory}: .metadata names {place.relative_path!r}, outside the checkpoint; refused")
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                stored = io.BytesIO(file.read(place.length))
            with torch.serialization.safe_globals([io.BytesIO]):  # Transformer Engine keeps its extra states so
                torch.load(stored, weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            why = str(error).split("\n", 1)[0]
            raise ValueError(
                f"{path}: {index.fqn} is damaged or holds more than numbers, which is refused ({why}); take the "
                "checkpoint from its source again"
            ) from error
