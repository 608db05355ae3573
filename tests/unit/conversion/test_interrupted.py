"""A conversion that is killed, told to end or finds no room: nothing looks whole, and a rerun succeeds."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import resource
import signal
import tempfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_apo.platform.host import prepare

prepare()  # the processes are forked from one that has imported no more than this file

from transformers import Qwen2_5_VLConfig  # noqa: E402, F401 - imported once, inherited by every process

from megatron_apo.conversion import convert  # noqa: E402, F401 - likewise
from megatron_apo.conversion.command import main  # noqa: E402
from model_providers.qwen_vl.weight_map import published_name  # noqa: E402
from tests.unit.conversion.random_checkpoint import random_checkpoint  # noqa: E402

pytestmark = pytest.mark.slow
WAYS = ("hf-to-megatron", "megatron-to-hf")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("interrupted")
    source = random_checkpoint(root / "source")
    assert run(["hf-to-megatron", str(source), str(root / "megatron")])[0] == 0
    return {"hf-to-megatron": source, "megatron-to-hf": root / "megatron"}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def act(action: str) -> None:
    if action == "full":
        raise OSError(28, "No space left on device")
    if action == "small files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        return
    os.kill(os.getpid(), int(action))


def child(arguments: list[str], log: str, owner: str, name: str, number: int, action: str) -> None:
    """The tool's command line; at the ``number``-th call of ``owner.name`` comes what ``action`` says."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, the tests' too, ignore it
    module = importlib.import_module(owner)
    real, calls = getattr(module, name), itertools.count(1)

    def counted(*given: object) -> object:
        if next(calls) == number:
            act(action)
        return real(*given)

    setattr(module, name, counted)
    os._exit(main(arguments))


def run(arguments: list[str], moment: tuple[str, str, int] = ("os", "replace", 0), action: str = "") -> tuple[int, str]:
    """(exit status, or the signal negated; standard error) of the tool in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.conversion.test_interrupted"])
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=child, args=(arguments, log.name, *moment, action))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        assert process.exitcode is not None
        lines = Path(log.name).read_text().splitlines()
    return process.exitcode, "\n".join(line for line in lines if line.startswith(("error", "interrupted")))


def writes(way: str) -> str:
    """The module in which ``way`` looks up ``write_tensor``."""
    return f"megatron_apo.conversion.{'to_megatron' if way == 'hf-to-megatron' else 'safetensors_writer'}"


def moments(way: str) -> dict[str, tuple[str, str, int]]:
    return {
        "first tensor": (writes(way), "write_tensor", 1),
        "many tensors": (writes(way), "write_tensor", 40),
        "before the sync": ("megatron_apo.conversion.new_directory", "_sync", 1),
        "before the old one moves": ("os", "replace", 1),
        "before the new one moves": ("os", "replace", 2),
    }


def equal(way: str, sources: dict[str, Path], target: Path, root: Path) -> bool:
    """Whether ``target`` holds the weights of the source, every bit."""
    if way == "hf-to-megatron":
        assert run(["megatron-to-hf", str(target), str(root / "back")])[0] == 0
        target = root / "back"
    found = load_file(target / "model.safetensors")
    wanted = load_file(sources["hf-to-megatron"] / "model.safetensors")
    return {name: value.numpy().tobytes() for name, value in found.items()} == {
        published_name(name): value.numpy().tobytes() for name, value in wanted.items()
    }


@pytest.mark.parametrize("moment", list(moments(WAYS[0])))
@pytest.mark.parametrize("way", WAYS)
def test_killed(sources: dict[str, Path], tmp_path: Path, way: str, moment: str) -> None:
    source, target = sources[way], tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    before = contents(source)
    arguments = [way, str(source), str(target), "--force"]
    assert run(arguments, moments(way)[moment], str(int(signal.SIGKILL)))[0] == -signal.SIGKILL
    assert contents(source) == before
    assert all(path.name.startswith(".") or contents(path) == {"precious": b"x"} for path in tmp_path.iterdir())
    assert run([way, str(source), str(target)])[0] == 2, "what was there before is not replaced without --force"
    assert contents(target) == {"precious": b"x"}
    assert run(arguments)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert equal(way, sources, target, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("way", WAYS)
def test_told_to_end(sources: dict[str, Path], tmp_path: Path, way: str, number: int, status: int) -> None:
    arguments = [way, str(sources[way]), str(tmp_path / "target")]
    found, text = run(arguments, (writes(way), "write_tensor", 20), str(int(number)))
    assert (found, text.count("interrupted")) == (status, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [1, 30])
@pytest.mark.parametrize("way", WAYS)
def test_no_room_half_way(sources: dict[str, Path], tmp_path: Path, way: str, call: int) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    arguments = [way, str(sources[way]), str(target), "--force"]
    found, text = run(arguments, ("megatron_apo.conversion.raw_files", "_send", call), "full")
    assert found == 2 and "No space left on device" in text and "\n" not in text
    assert contents(tmp_path) == {"target/precious": b"x"}


@pytest.mark.parametrize("way", WAYS)
def test_files_may_not_grow(sources: dict[str, Path], tmp_path: Path, way: str) -> None:
    """Beyond 64 KiB: the system itself refuses to write, whichever call it is."""
    found, text = run([way, str(sources[way]), str(tmp_path / "t")], (writes(way), "write_tensor", 1), "small files")
    assert found == 2 and "File too large" in text and "\n" not in text
    assert not list(tmp_path.iterdir())
