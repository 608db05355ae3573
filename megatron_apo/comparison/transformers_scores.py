"""The log-probabilities of transformers: one plain forward pass for each sequence, nothing padded, nothing packed.

Shape suffixes: N scored tokens, L patches, C values per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megatron_apo.comparison.inputs import Scored
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import PromptImage


def score_with_transformers(
    samples: Sequence[Scored],
    model_dir: Path,
    dtype: torch.dtype,
    *,
    pixel_values: Callable[[PromptImage], torch.Tensor],
) -> torch.Tensor:
    """Log-probability of each response token, float32 [N]; rotary positions are transformers' own.

    ``pixel_values`` gives an image's patches [L, C]. ValueError for a directory that transformers cannot load.
    """
    register_missing_operators()
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading a file: there is a bar of samples

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{model_dir}: transformers cannot load it ({error})") from error
    model.to(device).eval().requires_grad_(False)
    found = []
    with torch.inference_mode():
        for sample in tqdm(samples, desc="transformers", unit="sample", disable=None):
            found.append(_score(model, sample, pixel_values, device, dtype))
    return torch.cat(found)


def _score(
    model: Any,
    sample: Scored,
    pixel_values: Callable[[PromptImage], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    images = sample.prompt.images
    vision: dict[str, torch.Tensor] = {}
    if images:
        vision["pixel_values"] = torch.cat([pixel_values(image) for image in images]).to(device, dtype)
        vision["image_grid_thw"] = torch.tensor([image.grid_thw for image in images], device=device)
    ids = torch.tensor([sample.prompt.token_ids + sample.response_ids], device=device)
    model.model.rope_deltas = None  # those of the sequence before
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),  # without it every token counts as text
        use_cache=False,
        logits_to_keep=len(sample.response_ids) + 1,
        **vision,
    )
    logprobs = output.logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, -len(sample.response_ids) :, None])[:, 0].cpu()
