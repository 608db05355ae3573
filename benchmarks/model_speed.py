"""Forward and backward of the packed vision and language model, as ratios taken in one run.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/model_speed.py [transformers | mixed | packing | vision]

One process, float32, a Qwen2.5-VL of about 100 M parameters with random weights (``SHAPE``); without a word, all four:

- ``transformers``: the same sequences, all equally long, each with images of its own: ours packed into one row,
  transformers' (sdpa) as one batch without padding. Forward, cross entropy over every token, backward.
- ``mixed``: one long sequence with a large image and many short ones, some with tiny images: ours packed, beside
  transformers on each sequence by itself, which pads nothing, and on one padded batch.
- ``packing``: ours, on a heavy-tailed mix of lengths: packed, beside each sequence padded to the longest.
- ``vision``: the vision tower with windows, on 1 to 16 images: seconds, and the exponent of a power law through them.

Repetitions alternate between what is compared; printed are medians. Let nothing else run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.platform.host import prepare  # noqa: E402

prepare()

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from megatron_apo.config import ParallelConfig  # noqa: E402
from megatron_apo.parallel.groups import Groups, initialise, shut_down  # noqa: E402
from model_providers.qwen_vl.layers import packed_layout  # noqa: E402
from model_providers.qwen_vl.loading import load_hf_checkpoint  # noqa: E402
from model_providers.qwen_vl.megatron_config import BuildSettings  # noqa: E402
from model_providers.qwen_vl.model import QwenVLModel  # noqa: E402
from model_providers.qwen_vl.mrope import mrope_position_ids  # noqa: E402
from model_providers.qwen_vl.shape import read_shape  # noqa: E402

Grid = tuple[int, int, int]
IMAGE, START, END, VOCAB = 16380, 16381, 16382, 16384
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=640,
    num_hidden_layers=12,
    num_attention_heads=10,
    num_key_value_heads=2,
    intermediate_size=2048,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
)
VISION = dict(
    depth=8,
    hidden_size=512,
    num_heads=8,
    intermediate_size=1368,
    out_hidden_size=640,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    in_channels=3,
    tokens_per_second=2,
    window_size=112,
    fullatt_block_indexes=[3, 7],
)
SEQUENCES, TEXT_TOKENS, GRIDS = 4, 160, ((1, 16, 16), (1, 8, 24))  # of the comparison with transformers


def make_checkpoint(directory: Path) -> Path:
    """A published checkpoint of the benchmark's shape with transformers' random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=IMAGE - 1,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and those that all its threads worked, which a busy machine spoils less."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Batch:
    """Sequences of token ids, the grids of each one's images, and all images' patches in that order."""

    sequences: list[list[int]]
    grids: list[list[Grid]]
    pixels_LC: torch.Tensor

    @property
    def flat_grids(self) -> list[Grid]:
        return [grid for grids in self.grids for grid in grids]


