"""Megatron-Core runs without a GPU, and nobody else notices."""

from __future__ import annotations

import subprocess
import sys
from types import FunctionType

import pytest
import torch

from megatron_apo.platform.megatron_on_cpu import install

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is installed where a GPU is present")


def in_fresh_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_torch_itself_is_untouched() -> None:
    import megatron.core.tensor_parallel  # noqa: F401

    assert not torch.cuda.is_available()
    assert torch.cuda.current_device.__module__ == "torch.cuda"
    assert torch.cuda.synchronize.__module__ == "torch.cuda"
    assert torch.empty is torch._C._VariableFunctions.empty
    with pytest.raises((AssertionError, RuntimeError)):
        torch.empty(1, device="cuda")


def test_tensor_methods_answer_user_code_as_before() -> None:
    tensor = torch.zeros(2)
    assert tensor.type() == "torch.FloatTensor"
    assert tensor.bfloat16().type() == "torch.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    with pytest.raises((AssertionError, RuntimeError)):
        tensor.cuda()


def test_megatrons_modules_get_answers_for_the_cpu() -> None:
    from megatron.core.optimizer import clip_grads

    asked = clip_grads.torch
    assert asked is not torch
    assert asked.cuda.current_device() == torch.device("cpu")
    assert asked.cuda.device_count() == 1
    assert asked.zeros(2, device="cuda").device.type == "cpu"
    assert asked.tensor([1.0], device="cuda:0", pin_memory=True).device.type == "cpu"
    assert asked.Tensor is torch.Tensor and asked.nn is torch.nn
    # Called with Megatron's own globals, a tensor's type is spelled as its optimizers compare it.
    of_megatron = FunctionType(type_and_cuda.__code__, vars(clip_grads))
    assert of_megatron(torch.zeros(1)) == ("torch.cuda.FloatTensor", True)


def type_and_cuda(tensor: torch.Tensor) -> tuple[str, bool]:
    return tensor.type(), tensor.cuda() is tensor


def test_random_state_goes_to_the_cpu_generator() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    saved = torch.get_rng_state()
    state = megatron_random._get_cuda_rng_state()
    first = torch.rand(3)
    megatron_random._set_cuda_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    torch.set_rng_state(saved)


def test_installing_twice_changes_nothing() -> None:
    finders, kind = list(sys.meta_path), torch.Tensor.type
    install()
    assert sys.meta_path == finders and torch.Tensor.type is kind


def test_too_late_is_an_error() -> None:
    done = in_fresh_process(
        "import sys, types, torch\n"
        "sys.modules['megatron.core'] = types.ModuleType('megatron.core')\n"
        "from megatron_apo.platform.megatron_on_cpu import install\n"
        "try:\n    install()\nexcept RuntimeError as error:\n    print(error)\n"
        "print(torch.Tensor.type.__name__)\n"
    )
    assert "megatron.core was imported before" in done.stdout, done.stderr
    assert "call install() first" in done.stdout
    assert done.stdout.split()[-1] == "type"  # nothing was changed on the way
