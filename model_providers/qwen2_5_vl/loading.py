"""Reads a Hugging Face checkpoint's safetensors into a pipeline stage, and names a stage's parameters globally."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model_providers.qwen2_5_vl.model import Qwen25VLModel
from model_providers.qwen2_5_vl.weight_map import WeightRow, published_name, to_megatron, weight_map


class CheckpointReader:
    """Tensors of a checkpoint directory by published name, memory-mapped, from one file or an indexed set.

    Raises ValueError when there are no safetensors, a file named by the index is missing, or one is truncated.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._file_of: dict[str, tuple[Path, str]] = {}
        for path in self._files():
            try:
                with safe_open(path, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                        self._file_of[published_name(name)] = (path, name)
            except SafetensorError as error:
                raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error

    def _files(self) -> list[Path]:
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            paths = [self.directory / name for name in sorted(set(listed.values()))]
        else:
            paths = sorted(self.directory.glob("*.safetensors"))
        if not paths:
            raise ValueError(f"model.path={self.directory}: no *.safetensors file there; give a checkpoint directory")
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path}: named by {index.name} but missing; copy the whole checkpoint")
        return paths

    @property
    def names(self) -> set[str]:
        """Published names of all tensors."""
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """The tensor called ``name`` (published spelling) in the dtype of the file."""
        if name not in self._file_of:
            raise ValueError(f"{self.directory}: tensor {name!r} is missing; is the checkpoint whole?")
        path, stored = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as handle:
                return handle.get_tensor(stored)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot read {name!r} ({error}); copy the file again") from error


def global_parameters(model: Qwen25VLModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """This stage's parameters with layers counted over the whole model."""
    layers = model.language_model.decoder.layers
    for name, parameter in model.named_parameters():
        prefix = "language_model.decoder.layers."
        if name.startswith(prefix):
            local, rest = name[len(prefix) :].split(".", 1)
            name = f"{prefix}{layers[int(local)].layer_number - 1}.{rest}"
        yield name, parameter


def model_rows(model: Qwen25VLModel) -> dict[str, WeightRow]:
    """The weight map of ``model`` by Megatron name, in export order."""
    settings = model.settings
    rows = weight_map(
        model.shape,
        transformer_engine=settings.layer_spec == "transformer_engine",
        vision_ffn_multiple=settings.vision_ffn_multiple,
    )
    return {row.megatron: row for row in rows}


def load_hf_checkpoint(model: Qwen25VLModel, directory: str | Path, *, tensor_rank: int, tensor_size: int) -> None:
    """Fills every parameter of this stage from the checkpoint in ``directory``.

    Raises ValueError naming the tensor that is missing, misshapen or unknown to the map.
    """
    reader = CheckpointReader(directory)
    rows = model_rows(model)
    known = {name for row in rows.values() for name in row.hf}
    # A tied checkpoint may carry the redundant lm_head; rotary tables are recomputed.
    unknown = sorted(name for name in reader.names - known if name != "lm_head.weight" and "inv_freq" not in name)
    if unknown:
        raise ValueError(
            f"{directory}: tensors that a {model.shape.model_type} of this config does not have: "
            f"{', '.join(unknown[:5])}; its config.json and its weights belong to different models"
        )
    with torch.no_grad():
        for name, parameter in global_parameters(model):
            row = rows[name]
            part = to_megatron(row, [reader.read(hf) for hf in row.hf], tensor_rank, tensor_size)
            assert part.shape == parameter.shape, (name, part.shape, parameter.shape)
            parameter.copy_(part)
