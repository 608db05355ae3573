"""The log-probabilities of the trainer's own forward pass, packed, in any layout.

Shape suffixes: N scored tokens, R response tokens of a microbatch, L patches, C values per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from megatron_apo.comparison.inputs import Scored
from megatron_apo.config import Config
from megatron_apo.conversion.megatron_files import is_megatron
from megatron_apo.conversion.stage import load_stage
from megatron_apo.data.balancing import plan_microbatches
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.status import phase
from megatron_apo.records import PromptImage, TrainingSample
from megatron_apo.training.forward_step import head_settings
from megatron_apo.training.microbatches import pack_microbatch, response_places, score_microbatches
from megatron_apo.training.setup import build_chunks, build_settings, for_scoring
from model_providers.qwen_vl.shape import read_shape

_MICROBATCHES_AT_ONCE = 8  # of each pipeline stage, so that pixels of few are in memory and the bar moves


def score_with_megatron(
    samples: Sequence[Scored],
    weights: Path,
    config: Config,
    groups: Groups,
    *,
    pixel_values: Callable[[PromptImage], torch.Tensor],
) -> torch.Tensor:
    """Log-probability of each response token, float64 [N], on every rank. Collective.

    ``config`` says layout, dtype and, as ``model.path``, where the model's config.json is; ``weights`` is a checkpoint
    of it, Hugging Face's or Megatron's (torch_dist, whatever layout wrote it). ``pixel_values`` gives an image's
    patches [L, C]. ValueError for weights that are not this model's.
    """
    shape, settings = read_shape(config.model.path), build_settings(config)
    model = for_scoring(_load(weights, config, groups), settings)
    training = [TrainingSample(s.prompt.token_ids, s.response_ids, s.prompt.images, prompt_id=s.id) for s in samples]
    multiple = config.parallel.sequence_multiple
    plan = plan_microbatches(
        [-(-sample.length // multiple) * multiple for sample in training],
        tokens_per_microbatch=config.training.tokens_per_microbatch,
        data_parallel=groups.data_size,
        microbatch_multiple=config.parallel.microbatch_multiple,
    )[groups.data_rank]
    starts = torch.tensor([0, *(len(sample.response_ids) for sample in samples)]).cumsum(0)
    values_N = torch.zeros(int(starts[-1]), dtype=torch.float64)
    times_N = torch.zeros_like(values_N)
    head = head_settings(config, (), shape.vocab)
    portion = _MICROBATCHES_AT_ONCE * groups.pipeline_size
    hidden = None if groups.is_controller else True  # None: where stderr is no terminal
    with tqdm(total=len(plan), desc="megatron", unit="microbatch", disable=hidden) as bar:
        for first in range(0, len(plan), portion):
            with phase(groups, "microbatches"):  # an image may be missing on one machine only
                batches = [
                    pack_microbatch(training, indices, shape, settings, groups, pixel_values=pixel_values)
                    for indices in plan[first : first + portion]
                ]
            scored = score_microbatches(model, batches, head, groups)
            if scored is not None and groups.tensor_rank == 0:  # tensor ranks all hold the same
                for batch, logprobs_T in zip(batches, scored, strict=True):
                    indices_R, positions_R = response_places(batch, training)
                    rows = starts[indices_R] + positions_R
                    values_N[rows] += logprobs_T[batch.response_mask_T].double().cpu()
                    times_N[rows] += 1
            bar.update(len(batches))
    dist.all_reduce(values_N, group=groups.control)
    dist.all_reduce(times_N, group=groups.control)
    assert bool((times_N == 1).all()), "a token was scored twice, or by no rank"
    return values_N


def _load(weights: Path, config: Config, groups: Groups) -> list[Any]:
    files, settings = Path(config.model.path), build_settings(config)
    if is_megatron(weights):
        return load_stage(weights, files, settings, groups)
    return build_chunks(read_shape(files), settings, groups, weights)