def draw_batch(lengths: Sequence[int], grids: Sequence[Sequence[Grid]]) -> Batch:
    """Random tokens, as many of text as ``lengths`` says beside the images, and random patches."""
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for length, images in zip(lengths, grids, strict=True):
        ids = []
        for time_, height, width in images:
            ids += [START, *[IMAGE] * (time_ * height * width // 4), END]
        sequences.append(ids + torch.randint(0, 16000, (length,), generator=generator).tolist())
    patches = sum(t * h * w for images in grids for t, h, w in images)
    return Batch(sequences, [list(images) for images in grids], torch.randn(patches, 1176, generator=generator))


def our_run(model: QwenVLModel, batch: Batch, pad_to: int = 0) -> Callable[[], torch.Tensor]:
    """One forward and backward; with ``pad_to`` every sequence is filled up to so many tokens, which bear no loss."""
    sequences = [ids + [0] * max(0, pad_to - len(ids)) for ids in batch.sequences]
    lengths = [len(ids) for ids in sequences]
    ids = torch.tensor([[token for sequence in sequences for token in sequence]])
    positions = [
        mrope_position_ids(one, 0, grids, model.shape.vision_tokens)
        for one, grids in zip(sequences, batch.grids, strict=True)
    ]
    position_ids = torch.cat(positions, dim=1)[:, None]
    boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    image_rows_K = (ids[0] == IMAGE).nonzero().squeeze(1)
    weights_T = torch.cat(
        [(torch.arange(length) < len(real) - 1).float() for length, real in zip(lengths, batch.sequences, strict=True)]
    )
    labels_T = ids[0].roll(-1)

    def run() -> torch.Tensor:
        logits = model(
            ids,
            position_ids,
            packed_layout(boundaries, max(lengths)),
            pixel_values_LC=batch.pixels_LC,
            image_grids=batch.flat_grids,
            image_positions_K=image_rows_K,
            image_features_K=torch.arange(len(image_rows_K)),
        )
        loss = (functional.cross_entropy(logits[0], labels_T, reduction="none") * weights_T).sum() / weights_T.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    return run


def transformers_run(model: Any, batch: Batch) -> Callable[[], torch.Tensor]:
    """The same of transformers' model; all sequences are equally long."""
    ids = torch.tensor(batch.sequences)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": batch.pixels_LC,
        "image_grid_thw": torch.tensor(batch.flat_grids),
        "use_cache": False,
    }

    def run() -> torch.Tensor:
        logits = model(**arguments).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    return run


def transformers_one_by_one(model: Any, batch: Batch) -> Callable[[], torch.Tensor]:
    """transformers' model on each sequence alone, gradients added up; the mean over all sequences' tokens."""
    tokens, patches, given = sum(len(ids) - 1 for ids in batch.sequences), 0, []
    for sequence, grids in zip(batch.sequences, batch.grids, strict=True):
        ids = torch.tensor([sequence])
        arguments = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), "use_cache": False}
        if grids:
            count = sum(time_ * height * width for time_, height, width in grids)
            arguments |= {
                "pixel_values": batch.pixels_LC[patches : patches + count],
                "image_grid_thw": torch.tensor(grids),
            }
            patches += count
        given.append((ids, arguments))

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for ids, arguments in given:
            logits = model(**arguments).logits
            loss = functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum") / tokens
            loss.backward()
            total += loss.detach()
        return total

    return run


def transformers_padded(model: Any, batch: Batch) -> Callable[[], torch.Tensor]:
    """transformers' model on one batch, padded on the right to the longest sequence."""
    longest = max(len(ids) for ids in batch.sequences)
    ids = torch.tensor([one + [0] * (longest - len(one)) for one in batch.sequences])
    real = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in batch.sequences])
    arguments = {
        "input_ids": ids,
        "attention_mask": real,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": batch.pixels_LC,
        "image_grid_thw": torch.tensor(batch.flat_grids),
        "use_cache": False,
    }

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        labels = torch.where(real.bool(), ids, -100)[:, 1:].flatten()
        loss = functional.cross_entropy(model(**arguments).logits[:, :-1].flatten(0, 1), labels)
        loss.backward()
        return loss.detach()

    return run


def seconds(runs: dict[str, Callable[[], torch.Tensor]], repetitions: int) -> dict[str, Taken]:
    """Medians of each, taken in turns after one round that does not count."""
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            begin, worked = time.perf_counter(), time.process_time()
            run()
            if repetition:
                taken[name].append(Taken(time.perf_counter() - begin, time.process_time() - worked))
    return {
        name: Taken(statistics.median(one.wall for one in many), statistics.median(one.cpu for one in many))
        for name, many in taken.items()
    }


def print_ratio(found: dict[str, Taken], above: str, below: str) -> None:
    """The two medians, and their ratio by the clock and by the seconds that the cores worked."""
    for name, one in found.items():
        print(f"{name:>14}: {one.wall:7.3f} s, {one.cpu:7.3f} CPU seconds")
    wall, cpu = found[above].wall / found[below].wall, found[above].cpu / found[below].cpu
    print(f"{above} / {below}: {wall:.3f} by the clock, {cpu:.3f} by CPU seconds", flush=True)


def transformers_model(checkpoint: Path) -> Any:
    """transformers' model of the same weights, in training mode."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
    return model.train()


def check_losses(runs: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """One run of each, which must give the same loss."""
    losses = {name: float(run()) for name, run in runs.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"error: they do not compute the same: {losses}")
    return losses


def compare_mixed(model: QwenVLModel, other: Any, repetitions: int) -> None:
    """Ours beside transformers', on sequences and images of very different sizes."""
    lengths = [700] + [20 + 4 * index for index in range(10)]
    grids: list[Sequence[Grid]] = [((1, 32, 32),)] + [((1, 2, 2),) if index % 2 else () for index in range(10)]
    batch = draw_batch(lengths, grids)
    runs = {
        "ours": our_run(model, batch),
        "one by one": transformers_one_by_one(other, batch),
        "padded batch": transformers_padded(other, batch),
    }
    losses = check_losses(runs)
    print(
        f"one sequence of {len(batch.sequences[0])} tokens with an image of 1,024 patches, ten of "
        f"{len(batch.sequences[1])} to {len(batch.sequences[-1])}, five of them with one of 4; loss "
        f"{losses['ours']:.6f}"
    )
    found = seconds(runs, repetitions)
    for name in ("one by one", "padded batch"):
        print_ratio({key: found[key] for key in ("ours", name)}, "ours", name)


