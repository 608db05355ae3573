"""Process groups: the only place that reads Megatron's ``parallel_state``.

Rank order is Megatron's default (tensor, context, data, pipeline from fastest to slowest). ``Groups`` is handed to
whoever needs a group or a coordinate; nothing below it looks one up by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_apo.config import ParallelConfig

GROUPS_OF_A_MODEL = ["tp", "cp", "pp", "mp", "dp", "dp_cp", "embd", "pos_embd", "tp_cp", "tp_dp_cp"]


@dataclass(frozen=True)
class Groups:
    """This rank's coordinates and process groups.

    ``control`` is a gloo group over all ranks, for CPU tensors (token ids, statuses); ``model_control`` the same over
    the ranks of this data-parallel replica (tensor, context and pipeline ranks).
    """

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    context_rank: int
    context_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int
    collection: ProcessGroupCollection
    control: dist.ProcessGroup
    model_control: dist.ProcessGroup
    model_ranks: tuple[int, ...]
    replica_leaders: tuple[int, ...]
    device: torch.device

    @property
    def is_controller(self) -> bool:
        return self.rank == 0

    @property
    def first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def tp(self) -> dist.ProcessGroup:
        return self.collection.tp

    @property
    def pp(self) -> dist.ProcessGroup:
        return self.collection.pp

    @property
    def cp(self) -> dist.ProcessGroup:
        return self.collection.cp

    @property
    def dp(self) -> dist.ProcessGroup:
        return self.collection.dp


def launched_processes() -> int:
    """How many processes the launcher started for this job; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def initialise(parallel: ParallelConfig, *, seed: int) -> Groups:
    """Starts torch.distributed (from torchrun's environment, or alone) and Megatron's groups; seeds the generators.

    Raises ValueError when the ranks do not divide into the layout.
    """
    cuda = torch.cuda.is_available()
    timeout = timedelta(seconds=parallel.timeout_seconds)
    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        if "RANK" in os.environ:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)
        else:
            store = dist.HashStore()
            dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1, timeout=timeout)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    world = dist.get_world_size()
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if world % model_size:
        raise ValueError(
            f"{world} processes do not divide into parallel.tensor={parallel.tensor} x "
            f"parallel.pipeline={parallel.pipeline} x parallel.context={parallel.context} = {model_size}; "
            f"start a multiple of {model_size} processes"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=max(1, parallel.timeout_seconds // 60),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return _collect(device, timeout)


def _collect(device: torch.device, timeout: timedelta) -> Groups:
    collection = ProcessGroupCollection.use_mpu_process_groups(GROUPS_OF_A_MODEL)
    world = dist.get_world_size()
    # A new group does not take over the job's timeout, and these two wait for rollouts and evaluations.
    control = dist.new_group(backend="gloo", timeout=timeout)
    # Every rank must take part in creating every group, so first learn all of them. Megatron's own model-parallel group
    # leaves the context ranks out.
    gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(gathered, torch.tensor([parallel_state.get_data_parallel_rank()]), group=control)
    data_ranks = [int(data_rank) for data_rank in gathered]
    replicas = [
        [rank for rank in range(world) if data_ranks[rank] == replica]
        for replica in range(parallel_state.get_data_parallel_world_size())
    ]
    controls = [dist.new_group(ranks, backend="gloo", timeout=timeout) for ranks in replicas]
    mine = data_ranks[dist.get_rank()]
    return Groups(
        rank=dist.get_rank(),
        world_size=world,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        collection=collection,
        control=control,
        model_control=controls[mine],
        model_ranks=tuple(replicas[mine]),
        replica_leaders=tuple(ranks[0] for ranks in replicas),
        device=device,
    )


def shut_down() -> None:
    """Ends Megatron's groups and torch.distributed; without it a process sometimes aborts at exit."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
