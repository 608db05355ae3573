"""Without a GPU the check says so, checks what it can, and does not end well."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from tools import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_not_called_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not measured") for line in lines)
    assert any("versions" in line and "transformer-engine is missing (asked for: ==2.11.0)" in line for line in lines)
    assert any(line.startswith("not measured") and "vLLM generates" in line for line in lines)
    assert any("torch" in line and "versions" in line for line in lines)


def test_the_versions_asked_for_are_those_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not there, one that is newer than asked for, and those that are right."""
    listed = tmp_path / "gpu_host.txt"
    listed.write_text("# packages\npsutil>=1\nno_such.Package==1.5  # nowhere\nnumpy>=1,<1.1\n")
    monkeypatch.setattr(gpu_check, "REQUIREMENTS", listed)
    status, found = gpu_check.versions()
    assert status == "failed"
    wrong = [part for part in found.split("; ") if "asked for" in part]
    assert wrong[0] == "no-such-package is missing (asked for: ==1.5)"
    assert wrong[1:] == [f"numpy is {metadata.version('numpy')}, asked for is <1.1,>=1"]
    assert f"psutil {metadata.version('psutil')}" in found and f"torch {metadata.version('torch')}" in found


def test_a_local_build_of_the_version_asked_for_is_that_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA builds are called: 2.11.0+cu130."""
    listed = tmp_path / "gpu_host.txt"
    listed.write_text("psutil==1.0\n")
    monkeypatch.setattr(gpu_check, "REQUIREMENTS", listed)
    monkeypatch.setattr(gpu_check.metadata, "version", lambda name: "1.0+cu130")
    assert gpu_check.versions()[0] == "ok"


def test_the_shipped_list_is_what_is_asked_for() -> None:
    asked = {package.name: str(package.specifier) for package in gpu_check.packages()}
    assert asked["transformer_engine_torch"] == asked["transformer_engine"] == "==2.11.0"
    assert asked["megatron-core"] == "==0.16.1" and asked["einops"] == "" and asked["torch"] == ""


def test_the_tiny_model_gives_every_tensor_a_gradient(one_process: object) -> None:
    found = gpu_check._run_tiny("local", one_process)
    assert found["logits"].shape[-1] == 304
    assert len(found) > 40
    assert all(bool(value.isfinite().all()) and float(value.norm()) > 0 for value in found.values())