def compare_transformers(model: QwenVLModel, other: Any, repetitions: int) -> None:
    """Ours beside transformers', on the same tokens."""
    batch = draw_batch([TEXT_TOKENS] * SEQUENCES, [GRIDS] * SEQUENCES)
    runs = {"ours": our_run(model, batch), "transformers": transformers_run(other, batch)}
    losses = check_losses(runs)
    parameters = sum(parameter.numel() for parameter in other.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, {SEQUENCES} sequences of {len(batch.sequences[0])} tokens with "
        f"{len(GRIDS)} images each, {batch.pixels_LC.shape[0]} patches; loss {losses['ours']:.6f}, "
        f"difference {abs(losses['ours'] - losses['transformers']):.1e}"
    )
    found = seconds(runs, repetitions)
    print_ratio(found, "ours", "transformers")


def heavy_tailed_lengths(count: int, longest: int) -> list[int]:
    """Quantiles of a log-normal distribution (median 40, sigma 1) cut at ``longest``, which the last one reaches."""
    normal = statistics.NormalDist()
    lengths = [int(40 * math.exp(normal.inv_cdf((index + 0.5) / count))) for index in range(count)]
    return [*(min(length, longest) for length in lengths[:-1]), longest]


def compare_packing(model: QwenVLModel, repetitions: int) -> None:
    """Packed beside padded, on sequences of which few are long; every other one has an image."""
    lengths = heavy_tailed_lengths(10, 320)
    batch = draw_batch(lengths, [((1, 8, 8),) if index % 2 else () for index in range(len(lengths))])
    longest = max(len(ids) for ids in batch.sequences)
    tokens = sum(len(ids) for ids in batch.sequences)
    print(
        f"{len(lengths)} sequences of {sorted(len(ids) for ids in batch.sequences)} tokens: {tokens} packed, "
        f"{longest * len(lengths)} padded"
    )
    found = seconds({"packed": our_run(model, batch), "padded": our_run(model, batch, longest)}, repetitions)
    print_ratio(found, "padded", "packed")


def time_vision(model: QwenVLModel, repetitions: int) -> None:
    """Forward and backward of the vision tower on 1, 2, 4, 8 and 16 images of 16 x 8 patches."""
    tower = model.vision_model
    assert tower is not None

    def run_of(images: int) -> Callable[[], torch.Tensor]:
        grids = [(1, 16, 8)] * images
        pixels = torch.randn(images * 128, 1176, generator=torch.Generator().manual_seed(2))

        def run() -> torch.Tensor:
            tower.zero_grad(set_to_none=True)
            out = tower(pixels, grids).sum()
            out.backward()
            return out.detach()

        return run

    counts = (1, 2, 4, 8, 16)
    found = seconds({str(count): run_of(count) for count in counts}, repetitions)
    for number in counts:
        one = found[str(number)]
        print(f"{number:>3} images: {one.wall:.3f} s, {one.cpu:.3f} CPU seconds")
    sizes = [math.log(number) for number in counts]
    for kind in ("wall", "cpu"):
        times = [getattr(found[str(number)], kind) for number in counts]
        slope = statistics.linear_regression(sizes, [math.log(taken) for taken in times]).slope
        print(f"{kind}: time(16) / (16 time(1)) = {times[-1] / (16 * times[0]):.2f}; time grows as images^{slope:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("transformers", "mixed", "packing", "vision"), help="only this one")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: %(default)s)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.repetitions} repetitions")
    groups: Groups = initialise(ParallelConfig(), seed=0)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(Path(directory))
        model = QwenVLModel(read_shape(checkpoint), BuildSettings(), pg_collection=groups.collection)
        load_hf_checkpoint(model, checkpoint, tensor_rank=0, tensor_size=1)
        if options.part in (None, "transformers", "mixed"):
            other = transformers_model(checkpoint)
    if options.part in (None, "transformers"):
        compare_transformers(model, other, options.repetitions)
    if options.part in (None, "mixed"):
        compare_mixed(model, other, options.repetitions)
    if options.part in (None, "packing"):
        compare_packing(model, options.repetitions)
    if options.part in (None, "vision"):
        time_vision(model, options.repetitions)
    shut_down()


if __name__ == "__main__":
    main()
