"""What vLLM needs in this process before it is imported, and what a trainer beside it must be protected from.

Building an engine reseeds torch's generators, replaces ``torch.set_num_threads`` and writes environment variables;
sampling draws from torch's global generator; shutting down destroys the default process group even when somebody else
made it. None of that may reach a trainer that lives in the same process.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # models are local directories: nothing is asked of a network
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core runs in this process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it cannot return the processed log-probabilities
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the generation that takes our logits processor
}
_SETTINGS_CPU = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings there are advice about libraries to preload
    "TORCH_COMPILE_DISABLE": "1",  # see uncompiled()
}
_SETTINGS_GPU = {"VLLM_LOGGING_LEVEL": "WARNING"}


def prepare_environment() -> None:
    """Sets what vLLM reads from the environment, where the user has not set it; call it before importing vLLM."""
    settings = _SETTINGS | (_SETTINGS_GPU if torch.cuda.is_available() else _SETTINGS_CPU)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    _leave_out_notices()
    _hide_unloadable_torchcodec()


def _leave_out_notices() -> None:
    """Two notices of vLLM's own making at its import, which say nothing to a user."""
    # Looking for kernels, it reads every attribute of torch's modules, deprecated ones included.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.reduce_op.*", category=FutureWarning)
    if not torch.cuda.is_available():
        # That Triton is of no use on a CPU; logged before vLLM has read VLLM_LOGGING_LEVEL.
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)


def _hide_unloadable_torchcodec() -> None:
    """Lets vLLM see a torchcodec that cannot be loaded as absent.

    vLLM uses it for sound and film only and does without it, but not when its import ends in OSError: PyPI's builds
    link CUDA libraries that a CPU machine has not.
    """
    if "torchcodec" in sys.modules:
        return
    try:
        importlib.import_module("torchcodec")
    except (ImportError, RuntimeError, OSError):
        sys.modules["torchcodec"] = None  # type: ignore[assignment]  # an import of it now raises ImportError


@contextmanager
def uncompiled() -> Iterator[None]:
    """On a CPU, runs what vLLM marks for torch.compile as it is: compiling costs the first generation 13 to 26 s.

    The environment variable for that counts only where torch's compiler has not been imported yet, and a trainer
    imports it.
    """
    if torch.cuda.is_available():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores torch's, NumPy's and Python's global generators on the way out."""
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def process_kept() -> Iterator[None]:
    """Restores generators, environment variables, torch's threads, default dtype and CPU affinity on the way out."""
    environment = dict(os.environ)
    set_threads, threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with random_state_kept():
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            if affinity is not None and os.sched_getaffinity(0) != affinity:
                os.sched_setaffinity(0, affinity)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


def default_process_group() -> torch.distributed.ProcessGroup | None:
    """The default process group, None where there is none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.group.WORLD
    return None


@contextmanager
def process_group_kept(own: torch.distributed.ProcessGroup | None) -> Iterator[None]:
    """Keeps the default process group from being destroyed inside the block, unless it is the engine's ``own``.

    An own one must go: the threads of a group that nobody destroys are still running when the interpreter is torn down.
    """
    default = default_process_group()
    if default is None or default is own:
        yield
        return
    destroy = torch.distributed.destroy_process_group

    def destroy_others(group: torch.distributed.ProcessGroup | None = None) -> None:
        if group is not None and group is not default:
            destroy(group)

    torch.distributed.destroy_process_group = destroy_others
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy
