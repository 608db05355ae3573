"""A Megatron-Core training script of its own, which uses the Qwen-VL model providers as they are.

    python examples/digits/make_policy.py runs/policy --seed 0
    torchrun --nproc-per-node 2 examples/megatron_script/train.py --model runs/policy --tensor 2 --sequence-parallel
    torchrun --nproc-per-node 2 examples/megatron_script/train.py --model runs/policy --pipeline 2

Nothing here belongs to megatron_apo's trainer: process groups, model chunks, Megatron's DDP, optimizer and schedule are
set up as any Megatron script does it. ``model_provider(pre_process, post_process, vp_stage, config, pg_collection)`` is
called as Megatron's own ``get_model`` calls it.
Data: eight random images, each with a caption of random tokens to learn by heart, packed into one row a microbatch.

Shape suffixes: T packed tokens, L patches, C values per patch, K image tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_apo.platform.host import prepare

prepare()  # answers for a missing GPU; nothing where there is one

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.pipeline_parallel.utils import (  # noqa: E402
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402

from model_providers.qwen2_5_vl import provider as qwen2_5_vl  # noqa: E402
from model_providers.qwen2_vl import provider as qwen2_vl  # noqa: E402
from model_providers.qwen_vl.layers import packed_layout  # noqa: E402
from model_providers.qwen_vl.megatron_config import BuildSettings  # noqa: E402
from model_providers.qwen_vl.mrope import mrope_position_ids  # noqa: E402
from model_providers.qwen_vl.provider import ModelProvider  # noqa: E402
from model_providers.qwen_vl.shape import VisionTokens  # noqa: E402

PROVIDERS = {"qwen2_5_vl": qwen2_5_vl.model_provider_for, "qwen2_vl": qwen2_vl.model_provider_for}
GRIDS = ((1, 4, 4), (1, 2, 6), (1, 4, 2), (1, 6, 4))  # patches: time, height, width
CAPTION = 12


@dataclass(frozen=True)
class Example:
    """An image and the tokens to write under it."""

    pixels_LC: torch.Tensor
    grid: tuple[int, int, int]
    prompt: list[int]
    caption: list[int]


def draw_examples(config: dict[str, Any], count: int, generator: torch.Generator) -> list[Example]:
    """Random images with random captions, of the ids that ``config.json`` names."""
    vision = config["vision_config"]
    merge = vision["spatial_merge_size"]
    values = vision["patch_size"] ** 2 * vision["temporal_patch_size"] * 3
    examples = []
    for number in range(count):
        grid = GRIDS[number % len(GRIDS)]
        patches = grid[0] * grid[1] * grid[2]
        placeholders = [config["image_token_id"]] * (patches // merge**2)
        prompt = [config["vision_start_token_id"], *placeholders, config["vision_end_token_id"]]
        caption = torch.randint(0, 256, (CAPTION,), generator=generator).tolist()
        examples.append(Example(torch.randn(patches, values, generator=generator), grid, prompt, caption))
    return examples


def pack(examples: list[Example], config: dict[str, Any], align: int) -> dict[str, Any]:
    """One microbatch: what the model's ``forward`` takes, and ``labels`` and ``loss_mask`` [1, T].

    T is a multiple of ``align``, as sequence parallelism asks for: the last sequence ends in tokens without loss.
    """
    image, vision = config["image_token_id"], config["vision_config"]
    tokens = VisionTokens(
        image, config["video_token_id"], vision["spatial_merge_size"], vision.get("tokens_per_second", 0)
    )
    sequences = [example.prompt + example.caption for example in examples]
    padding = -sum(len(sequence) for sequence in sequences) % align
    sequences[-1] = sequences[-1] + [0] * padding
    lengths = [len(sequence) for sequence in sequences]
    boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids = torch.tensor([[token for sequence in sequences for token in sequence]])
    positions = [
        mrope_position_ids(one.prompt, length - len(one.prompt), [one.grid], tokens)
        for one, length in zip(examples, lengths, strict=True)
    ]
    # Row t predicts token t + 1: the rows before each caption's tokens carry loss.
    mask = [[0.0] * (len(one.prompt) - 1) + [1.0] * CAPTION + [0.0] for one in examples] + [[0.0] * padding]
    image_rows_K = (ids[0] == image).nonzero().squeeze(1)
    return {
        "input_ids": ids,
        "position_ids": torch.cat(positions, dim=1)[:, None],
        "boundaries": (boundaries, max(lengths)),
        "pixel_values_LC": torch.cat([one.pixels_LC for one in examples]),
        "image_grids": [one.grid for one in examples],
        "image_positions_K": image_rows_K,
        "image_features_K": torch.arange(len(image_rows_K)),  # each image is shown once, in order
        "labels": ids.roll(-1, dims=1),
        "loss_mask": torch.tensor([[weight for row in mask for weight in row]]),
    }


def loss_function(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the caption's tokens and their number: the provider's config asks for a loss per token."""
    total, count = (losses * loss_mask).sum(), loss_mask.sum().to(torch.int)
    return total, count, {"loss": total.detach(), "tokens": count}


