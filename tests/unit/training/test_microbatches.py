"""Packing for the trainer names the prompt that it cannot pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apo.parallel.groups import Groups
from megatron_apo.records import PromptImage
from megatron_apo.training.microbatches import pack_microbatch
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.shape import read_shape
from tests.unit.model_providers.reference import make_checkpoint, pack
from tests.unit.training.jobs import PATCH_VALUES, samples_of


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PromptImage("clip", "clip", (3, 4, 10)), "3 temporal patches but seconds_per_grid is 0"),
        (PromptImage("clip", "clip", (2, 4, 10), 0.75), "needs 20 placeholder tokens|more image placeholder runs"),
        (PromptImage("clip", "clip", (3, 5, 8), 0.75), "multiples of 2, the spatial merge"),
    ],
)
def test_the_prompt_is_named(image: PromptImage, message: str, one_process: Groups, tmp_path: Path) -> None:
    shape = read_shape(make_checkpoint(tmp_path, tied=True))
    samples = samples_of(pack(PATCH_VALUES))
    broken = replace(samples[6], images=(image,), prompt_id="row 6")
    with pytest.raises(ValueError, match=rf"prompt 'row 6': .*({message})"):
        pack_microbatch(
            [broken], [0], shape, BuildSettings(), one_process, pixel_values=lambda image: pytest.fail(image.path)
        )
