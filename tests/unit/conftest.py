"""One process as a whole training job: Megatron's groups of size one, for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_apo.config import ParallelConfig
from megatron_apo.parallel.groups import Groups, initialise, shut_down


@pytest.fixture(scope="module")
def one_process() -> Iterator[Groups]:
    """Groups of a single process; ended after the module, because Megatron keeps them as globals."""
    yield initialise(ParallelConfig(), seed=0)
    shut_down()
