"""Compares two checkpoints of either form bit for bit, and says what one holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from megatron_apo.conversion import megatron_files
from megatron_apo.conversion.convert import ONE_PROCESS, Layout, check_hf, job, load_model, open_model, progress_bar
from megatron_apo.parallel.groups import Groups
from megatron_apo.weight_sync.export import export_tensors
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import hf_names

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1 << 22  # numbers compared at a time

Tensors = Iterator[tuple[str, torch.Tensor]]


def first_difference(name: str, one: torch.Tensor, other: torch.Tensor) -> str | None:
    """Where two tensors first differ in a bit, in words; None where they do not. NaNs and signed zeros count."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{name}: {one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
    bits = _BITS[one.dtype.itemsize]
    flat, other_flat = (tensor.contiguous().reshape(-1) for tensor in (one, other))
    first, count = None, 0
    for start in range(0, flat.numel(), _BLOCK):
        part, other_part = flat[start : start + _BLOCK].view(bits), other_flat[start : start + _BLOCK].view(bits)
        if not torch.equal(part, other_part):
            unequal = part != other_part
            count += int(unequal.sum())
            if first is None:
                first = start + int(unequal.nonzero()[0])
    if first is None:
        return None
    index = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(first), one.shape))
    return (
        f"{name}{list(index)}: {flat[first].item()!r} against {other_flat[first].item()!r}; "
        f"{count} of {flat.numel()} numbers of this tensor differ"
    )


def verify(
    one: Path, other: Path, *, hf_files: str | None = None, layout: Layout = ONE_PROCESS
) -> tuple[list[str], int]:
    """Differences between two checkpoints, each Hugging Face's or Megatron's, in words; and how many tensors agree.

    Differences are in the weight map's order; under torchrun they are known on rank 0 only. ValueError when one of the
    two is damaged, or they are of different shapes.
    """
    sides = [(path, _opened(path, hf_files)) for path in (one, other)]
    shapes = [read_shape(files) for _, files in sides]
    if shapes[0] != shapes[1]:
        unlike = [key for key, value in vars(shapes[0]).items() if vars(shapes[1])[key] != value]
        raise ValueError(f"{one} and {other}: different models, by {', '.join(unlike)} of their config.json")
    megatron = [path for path, files in sides if files != path]
    names = hf_names(shapes[0])
    if not megatron:
        with progress_bar(len(names), "compare", unit="tensor") as progress:
            return _compare(_hf_tensors(one), _hf_tensors(other), progress)
    config, _ = open_model(megatron[0], hf_files, layout)
    with job(config) as groups:
        left, right = (
            _megatron_tensors(path, files, groups, hf_files, layout)
            if files != path
            else _hf_on_controller(path, groups)
            for path, files in sides
        )
        with progress_bar(len(names), "compare", groups=groups, unit="tensor") as progress:
            return _compare(left, right, progress)


def _opened(path: Path, hf_files: str | None) -> Path:
    """Where the config.json of ``path`` is: the directory itself for Hugging Face's."""
    if megatron_files.is_megatron(path):
        return megatron_files.huggingface_files(path, hf_files)
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory; give that of a checkpoint, Hugging Face's or Megatron's")
    return path


def _hf_tensors(path: Path) -> Tensors:
    reader, _ = check_hf(path)
    return ((name, reader.read(name)) for name in hf_names(read_shape(path)))


def _hf_on_controller(path: Path, groups: Groups) -> Tensors:
    tensors = _hf_tensors(path)
    return tensors if groups.is_controller else iter(())


def _megatron_tensors(path: Path, files: Path, groups: Groups, hf_files: str | None, layout: Layout) -> Tensors:
    config, _ = open_model(path, hf_files, layout)
    return export_tensors(load_model(config, files, path, groups), groups)


def _compare(one: Tensors, other: Tensors, progress: Callable[[int], object]) -> tuple[list[str], int]:
    differences, equal = [], 0
    for (name, tensor), (other_name, other_tensor) in zip(one, other, strict=True):
        assert name == other_name, (name, other_name)
        difference = first_difference(name, tensor, other_tensor)
        if difference is None:
            equal += 1
        else:
            differences.append(difference)
        progress(1)
    return differences, equal


def inspect(path: Path, *, hf_files: str | None = None, tensors: bool = False) -> list[str]:
    """What a checkpoint is, in lines; with ``tensors`` every tensor too. No weight is read."""
    files = _opened(path, hf_files)
    shape = read_shape(files)
    if files == path:
        reader, dtype = check_hf(path)
        listed = {name: (reader.shape(name), reader.dtype_name(name)) for name in hf_names(shape)}
        form, parts = "Hugging Face safetensors", [file.name for file in reader.files]
    else:
        dtype = megatron_files.weights_dtype(path)
        stored = megatron_files.weight_tensors(megatron_files.read_metadata(path))
        listed = {name: (tuple(entry.size), str(entry.properties.dtype)) for name, entry in stored.items()}
        form, parts = "Megatron torch_dist", sorted(file.name for file in path.glob("*.distcp"))
    numbers = sum(torch.Size(size).numel() for size, _ in listed.values())
    lines = [
        f"{path}: {form}, {len(parts)} file(s)",
        f"  language model: {shape.layers} layers, hidden {shape.hidden}, {shape.heads} heads, {shape.kv_heads} "
        f"key-value heads, ffn {shape.ffn}, vocabulary {shape.vocab}{', tied' if shape.tied else ''}",
        f"  vision tower: {shape.vision.layers} layers, hidden {shape.vision.hidden}, {shape.vision.heads} heads",
        f"  {len(listed)} tensors, {numbers:,} numbers of {dtype}, {numbers * dtype.itemsize / 1e9:.3f} GB",
    ]
    return lines + [f"  {name} {list(size)} {kind}" for name, (size, kind) in listed.items() if tensors]
