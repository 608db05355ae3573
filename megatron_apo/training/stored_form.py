"""What a checkpoint must have in common with the job that reads it: compared before anything is loaded.

The layout may differ, and so may the layer spec, under which the stored tensors have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_apo.training.setup import DTYPES, TrainingState
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.shape import QwenVLShape
from model_providers.qwen_vl.weight_map import padded_cut, stored_rows


def saved_with(state: TrainingState) -> dict[str, Any]:
    """The settings that decide what a checkpoint holds, by the names that users give them."""
    return {
        "model.dtype": next(name for name, dtype in DTYPES.items() if dtype == state.settings.dtype),
        **{f"model.freeze_{part}": frozen for part, frozen in state.frozen.items()},
        "parallel.distributed_optimizer": bool(state.model[0].ddp_config.use_distributed_optimizer),
    }


def check_saved_with(path: Path, saved: Any, state: TrainingState) -> None:
    """ValueError naming each setting of ``saved_with`` that is another one now; ``saved`` is what ``path`` says."""
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path}: an earlier version wrote it, which did not note the settings that it was saved with; convert its "
            "weights (tools/convert_checkpoint.py megatron-to-hf) with that version, and start a new run from them"
        )
    current = saved_with(state)
    changed = [
        f"{key}={value}, saved with {saved.get(key)}" for key, value in current.items() if saved.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{path}: {'; '.join(changed)}: the optimizer's state would not fit; put the settings back, or start a new "
            f"run from its weights (tools/convert_checkpoint.py megatron-to-hf {path} TARGET --hf-files MODEL, then "
            "--model.path=TARGET)"
        )


def check_vision_ffn(
    path: Path, sizes: Mapping[str, tuple[int, ...]], shape: QwenVLShape, settings: BuildSettings
) -> None:
    """ValueError naming the first tensor of ``sizes``, the stored ones, whose vision FFN is padded to another width."""
    for name, row in stored_rows(shape, vision_ffn_multiple=settings.vision_ffn_multiple).items():
        if row.padded_to is None or row.cut is None or name not in sizes:
            continue
        parts = len(row.hf) if row.layout == "gate_up" else 1
        stored, built = sizes[name][row.cut] // parts, padded_cut(row)
        if stored != built:
            raise ValueError(
                f"{path}: {name} has a vision FFN of {stored}, this job builds one of {built} "
                f"(model.vision_ffn_multiple={settings.vision_ffn_multiple}); set model.vision_ffn_multiple={stored} "
                "to read it, or convert it (tools/convert_checkpoint.py megatron-to-hf) and start from that"
            )
