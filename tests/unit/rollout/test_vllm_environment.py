"""What an engine in this process may end of the process's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from megatron_apo.rollout.engine import EngineSettings
from megatron_apo.rollout.vllm import engine
from megatron_apo.rollout.vllm.environment import default_process_group, process_group_kept


@pytest.fixture
def default(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    if dist.is_initialized():
        pytest.skip("this process has a default group already")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    group = default_process_group()
    assert group is not None
    yield group
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_trainers_group_is_kept(default: dist.ProcessGroup) -> None:
    other = dist.new_group([0])
    for own in (None, other):
        with process_group_kept(own):
            dist.destroy_process_group()
            dist.destroy_process_group(default)
        assert default_process_group() is default


def test_the_engines_own_group_is_ended(default: dist.ProcessGroup) -> None:
    with process_group_kept(default):
        dist.destroy_process_group()
    assert default_process_group() is None
    with process_group_kept(None):  # nothing to keep
        assert default_process_group() is None


@pytest.fixture
def vllm_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In vLLM's place what it does to the default group: makes one where there is none, and ends it in any case."""

    def start(**arguments: Any) -> SimpleNamespace:
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{tmp_path}/engine", rank=0, world_size=1)
        core = SimpleNamespace(shutdown=lambda: dist.is_initialized() and dist.destroy_process_group())
        return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))

    module: Any = ModuleType("vllm")
    module.LLM = start
    module.ModelRegistry = SimpleNamespace(
        models={"Known": SimpleNamespace(load_model_cls=lambda: None)}, register_model=lambda *given: None
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(engine, "prepare_environment", lambda: None)  # other tests' environment stays


def engine_in(directory: Path) -> engine.VllmEngine:
    (directory / "config.json").write_text('{"architectures": ["Known"]}')
    settings = EngineSettings(model=str(directory), dtype="float32", forbidden_token_ids=(), max_model_len=8)
    return engine.VllmEngine(settings, lambda image: pytest.fail("no picture is asked for"))


def test_an_engine_alone_leaves_no_group_behind(tmp_path: Path, vllm_elsewhere: None) -> None:
    if dist.is_initialized():
        pytest.skip("this process has a default group already")
    started = engine_in(tmp_path)
    assert dist.is_initialized()
    started.close()
    assert not dist.is_initialized()


def test_an_engine_beside_a_trainer_leaves_its_group(
    tmp_path: Path, default: dist.ProcessGroup, vllm_elsewhere: None
) -> None:
    engine_in(tmp_path).close()
    assert default_process_group() is default


def test_a_trainer_that_comes_after_the_engine_keeps_its_group(tmp_path: Path, vllm_elsewhere: None) -> None:
    if dist.is_initialized():
        pytest.skip("this process has a default group already")
    started = engine_in(tmp_path)
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/trainer", rank=0, world_size=1)
    try:
        trainers = default_process_group()
        started.close()
        assert default_process_group() is trainers is not None
    finally:
        dist.destroy_process_group()
