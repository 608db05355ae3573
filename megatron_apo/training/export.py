"""The trained model as a Hugging Face checkpoint: safetensors in the published names, beside the source's own files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import phase
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from megatron_apo.weight_sync.export import export_tensors

_SHARD_BYTES = 4 * 1024**3
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")


class _ShardWriter:
    """Collects tensors up to a shard's size and writes shard after shard."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self._held and self._bytes + tensor.nbytes > _SHARD_BYTES:
            self._write()
        self._held[name] = tensor.detach().cpu().contiguous().clone()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    def _write(self) -> None:
        save_file(self._held, self._directory / f"shard-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._held))
        self._held, self._bytes = {}, 0

    def finish(self) -> None:
        """Writes what is held and gives the shards their names, with an index when there are several."""
        self._write()
        count = len(self._shards)
        weight_map = {}
        for number, names in enumerate(self._shards):
            name = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self._directory / f"shard-{number}", self._directory / name)
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self._directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def export_model(state: TrainingState, groups: Groups, source: str | Path, target: Path) -> None:
    """Writes the model into ``target`` (aside first, then renamed), with ``source``'s config, tokenizer and processor.

    Collective: all ranks call it together; only rank 0 writes.
    """
    partial = target.with_name(f".{target.name}.partial")
    with phase(groups, "prepare export"):
        if groups.is_controller:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for path in Path(source).iterdir():
                if path.is_file() and not path.name.endswith(_WEIGHT_FILES):
                    shutil.copy2(path, partial / path.name)
    writer = _ShardWriter(partial)
    for name, tensor in export_tensors([unwrap(chunk) for chunk in state.model], groups):
        writer.add(name, tensor)
    with phase(groups, "finish export"):
        if groups.is_controller:
            writer.finish()
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
