"""What one real microbatch leaves for the backward pass and allocates, by layout: run on each rank of a job."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_apo.config import ParallelConfig
from megatron_apo.parallel.context import cut_microbatch
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.records import Microbatch
from megatron_apo.training.forward_step import HeadSettings, response_logprobs, run_model
from megatron_apo.training.setup import DTYPES, empty_chunks
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.shape import QwenVLShape, VisionShape

Grid = tuple[int, int, int]
Sequence = tuple[int, list[Grid]]  # its tokens, and the images that it begins with

# Windows are 4 x 4 patches.
BATCHES: dict[str, list[Sequence]] = {
    "alike": [(128, [(1, 12, 12)])] * 4,
    # Lengths of three buckets, one without an image; images that leave ragged windows, a video, two in one sequence.
    "mixed": [(224, [(1, 18, 22)]), (116, [(1, 6, 10), (2, 6, 4)]), (96, []), (48, [(1, 2, 26)]), (28, [(1, 4, 10)])],
}
CHUNK, IMAGE = 64, 2040


def _patches(grids: Iterable[Grid]) -> int:
    return sum(time * height * width for time, height, width in grids)


def sizes(batch: str) -> tuple[int, int]:
    """Tokens and patches of a microbatch."""
    return sum(length for length, _ in BATCHES[batch]), sum(_patches(images) for _, images in BATCHES[batch])


_NARROW = VisionShape(128, 5, 4, 344, 14, 2, 2, 56, (2,), 3, 256, 2)
SHAPES = {
    # The proportions of 7B: FFN five times the width, a quarter of the heads for keys.
    "wide_ffn": QwenVLShape(
        256, 6, 4, 2, 64, 1280, 2048, False, 1e-6, 1e6, (8, 12, 12), 4096, IMAGE, 2041, 2042, _NARROW
    ),
    # All heads have keys of their own, a narrow FFN; the tower without windows.
    "wide_attention": QwenVLShape(
        384, 4, 8, 8, 48, 512, 1024, True, 1e-6, 1e6, (6, 9, 9), 4096, 1000, 1001, 1002,
        VisionShape(160, 4, 4, 640, 14, 2, 2, 0, tuple(range(4)), 3, 384, 2, "LayerNorm", False),
        "qwen2_vl",
    ),
}  # fmt: skip


class Saved:
    """Bytes of the distinct storages that autograd keeps, ``parameters`` left out."""

    def __init__(self, own: set[int]) -> None:
        self._own = own
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive: no address is used twice

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._storages[storage.data_ptr()] = storage
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


class Allocated(TorchDispatchMode):
    """``peak``: most bytes alive at once among the storages that operations make while the mode is on."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self._known = set(own)
        self._now = 0
        self.peak = 0

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
                continue
            if size := tensor.untyped_storage().nbytes():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self._known.add(storage.data_ptr())
                    weakref.finalize(storage, self._free, storage.data_ptr(), size)
                    self._now += size
                    self.peak = max(self.peak, self._now)
        return out


def _microbatch(shape: QwenVLShape, sequences: list[Sequence]) -> Microbatch:
    """The sequences packed; each begins with the tokens of its images."""
    generator = torch.Generator().manual_seed(0)
    lengths, tokens = [length for length, _ in sequences], sum(length for length, _ in sequences)
    grids = tuple(grid for _, images in sequences for grid in images)
    ids, starts = torch.randint(0, 900, (tokens,), generator=generator), [0, *accumulate(lengths)]
    for start, (_, images) in zip(starts, sequences, strict=False):
        ids[start : start + _patches(images) // 4] = shape.image_token_id
    zeros = torch.zeros(tokens)
    return Microbatch(
        input_ids_T=ids,
        position_ids_3T=torch.cat([torch.arange(length) for length in lengths]).expand(3, tokens),
        labels_T=torch.randint(0, 900, (tokens,), generator=generator),
        response_mask_T=torch.ones(tokens, dtype=torch.bool),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        max_seqlen=max(lengths),
        sample_indices=tuple(range(len(sequences))),
        advantages_T=zeros,
        policy_weights_T=zeros,
        kl_token_weights_T=zeros,
        kl_weights_T=zeros,
        rollout_logprobs_T=zeros,
        pixel_values_LC=torch.randn(_patches(grids), shape.vision.patch_values, generator=generator),
        image_grids=grids,
        image_positions_K=(ids == shape.image_token_id).nonzero().squeeze(1),
        image_features_K=torch.arange(_patches(grids) // 4),
    )


def _measure(shape: QwenVLShape, sequences: list[Sequence], groups: Groups, settings: BuildSettings) -> dict[str, int]:
    torch.manual_seed(1)
    model = empty_chunks(shape, settings, groups)[0].train()
    # Gradients go into Megatron's buffer, which is planned by itself.
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    gradients = [buffer.grad_data for buffer in wrapped.buffers]
    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers(), *gradients]}
    batch = cut_microbatch(
        _microbatch(shape, sequences),
        groups.context_rank,
        groups.context_size,
        spatial_merge_size=shape.vision.spatial_merge_size,
    )
    head = HeadSettings(1.0, (), shape.vocab, CHUNK)
    saved, allocated = Saved(own), Allocated(own)
    with allocated:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            hidden = run_model(wrapped, batch, groups)
            logprobs, _ = response_logprobs(hidden, wrapped, batch, head, groups)
        kept = saved.bytes()
        del saved, hidden
        logprobs.sum().backward()
    return {"saved": kept, "peak": allocated.peak}


def measure(directory: Path, *, shape: str, batch: str, dtype: str, layout: dict[str, Any]) -> None:
    """Writes rank_<n>.json: bytes saved and the peak, for each recompute setting."""
    parallel = ParallelConfig(**layout)
    groups = initialise(parallel, seed=0)
    found = {}
    for recompute in ("none", "selective", "full"):
        settings = BuildSettings(
            dtype=DTYPES[dtype],
            recompute=recompute,
            tensor=parallel.tensor,
            context=parallel.context,
            sequence_parallel=parallel.sequence,
        )
        found[recompute] = _measure(SHAPES[shape], BATCHES[batch], groups, settings)
    (directory / f"rank_{groups.rank}.json").write_text(json.dumps(found))
    shut_down()
