"""A conversion that is killed, told to end, or finds no room at any moment: nothing looks whole, and a rerun succeeds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_apo.conversion import new_directory, raw_files, safetensors_writer, to_megatron
from megatron_apo.conversion.command import main
from model_providers.qwen_vl.weight_map import published_name
from tests.unit.conversion.random_checkpoint import random_checkpoint

WAYS = ("hf-to-megatron", "megatron-to-hf")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("interrupted")
    source = random_checkpoint(root / "source")
    assert main(["hf-to-megatron", str(source), str(root / "megatron")]) == 0
    return {"hf-to-megatron": source, "megatron-to-hf": root / "megatron"}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def in_a_child(arguments: list[str], prepare: Callable[[], None]) -> int:
    """The wait status of a process that calls ``prepare`` and runs the tool."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            prepare()
            status = main(arguments)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def at_call(number: int, owner: object, name: str, what: Callable[[], object]) -> Callable[[], None]:
    """``what`` happens when ``owner.name`` is called for the ``number``-th time in the child."""

    def prepare() -> None:
        real, calls = getattr(owner, name), [0]

        def counted(*arguments: object) -> object:
            calls[0] += 1
            if calls[0] == number:
                what()
            return real(*arguments)

        setattr(owner, name, counted)

    return prepare


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def writes(way: str) -> object:
    """The module in which ``way`` looks up ``write_tensor``."""
    return to_megatron if way == "hf-to-megatron" else safetensors_writer


def moments(way: str) -> dict[str, tuple[int, object, str]]:
    return {
        "first tensor": (1, writes(way), "write_tensor"),
        "many tensors": (40, writes(way), "write_tensor"),
        "before the sync": (1, new_directory, "_sync"),
        "before the old one moves": (1, os, "replace"),
        "before the new one moves": (2, os, "replace"),
    }


def equal(way: str, sources: dict[str, Path], target: Path, root: Path) -> bool:
    """Whether ``target`` holds the weights of the source, every bit."""
    if way == "hf-to-megatron":
        assert main(["megatron-to-hf", str(target), str(root / "back")]) == 0
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
    number, owner, name = moments(way)[moment]
    arguments = [way, str(source), str(target), "--force"]
    assert os.WTERMSIG(in_a_child(arguments, at_call(number, owner, name, kill))) == signal.SIGKILL
    assert contents(source) == before
    assert all(path.name.startswith(".") or contents(path) == {"precious": b"x"} for path in tmp_path.iterdir())
    assert main([way, str(source), str(target)]) == 2, "what was there before is not replaced without --force"
    assert contents(target) == {"precious": b"x"}
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert equal(way, sources, target, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("way", WAYS)
def test_told_to_end(
    sources: dict[str, Path], tmp_path: Path, way: str, number: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare = at_call(20, writes(way), "write_tensor", lambda: os.kill(os.getpid(), number))
    assert os.WEXITSTATUS(in_a_child([way, str(sources[way]), str(tmp_path / "target")], prepare)) == status
    assert "interrupted" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [1, 30])
@pytest.mark.parametrize("way", WAYS)
def test_no_room_half_way(
    sources: dict[str, Path], tmp_path: Path, way: str, call: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    arguments = [way, str(sources[way]), str(target), "--force"]
    assert os.WEXITSTATUS(in_a_child(arguments, at_call(call, raw_files, "_send", full))) == 2
    text = capfd.readouterr().err
    assert "No space left on device" in text and text.count("\n") == 1, text
    assert contents(tmp_path) == {"target/precious": b"x"}
