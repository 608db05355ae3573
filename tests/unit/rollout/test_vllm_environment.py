"""What an engine in this process may end of the process's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_apo.rollout.vllm.environment import default_process_group, process_group_kept


@pytest.fixture
def default(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    if dist.is_initialized():
        pytest.skip("this process has a default group already")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    group = default_process_group()
    assert group is not None
    yield group
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_trainers_group_is_kept(default: dist.ProcessGroup) -> None:
    other = dist.new_group([0])
    for own in (None, other):
        with process_group_kept(own):
            dist.destroy_process_group()
            dist.destroy_process_group(default)
        assert default_process_group() is default


def test_the_engines_own_group_is_ended(default: dist.ProcessGroup) -> None:
    with process_group_kept(default):
        dist.destroy_process_group()
    assert default_process_group() is None
    with process_group_kept(None):  # nothing to keep
        assert default_process_group() is None
