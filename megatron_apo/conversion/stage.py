"""A pipeline stage, its weights out of a torch_dist checkpoint: the whole checkpoint is checked first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_apo.conversion import megatron_files
from megatron_apo.conversion.from_megatron import FromMegatron
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import phase
from megatron_apo.training.setup import empty_chunks
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape


def load_stage(directory: Path, files: Path, settings: BuildSettings, groups: Groups) -> list[QwenVLModel]:
    """This rank's chunks of the model of ``files``/config.json, with the weights in ``directory``. Collective.

    Whatever layout wrote them; a vision FFN stored wider than ``settings`` say is built as wide. ValueError when the
    checkpoint is not whole, or is not that model's.
    """
    with phase(groups, "check weights"):  # a file may be missing on one machine only
        FromMegatron(directory, files)  # missing, misshapen, left over: the last Megatron's own loader skips
        megatron_files.weights_dtype(directory)
        width = megatron_files.stored_vision_ffn(directory, settings.tensor)
    if width is not None:  # as a multiple it is the width that is built
        settings = replace(settings, vision_ffn_multiple=width)
    chunks = empty_chunks(read_shape(files), settings, groups)
    megatron_files.load_weights(chunks, directory)
    return chunks
