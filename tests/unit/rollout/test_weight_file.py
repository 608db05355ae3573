"""Where a weight update lies, and that it is private, whole and gone afterwards."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from megatron_apo.rollout import weight_file as module
from megatron_apo.rollout.weight_file import weight_file

NEEDED = 4 * 6 + 2 * 5 + 2 * 1024  # bytes: six float32, five bfloat16, and the room for two headers
SPARE = 16 << 20


@pytest.mark.parametrize(("free", "shared"), [(NEEDED + SPARE + 1, True), (NEEDED + SPARE, False), (0, False)])
def test_shared_memory_is_used_where_it_has_room(
    free: int, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, temporary = tmp_path / "shm", tmp_path / "tmp"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(module, "_SHARED_MEMORY", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(free=free if folder == memory else 1 << 40)
    )
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    with weight_file(iter(weights.items())) as path:
        assert path.parent.parent == (memory if shared else temporary)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        found = load_file(path)
        assert found.keys() == weights.keys()
        assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in weights.items())
    assert not list(memory.iterdir()) and not list(temporary.iterdir())


def test_a_machine_without_shared_memory_uses_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHARED_MEMORY", tmp_path / "absent")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with weight_file([("a", torch.zeros(1))]) as path:
        assert path.parent.parent == tmp_path


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="weight 'a' is sent twice"), weight_file([("a", torch.zeros(1))] * 2):
        raise AssertionError("not reached")


def test_a_file_left_by_a_killed_writer_is_removed_and_one_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHARED_MEMORY", tmp_path)
    script = (
        "import sys, time, torch; from pathlib import Path; from megatron_apo.rollout import weight_file as m\n"
        "m._SHARED_MEMORY = Path(sys.argv[1])\n"
        "with m.weight_file([('a', torch.zeros(1))]) as path: print(path, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        left = Path(writer.stdout.readline().strip())
        with weight_file([("a", torch.zeros(1))]) as path:
            assert left.exists() and path != left
        writer.kill()
    assert left.exists()
    with weight_file([("a", torch.zeros(1))]) as path:
        assert list(tmp_path.iterdir()) == [path.parent]
    assert not list(tmp_path.iterdir())