def forward_step(batches: Iterator[dict[str, Any]], model: Any) -> tuple[torch.Tensor, Any]:
    """What Megatron's schedule calls for every microbatch and chunk."""
    batch = dict(next(batches))
    loss_mask = batch.pop("loss_mask")
    losses = model(packed_seq_params=packed_layout(*batch.pop("boundaries")), **batch)
    return losses, partial(loss_function, loss_mask)


def get_model(model_provider: ModelProvider, chunks: int, device: torch.device) -> list[Any]:
    """This rank's chunks under Megatron's DDP, with the calls that Megatron's own ``get_model`` makes."""
    groups, vp_size = ProcessGroupCollection.use_mpu_process_groups(), chunks if chunks > 1 else None
    models = []
    for number in range(chunks):
        vp_stage = number if vp_size else None
        model = model_provider(
            pre_process=is_pp_first_stage(groups.pp) and is_vp_first_stage(vp_stage, vp_size),
            post_process=is_pp_last_stage(groups.pp) and is_vp_last_stage(vp_stage, vp_size),
            vp_stage=vp_stage,
            config=None,  # Megatron's default: the provider makes it, and everything after reads it from the model
            pg_collection=groups,
        ).to(device)
        model.config.finalize_model_grads_func = finalize_model_grads
        ddp_config = DistributedDataParallelConfig()
        models.append(DistributedDataParallel(model.config, ddp_config, model, pg_collection=groups))
    return models


def train(options: argparse.Namespace, device: torch.device) -> list[float]:
    """Trains for ``options.steps`` steps; the loss per caption token of each, on the last pipeline stage."""
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    settings = BuildSettings(
        tensor=options.tensor,
        pipeline=options.pipeline,
        virtual_pipeline=options.virtual_pipeline,
        sequence_parallel=options.sequence_parallel,
    )
    model_provider = PROVIDERS[config["model_type"]](options.model, settings)
    chunks = get_model(model_provider, settings.virtual_pipeline, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron warns that apex is missing; torch's Adam takes its place
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=options.learning_rate), chunks)
    examples = draw_examples(config, 8, torch.Generator().manual_seed(options.seed))
    # Each data-parallel rank has its share of them, in two microbatches.
    mine = examples[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    half = len(mine) // 2
    batches = [to_device(pack(part, config, options.tensor), device) for part in (mine[:half], mine[half:])]
    schedule, history = get_forward_backward_func(), []
    for step in range(options.steps):
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        results = schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in chunks],
            model=chunks,
            num_microbatches=len(batches),
            seq_length=max(batch["input_ids"].shape[1] for batch in batches),
            micro_batch_size=1,
            forward_only=False,
        )
        updated, _, _ = optimizer.step()
        assert updated, "the optimizer refused the step"
        if parallel_state.is_pipeline_last_stage():
            sums = torch.stack([torch.stack((one["loss"], one["tokens"].float())) for one in results]).sum(0)
            dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
            history.append(float(sums[0] / sums[1]))
            if dist.get_rank() == dist.get_world_size() - 1:
                print(f"step {step} loss {history[-1]:.6f}", flush=True)
    return history


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    boundaries, longest = batch["boundaries"]
    return {**moved, "boundaries": (boundaries.to(device), longest)}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a Qwen2.5-VL or Qwen2-VL checkpoint")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks (default: %(default)s)")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages (default: %(default)s)")
    parser.add_argument("--virtual-pipeline", type=int, default=1, help="chunks per stage (default: %(default)s)")
    parser.add_argument("--sequence-parallel", action="store_true", help="cut the sequence between tensor ranks")
    parser.add_argument("--steps", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[float]:
    """Starts the groups, trains, and ends them; returns ``train``'s losses."""
    options = parse_arguments(arguments)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=options.tensor,
            pipeline_model_parallel_size=options.pipeline,
            virtual_pipeline_model_parallel_size=options.virtual_pipeline if options.virtual_pipeline > 1 else None,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(options.seed)
        return train(options, device)
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
