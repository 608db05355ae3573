"""What APO adds to a forward and backward of the model with plain cross entropy, as ratios taken in one run.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/adapter.py [--repetitions 15]

The model and the images of model_speed.py, one process, float32, one packed microbatch; the loss is over the responses'
tokens in each of them:

- ``cross entropy``: a matrix product, and torch's cross entropy on all logits at once.
- ``fused``: the same loss from the log-probabilities that are computed chunk by chunk (their backward computes the
  logits again, which costs the fourth product to the head's three).
- ``APO``: the adapter: the same log-probabilities, ratios, clipping, DADS-weighted KL, every metric.

Every round runs all three, in an order that moves on by one; a ratio is taken within a round, so what slows the machine
for longer than that cancels, and printed is the median of these ratios with its standard error. Exit status 1 when APO
takes more than 1.03 of plain cross entropy's CPU seconds. Let nothing else run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.platform.host import prepare  # noqa: E402

prepare()

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.model_speed import GRIDS, IMAGE, Batch, draw_batch, make_checkpoint  # noqa: E402
from megatron_apo.config import ParallelConfig  # noqa: E402
from megatron_apo.config_loading import load_config  # noqa: E402
from megatron_apo.parallel.groups import Groups, initialise, shut_down  # noqa: E402
from megatron_apo.records import Microbatch  # noqa: E402
from megatron_apo.training.forward_step import LossSettings, head_settings, run_model, training_step  # noqa: E402
from model_providers.qwen_vl.loading import load_hf_checkpoint  # noqa: E402
from model_providers.qwen_vl.megatron_config import BuildSettings  # noqa: E402
from model_providers.qwen_vl.model import QwenVLModel  # noqa: E402
from model_providers.qwen_vl.mrope import mrope_position_ids  # noqa: E402
from model_providers.qwen_vl.shape import read_shape  # noqa: E402

LIMIT = 1.03
SEQUENCES, RESPONSE = 4, 160  # tokens of a response; the images come before it


def as_microbatch(batch: Batch, model: QwenVLModel) -> Microbatch:
    """The sequences packed, their last ``RESPONSE`` tokens the responses, with random advantages and policies."""
    ids = torch.tensor([token for sequence in batch.sequences for token in sequence])
    lengths = [len(sequence) for sequence in batch.sequences]
    positions = [
        mrope_position_ids(one, 0, grids, model.shape.vision_tokens)
        for one, grids in zip(batch.sequences, batch.grids, strict=True)
    ]
    mask = torch.cat([(torch.arange(n) >= n - 1 - RESPONSE) & (torch.arange(n) < n - 1) for n in lengths])
    generator = torch.Generator().manual_seed(2)
    weights = mask / mask.sum()
    image_rows = (ids == IMAGE).nonzero().squeeze(1)
    return Microbatch(
        input_ids_T=ids,
        position_ids_3T=torch.cat(positions, dim=1),
        labels_T=ids.roll(-1),
        response_mask_T=mask,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max_seqlen=max(lengths),
        sample_indices=tuple(range(len(lengths))),
        advantages_T=torch.randn(len(ids), generator=generator),
        policy_weights_T=weights,
        kl_token_weights_T=weights,
        kl_weights_T=torch.rand(len(ids), generator=generator),
        rollout_logprobs_T=torch.randn(len(ids), generator=generator) - 9,
        ref_logprobs_T=torch.randn(len(ids), generator=generator) - 9,
        pixel_values_LC=batch.pixels_LC,
        image_grids=tuple(batch.flat_grids),
        image_positions_K=image_rows,
        image_features_K=torch.arange(len(image_rows)),
    )


def plain_run(model: QwenVLModel, batch: Microbatch, groups: Groups) -> Callable[[], torch.Tensor]:
    """Cross entropy on the logits of the responses' tokens."""

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        hidden = run_model(model, batch, groups).squeeze(1)[batch.response_mask_T]
        loss = functional.cross_entropy(hidden @ model.output_weight().t(), batch.labels_T[batch.response_mask_T])
        loss.backward()
        return loss.detach()

    return run


def adapter_run(
    model: QwenVLModel, batch: Microbatch, groups: Groups, *, supervised: bool
) -> Callable[[], torch.Tensor]:
    """The product's own forward step and loss function."""
    config = load_config(None, ["--objective.name=apo", "--sampling.temperature=1.0"])
    tokens = int(batch.response_mask_T.sum())
    loss = LossSettings(config.objective, config.objective.kl.coefficient, tokens, "current", supervised)
    step = training_step(head_settings(config, (), model.shape.vocab), groups, loss)

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        output, loss_function = step(iter([batch]), model)
        total, count, _ = loss_function(output)
        (total / count).backward()
        return (total / count).detach()

    return run


def rounds(runs: dict[str, Callable[[], torch.Tensor]], repetitions: int) -> list[dict[str, float]]:
    """CPU seconds of each, by round, after one round that does not count."""
    names, found = list(runs), []
    for repetition in range(repetitions + 1):
        first = repetition % len(names)
        taken = {}
        for name in names[first:] + names[:first]:
            start = time.process_time()
            runs[name]()
            taken[name] = time.process_time() - start
        found.append(taken)
    return found[1:]


def ratio(found: list[dict[str, float]], above: str, below: str) -> float:
    """The median ratio of two of them within a round, printed with the standard error of that median."""
    ratios = [one[above] / one[below] for one in found]
    middle = statistics.median(ratios)
    # Of a median of normal values: sqrt(pi / 2) times that of their mean; the spread from the median deviation, which
    # a round that something else disturbed does not move.
    spread = 1.4826 * statistics.median(abs(one - middle) for one in ratios)
    error = math.sqrt(math.pi / 2 / len(ratios)) * spread
    print(f"{above} / {below}: {middle:.4f} +- {error:.4f} by CPU seconds", flush=True)
    return middle


def main() -> int:
    """Runs the comparison; exit status 1 when APO adds more than 3 % to the plain cross entropy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    groups = initialise(ParallelConfig(), seed=0)
    try:
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = make_checkpoint(Path(directory))
            model = QwenVLModel(read_shape(checkpoint), BuildSettings(), pg_collection=groups.collection)
            load_hf_checkpoint(model, checkpoint, tensor_rank=0, tensor_size=1)
        batch = as_microbatch(draw_batch([RESPONSE + 8] * SEQUENCES, [GRIDS] * SEQUENCES), model)
        runs = {
            "cross entropy": plain_run(model, batch, groups),
            "fused": adapter_run(model, batch, groups, supervised=True),
            "APO": adapter_run(model, batch, groups, supervised=False),
        }
        plain, fused = float(runs["cross entropy"]()), float(runs["fused"]())
        if abs(plain - fused) > 1e-4:
            raise SystemExit(f"error: they do not compute the same: {plain}, {fused}")
        found = rounds(runs, options.repetitions)
    finally:
        shut_down()
    for name in runs:
        print(f"{name:>14}: {statistics.median(one[name] for one in found):7.3f} CPU seconds")
    ratio(found, "fused", "cross entropy")
    ratio(found, "APO", "fused")
    return int(ratio(found, "APO", "cross entropy") > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
