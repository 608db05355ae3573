"""Hugging Face <-> Megatron, in any layout: what ``tools/convert_checkpoint.py`` runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.conversion import megatron_files, new_directory
from megatron_apo.conversion.from_megatron import FromMegatron
from megatron_apo.conversion.safetensors_writer import (
    DEFAULT_SHARD_BYTES,
    SafetensorsWriter,
    copy_other_files,
    total_bytes,
)
from megatron_apo.conversion.stage import load_stage
from megatron_apo.conversion.to_megatron import WRITERS, save_weights
from megatron_apo.conversion.together import together
from megatron_apo.parallel.groups import Groups, initialise, launched_processes, shut_down
from megatron_apo.parallel.status import phase
from megatron_apo.training.export import export_entries
from megatron_apo.training.setup import build_settings, check_model_layout
from model_providers.qwen_vl.loading import CheckpointReader, check_tensors, checkpoint_dtype
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import weight_map

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Layout:
    """Tensor and pipeline ranks of this job; their product is the number of processes."""

    tensor: int = 1
    pipeline: int = 1


ONE_PROCESS = Layout()


def job_config(
    files: Path, dtype: torch.dtype, layout: Layout | None, *, vision_ffn_multiple: int | None = None
) -> Config:
    """Settings of this job; without a layout as many processes as there are, each for itself."""
    if dtype not in _NAMES:
        raise ValueError(
            f"{files}: weights of {dtype}; models are built in {' or '.join(_NAMES.values())}: save it in one of them "
            "(transformers: from_pretrained(…, dtype=…).save_pretrained(…))"
        )
    world = launched_processes()
    if layout is None:
        layout = ONE_PROCESS
    elif world != layout.tensor * layout.pipeline:
        raise ValueError(
            f"--tensor {layout.tensor} x --pipeline {layout.pipeline} = {layout.tensor * layout.pipeline} processes, "
            f"but {world} run; start as many with torchrun --nproc-per-node"
        )
    config = load_config(
        None,
        [
            f"--model.path={files}",
            "--data.train=unused",
            f"--model.dtype={_NAMES[dtype]}",
            f"--parallel.tensor={layout.tensor}",
            f"--parallel.pipeline={layout.pipeline}",
            *([f"--model.vision_ffn_multiple={vision_ffn_multiple}"] if vision_ffn_multiple else []),
        ],
    )
    check_model_layout(config)
    return config


def build_empty(config: Config, files: Path, groups: Groups) -> QwenVLModel:
    """This rank's pipeline stage, its weights not yet set."""
    return QwenVLModel(
        read_shape(files),
        build_settings(config),
        pg_collection=groups.collection,
        pre_process=groups.first_stage,
        post_process=groups.last_stage,
    )


def check_hf(directory: Path) -> tuple[CheckpointReader, torch.dtype]:
    """A reader of a Hugging Face checkpoint that is whole and this provider's, and its dtype."""
    megatron_files.check_is_huggingface(directory)
    shape, reader = read_shape(directory), CheckpointReader(directory)
    rows = weight_map(shape)
    check_tensors(reader, rows, tied=shape.tied, family=shape.model_type)
    return reader, checkpoint_dtype(reader, rows)


@contextmanager
def job(config: Config) -> Iterator[Groups]:
    """This process's groups, ended afterwards."""
    groups = initialise(config.parallel, seed=0)
    try:
        yield groups
    finally:
        shut_down()


@contextmanager
def progress_bar(
    total: int, what: str, *, groups: Groups | None = None, unit: str = "B"
) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, of the controller where ``groups`` are given."""
    hidden = (groups is not None and not groups.is_controller) or not sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=hidden) as bar:
        yield bar.update


def hf_to_megatron(
    source: Path,
    target: Path,
    *,
    layout: Layout = ONE_PROCESS,
    force: bool = False,
) -> None:
    """Writes ``target``, which any layout can read, from the Hugging Face checkpoint ``source``.

    Each process reads its own slices and writes them. ValueError for bad input or no room, OSError when writing fails;
    ``target`` is then what it was before.
    """
    reader, dtype = check_hf(source)
    new_directory.check_target(target, (source,), force=force)
    config = job_config(source, dtype, layout)
    with job(config) as groups:
        try:
            with torch.device("meta"):
                model = build_empty(config, source, groups)
            needed = total_bytes(export_entries(model), dtype)
            with phase(groups, "prepare conversion"):
                if groups.is_controller:
                    copied = new_directory.prepare(target, needed) / megatron_files.HUGGINGFACE
                    copied.mkdir()
                    copy_other_files(source, copied)
            with progress_bar(needed, target.name, groups=groups) as progress:
                save_weights(model, reader, groups, new_directory.aside(target), progress)
            with phase(groups, "finish conversion"):
                if groups.is_controller:
                    megatron_files.read_metadata(new_directory.aside(target))
                    new_directory.publish(target)
        finally:
            if groups.is_controller:
                new_directory.discard(target)


def megatron_to_hf(
    source: Path,
    target: Path,
    *,
    hf_files: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
) -> None:
    """Writes a Hugging Face checkpoint, published names, from a Megatron one of any layout; errors as above.

    Of several processes each writes some of the shards.
    """
    files = megatron_files.huggingface_files(source, hf_files)
    dtype = megatron_files.weights_dtype(source)
    tensors = FromMegatron(source, files)
    new_directory.check_target(target, (source, files), force=force)
    needed = total_bytes(tensors.entries, dtype)
    with job(job_config(files, dtype, None)) as groups:
        try:
            with phase(groups, "prepare conversion"):
                if groups.is_controller:
                    new_directory.prepare(target, needed)
                    copy_other_files(files, new_directory.aside(target))
            with (
                phase(groups, "write weights"),
                progress_bar(needed, target.name, groups=groups) as progress,
            ):
                _write_shards(tensors, groups, new_directory.aside(target), dtype, shard_bytes, progress)
            with phase(groups, "finish conversion"):
                if groups.is_controller:
                    new_directory.publish(target)
        finally:
            if groups.is_controller:
                new_directory.discard(target)


def _write_shards(
    tensors: FromMegatron,
    groups: Groups,
    partial: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    progress: Callable[[int], object],
) -> None:
    def write(number: int, progress: Callable[[int], object]) -> None:
        share = (groups.rank * WRITERS + number, groups.world_size * WRITERS)
        with closing(SafetensorsWriter(partial, tensors.entries, dtype, shard_bytes, share=share)) as writer:
            for name, tensor in tensors.tensors(writer.names):
                writer.add(name, tensor, tensors.origin(tensor))
                progress(tensor.nbytes)
            writer.finish()

    together([functools.partial(write, number) for number in range(WRITERS)], progress)


def open_model(directory: Path, hf_files: str | None, layout: Layout) -> tuple[Config, Path]:
    """Settings to build the Megatron checkpoint in ``directory`` with, and where its config.json is."""
    files = megatron_files.huggingface_files(directory, hf_files)
    width = megatron_files.stored_vision_ffn(directory, max(1, layout.tensor))  # as a multiple it is what is built
    return job_config(files, megatron_files.weights_dtype(directory), layout, vision_ffn_multiple=width), files


def load_model(config: Config, files: Path, directory: Path, groups: Groups) -> QwenVLModel:
    """The stage with the weights of the Megatron checkpoint in ``directory``."""
    (model,) = load_stage(directory, files, build_settings(config), groups)
    return model
