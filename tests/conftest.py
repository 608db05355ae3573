"""What all tests share: a quiet thread policy, a small policy and the digits task, each made once a session."""

from __future__ import annotations

import os

# Before torch is imported anywhere: many small processes on few cores, whose threads must not wait busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from megatron_apo.platform.megatron_on_cpu import install  # noqa: E402
from megatron_apo.platform.torchvision_cpu import register_missing_operators  # noqa: E402

# Before any test's first import of megatron.core or torchvision, whatever the order of the tests.
install()
register_missing_operators()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small Qwen2.5-VL checkpoint with tokenizer and processor, untrained; not to be written to."""
    from examples.digits.make_policy import make_policy

    directory = tmp_path_factory.mktemp("tiny_policy")
    make_policy(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def digits_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small digits task: 64 training, 16 validation and 16 test rows, with images."""
    from megatron_apo.data.tasks.digits import write_digits_task

    directory = tmp_path_factory.mktemp("digits_task")
    write_digits_task(directory, train_rows=64, validation_rows=16, test_rows=16, seed=0)
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked ``gpu`` on a machine without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU"))
