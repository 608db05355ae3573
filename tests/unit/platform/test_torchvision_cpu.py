"""torchvision and torchaudio beside this torch, each time in a process that has imported neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_apo.platform import torchvision_cpu

ROOT = Path(__file__).resolve().parents[3]
BEGINNING = "from megatron_apo.platform.torchvision_cpu import register_missing_operators as register\n"


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", BEGINNING + code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_processors_import_after_it_however_often_it_is_called() -> None:
    code = """
register(); register()
import torch, torchvision
from torchvision.transforms.v2 import functional
register()
from transformers import AutoProcessor, Qwen2VLImageProcessor
register()
picture = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
print(functional.resize(picture, [2, 2], antialias=False).flatten().tolist())
"""
    # bilinear, halved: the mean of each 2 x 2 block, (0 + 1 + 4 + 5) / 4 = 2.5 and so on
    assert run(code) in ("[2, 4, 10, 12]", "[3, 5, 11, 13]")


def test_a_library_that_does_not_load_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loads is left alone, one that does not is reported as such, none at all as no outcome."""
    assert torchvision_cpu._load(tmp_path, "_C") == []
    (tmp_path / "_C.so").write_bytes(b"not a library")
    (tmp_path / "_C.py").write_text("")
    assert torchvision_cpu._load(tmp_path, "_C") == [False]
    loaded: list[str] = []
    monkeypatch.setattr("torch.ops.load_library", loaded.append)
    assert torchvision_cpu._load(tmp_path, "_C") == [True]
    assert loaded == [str(tmp_path / "_C.so")]
