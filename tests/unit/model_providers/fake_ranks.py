"""One process in the place of any rank of a larger job: Megatron's groups with torch's fake process group behind them.

Enough to build models, which exchange nothing; whatever communicates gets no answer from the other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.testing._internal.distributed.fake_pg import FakeStore

from model_providers.qwen_vl.provider import GROUPS


@contextmanager
def fake_rank(
    rank: int, world: int, *, tensor: int = 1, pipeline: int = 1, chunks: int = 1, context: int = 1
) -> Iterator[ProcessGroupCollection]:
    """Rank ``rank`` of ``world``, Megatron's groups started with these sizes, and those that a model needs."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
            context_parallel_size=context,
            create_gloo_process_groups=False,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        yield ProcessGroupCollection.use_mpu_process_groups(GROUPS)
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
