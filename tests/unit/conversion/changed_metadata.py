"""A torch_dist checkpoint whose ``.metadata`` says something else."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata


def change_metadata(broken: Path, change: Callable[[Metadata], object]) -> None:
    """Writes what ``change`` made of it."""
    path = broken / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def add_tensor(broken: Path) -> None:
    """One of a classifier's, ``score.weight``, which no model of this provider has."""

    def add(metadata: Metadata) -> None:
        key = next(key for key in metadata.storage_data if "final_layernorm" in key.fqn)
        metadata.state_dict_metadata["score.weight"] = metadata.state_dict_metadata[key.fqn]
        metadata.storage_data[dataclasses.replace(key, fqn="score.weight")] = metadata.storage_data[key]

    change_metadata(broken, add)


def remove_tensor(broken: Path, part: str) -> None:
    """The first whose stored name has ``part`` in it."""

    def remove(metadata: Metadata) -> None:
        name = next(name for name in metadata.state_dict_metadata if part in name)
        del metadata.state_dict_metadata[name]
        metadata.storage_data = {key: place for key, place in metadata.storage_data.items() if key.fqn != name}

    change_metadata(broken, remove)
