"""Reads a Hugging Face checkpoint's safetensors into a pipeline stage, and names a stage's parameters globally.

A rank maps the files into memory and copies only its own slices, straight into its parameters: no tensor is held
whole unless the rank owns all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.slices import Slice, rank_slices
from model_providers.qwen_vl.weight_map import WeightRow, published_name, weight_map

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NAMED = 8  # tensors spelled out in a message


class CheckpointReader:
    """Tensors of a checkpoint directory by published name, memory-mapped, from one file or an indexed set.

    Raises ValueError when there are no safetensors (pickle files are refused), a file named by the index is missing,
    outside the directory or truncated, or a tensor is not in the file that the index names.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._place_of: dict[str, tuple[Path, str]] = {}
        self._handles: dict[Path, Any] = {}
        self._headers: dict[Path, tuple[int, dict[str, Any]]] = {}
        index = self.directory / INDEX
        listed = _read_index(index) if index.is_file() else None
        for path in self._files(listed):
            stored = self._open(path)
            for name in stored if listed is None else [key for key, file in listed.items() if file == path.name]:
                if name not in stored:
                    raise ValueError(f"{path}: {INDEX} places {name!r} there, but it is not; copy the whole checkpoint")
                known = self._place_of.setdefault(published_name(name), (path, name))
                if known != (path, name):
                    raise ValueError(f"{path}: {name!r} is also in {known[0].name}; remove the file that is left over")

    def _files(self, listed: dict[str, str] | None) -> list[Path]:
        found = (path.name for path in self.directory.glob("*.safetensors") if path.is_file())
        names = found if listed is None else listed.values()
        paths = [self.directory / name for name in sorted(set(names))]
        if not paths:
            pickles = sorted(path.name for pattern in _PICKLES for path in self.directory.glob(pattern))
            if pickles:
                raise ValueError(
                    f"{self.directory}: its weights are pickle files ({', '.join(pickles[:3])}), which can run code "
                    "when read and are refused; save the model as safetensors (save_pretrained does)"
                )
            raise ValueError(f"model.path={self.directory}: no *.safetensors file there; give a checkpoint directory")
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path}: named by {INDEX} but missing; copy the whole checkpoint")
        return paths

    def _open(self, path: Path) -> set[str]:
        try:
            self._handles[path] = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
        return set(self._handles[path].keys())

    @property
    def names(self) -> set[str]:
        """Published names of all tensors."""
        return set(self._place_of)

    @property
    def files(self) -> list[Path]:
        """The safetensors files."""
        return sorted(self._handles)

    def _slice(self, name: str) -> Any:
        if name not in self._place_of:
            raise ValueError(f"{self.directory}: tensor {name!r} is missing; is the checkpoint whole?")
        path, stored = self._place_of[name]
        return self._handles[path].get_slice(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; nothing of it is read."""
        return tuple(self._slice(name).get_shape())

    def dtype_name(self, name: str) -> str:
        """Dtype of a tensor in the spelling of safetensors ("BF16")."""
        return str(self._slice(name).get_dtype())

    def origin(self, name: str, row: int = 0) -> tuple[Path, int]:
        """File, and byte in it, at which the numbers of a tensor begin from ``row`` on."""
        path, stored = self._place_of[name]
        if path not in self._headers:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self._headers[path] = 8 + length, json.loads(file.read(length))
        start, header = self._headers[path]
        low, high = header[stored]["data_offsets"]
        rows = header[stored]["shape"][0] if header[stored]["shape"] else 1
        return path, start + low + (high - low) // max(1, rows) * row

    def read(self, name: str) -> torch.Tensor:
        """The tensor called ``name`` (published spelling) in the dtype of the file."""
        whole = self._slice(name)
        tensor: torch.Tensor = whole[...] if not whole.get_shape() else whole[:]
        return tensor

    def read_range(self, name: str, dimension: int, start: int, stop: int) -> torch.Tensor:
        """Entries ``start`` to ``stop`` of dimension 0 or 1 of the tensor called ``name``."""
        whole = self._slice(name)
        part: torch.Tensor = whole[start:stop] if dimension == 0 else whole[:, start:stop]
        return part


def _read_index(path: Path) -> dict[str, str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): str(file) for name, file in listed.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: holds no readable weight_map ({error!r}); copy the file again") from error
    for name, file in pairs.items():
        if Path(file).name != file or "\\" in file or file in (".", ".."):
            raise ValueError(
                f"{path}: places {name!r} in {file!r}, outside the checkpoint's directory; an index names files beside "
                "itself: take the checkpoint from a source that you trust"
            )
    return pairs


def checkpoint_dtype(reader: CheckpointReader, rows: list[WeightRow]) -> torch.dtype:
    """The one dtype of the tensors of ``rows``; ValueError naming the odd ones where there are several."""
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.hf):
        names.setdefault(reader.dtype_name(name), []).append(name)
    unknown = sorted(set(names) - set(DTYPES))
    if unknown:
        raise ValueError(
            f"{reader.directory}: {_listed(names[unknown[0]])} of dtype {unknown[0]}; this provider reads "
            f"{', '.join(DTYPES)}: give the checkpoint that was not quantised"
        )
    if len(names) > 1:
        common = max(names, key=lambda dtype: len(names[dtype]))
        odd = next(dtype for dtype in names if dtype != common)
        raise ValueError(
            f"{reader.directory}: tensors of several dtypes: {_listed(names[odd])} of {odd}, the others {common}; "
            "save the model again in one dtype"
        )
    return DTYPES[next(iter(names))]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more


def check_tensors(reader: CheckpointReader, rows: list[WeightRow], *, tied: bool, family: str) -> None:
    """Holds the whole checkpoint against the map, before anything is read.

    Raises ValueError listing tensors that are missing or unknown, naming one of another shape or dtype, or a tied
    model's output table that differs from its embedding.
    """
    shapes = {name: shape for row in rows for name, shape in zip(row.hf, row.shapes, strict=True)}
    missing = [name for name in shapes if name not in reader.names]
    if missing:
        raise ValueError(
            f"{reader.directory}: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing; copy the whole "
            "checkpoint, or give it the config.json that it was saved with"
        )
    # A tied checkpoint may carry the redundant lm_head; rotary tables are recomputed.
    extra = [name for name in reader.names - set(shapes) if "inv_freq" not in name]
    unknown = [name for name in extra if not (tied and name == "lm_head.weight")]
    if unknown:
        raise ValueError(
            f"{reader.directory}: tensors that a {family} of this config does not have: {_listed(unknown)}; "
            "its config.json and its weights belong to different models"
        )
    for name, expected in shapes.items():
        if reader.shape(name) != expected:
            raise ValueError(
                f"{reader.directory}: {name}: shape {reader.shape(name)}, expected {expected} from the model's "
                "config.json"
            )
    checkpoint_dtype(reader, rows)
    if tied and "lm_head.weight" in reader.names:
        _check_tied(reader)


def _check_tied(reader: CheckpointReader) -> None:
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    same = reader.shape(table) == reader.shape(head) and reader.dtype_name(table) == reader.dtype_name(head)
    if not same or not torch.equal(reader.read(table), reader.read(head)):
        raise ValueError(
            f"{reader.directory}: config.json ties the output to the embedding (tie_word_embeddings: true), but "
            f"{head} differs from {table}; set tie_word_embeddings: false if the head was trained, else remove it"
        )


def global_parameters(model: QwenVLModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """This stage's parameters with layers counted over the whole model."""
    layers = model.language_model.decoder.layers
    for name, parameter in model.named_parameters():
        prefix = "language_model.decoder.layers."
        if name.startswith(prefix):
            local, rest = name[len(prefix) :].split(".", 1)
            name = f"{prefix}{layers[int(local)].layer_number - 1}.{rest}"
        yield name, parameter


def model_rows(model: QwenVLModel) -> dict[str, WeightRow]:
    """The weight map of ``model`` by Megatron name, in export order."""
    settings = model.settings
    rows = weight_map(
        model.shape,
        transformer_engine=settings.layer_spec == "transformer_engine",
        vision_ffn_multiple=settings.vision_ffn_multiple,
    )
    return {row.megatron: row for row in rows}


def fill(parameter: torch.Tensor, row: WeightRow, reader: CheckpointReader, slices: list[Slice]) -> None:
    """Copies ``slices`` to their places; each source is mapped once, over the range that they span."""
    if row.layout == "flatten":
        parameter.copy_(reader.read(row.hf[0]).flatten(1))
        return
    covered = sum(cut.stop - cut.start for cut in slices)
    if not slices or covered < parameter.shape[slices[0].dimension]:
        parameter.zero_()
    for source in sorted({cut.source for cut in slices}):
        own = [cut for cut in slices if cut.source == source]
        low, high = min(cut.start for cut in own), max(cut.stop for cut in own)
        part = reader.read_range(row.hf[source], own[0].dimension, low, high)
        for cut in own:
            length = cut.stop - cut.start
            parameter.narrow(cut.dimension, cut.place, length).copy_(
                part.narrow(cut.dimension, cut.start - low, length)
            )


def mapped_rows(
    row: WeightRow, reader: CheckpointReader, slices: list[Slice], first: int, shape: tuple[int, ...]
) -> tuple[torch.Tensor, tuple[Path, int]] | None:
    """``shape`` numbers from row ``first`` of what ``fill`` makes, as memory of the mapped file, and their origin.

    None where the file does not hold them in one piece: rows interleaved or padded, columns cut.
    """
    last = first + shape[0]
    own = [cut for cut in slices if cut.dimension or (cut.place < last and first < cut.place + cut.stop - cut.start)]
    if len(own) != 1:
        return None
    name, by_column = row.hf[own[0].source], own[0].dimension == 1
    start, stop = (first, last) if by_column else (own[0].start, own[0].stop)
    part = reader.read_range(name, 0, start, stop)
    if row.layout == "flatten":
        part = part.flatten(1)
    whole = tuple(part.shape) == shape and part.is_contiguous()
    return (part, reader.origin(name, start)) if whole else None


def load_hf_checkpoint(model: QwenVLModel, directory: str | Path, *, tensor_rank: int, tensor_size: int) -> None:
    """Fills every parameter of this stage from the checkpoint in ``directory``, reading only what it holds.

    Raises ValueError as ``CheckpointReader`` and ``check_tensors`` do.
    """
    reader = CheckpointReader(directory)
    rows = model_rows(model)
    check_tensors(reader, list(rows.values()), tied=model.shape.tied, family=model.shape.model_type)
    with torch.no_grad():
        for name, parameter in global_parameters(model):
            row = rows[name]
            fill(parameter, row, reader, rank_slices(row, tuple(parameter.shape), tensor_rank, tensor_size))
