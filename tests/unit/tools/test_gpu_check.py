"""Without a GPU the check says so, checks what it can, and does not end well."""

from __future__ import annotations

import pytest
import torch

from tools import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_not_called_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not measured") for line in lines)
    assert any("versions" in line and "transformer-engine is missing (pinned: 2.11.0)" in line for line in lines)
    assert any(line.startswith("not measured") and "vLLM generates" in line for line in lines)
    assert any("torch" in line and "versions" in line for line in lines)


def test_the_tiny_model_gives_every_tensor_a_gradient(one_process: object) -> None:
    found = gpu_check._run_tiny("local", one_process)
    assert found["logits"].shape[-1] == 304
    assert len(found) > 40
    assert all(bool(value.isfinite().all()) and float(value.norm()) > 0 for value in found.values())
