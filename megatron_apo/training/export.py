"""The trained model as a Hugging Face checkpoint: safetensors in the published names, beside the source's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_apo.conversion import new_directory
from megatron_apo.conversion.safetensors_writer import (
    DEFAULT_SHARD_BYTES,
    Entry,
    SafetensorsWriter,
    copy_other_files,
    total_bytes,
)
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import exchange_status, phase
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from megatron_apo.weight_sync.export import export_tensors
from model_providers.qwen_vl.loading import model_rows


def export_entries(model: Any) -> list[Entry]:
    """Names and shapes of what ``export_tensors`` yields, in its order."""
    rows = model_rows(model).values()
    return [entry for row in rows if row.exported for entry in zip(row.hf, row.shapes, strict=True)]


def export_model(
    state: TrainingState, groups: Groups, source: str | Path, target: Path, *, shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Writes the model into ``target`` (aside first, then renamed), with ``source``'s config, tokenizer and processor.

    Collective: all ranks call it together; only rank 0 writes. ValueError before anything is written when the disk has
    no room; whatever fails later, nothing is left under the name of ``target`` but what was there before.
    """
    chunks = [unwrap(chunk) for chunk in state.model]
    entries, dtype = export_entries(chunks[0]), next(chunks[0].parameters()).dtype
    target = Path(target)
    try:
        writer = None
        with phase(groups, "prepare export"):
            if groups.is_controller:
                partial = new_directory.prepare(target, total_bytes(entries, dtype))
                copy_other_files(Path(source), partial)
                writer = SafetensorsWriter(partial, entries, dtype, shard_bytes)
        exchange_status(groups, "write export", _write_all(chunks, groups, writer))
        with phase(groups, "finish export"):
            if writer is not None:
                writer.finish()
                new_directory.publish(target)
    finally:
        if groups.is_controller:
            new_directory.discard(target)


def _write_all(model: Any, groups: Groups, writer: SafetensorsWriter | None) -> OSError | None:
    """Writes what the collective iterator yields; after an error goes on iterating, for the other ranks' sake."""
    failure: OSError | None = None
    for name, tensor in export_tensors(model, groups):
        if writer is None or failure is not None:
            continue
        try:
            writer.add(name, tensor)
        except OSError as error:
            failure = error
            writer.close()
    return failure
