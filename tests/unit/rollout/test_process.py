"""The engine process without an engine: what it inherits, and how it fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from megatron_apo.rollout.engine import EngineSettings
from megatron_apo.rollout.process import EngineProcess, EngineProcessError, child_environment

SETTINGS = EngineSettings(model="/nowhere", dtype="float32", forbidden_token_ids=(3,), max_model_len=10)


def test_a_launchers_variables_do_not_reach_the_child() -> None:
    environment = {"RANK": "1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "HOME": "/h"}
    kept = child_environment(environment)
    root = str(Path(__file__).resolve().parents[3])
    assert kept == {"HOME": "/h", "PYTHONPATH": root}
    assert child_environment({"PYTHONPATH": "/mine"})["PYTHONPATH"] == f"{root}{os.pathsep}/mine"


def test_secrets_do_not_reach_the_child() -> None:
    secrets = ["WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_API_KEY", "CI_JOB_TOKEN", "github_token"]
    secrets += ["AWS_SECRET_ACCESS_KEY", "CLIENT_SECRET", "SECRET_KEY_BASE", "DB_PASSWORD", "TOKEN"]
    plain = {
        name: "kept" for name in ("TOKENIZERS_PARALLELISM", "HF_HOME", "OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE")
    }
    kept = child_environment({name: "hidden" for name in secrets} | plain)
    assert kept.keys() == plain.keys() | {"PYTHONPATH"}


def test_an_unknown_kind_starts_nothing() -> None:
    with pytest.raises(ValueError, match="rollout.engine=sglang: must be one of vllm, transformers"):
        EngineProcess("sglang", SETTINGS)


def test_what_a_user_caused_comes_back_as_a_value_error() -> None:
    engine = EngineProcess("transformers", SETTINGS, start_timeout_seconds=120)
    try:
        with pytest.raises(ValueError, match="model.path=/nowhere"):
            engine.wait_until_ready()
        with pytest.raises(EngineProcessError, match="model.path=/nowhere"):
            engine.wait_until_ready()  # at once, not after another wait
    finally:
        engine.close()


def test_a_start_that_takes_too_long_ends_the_child(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    engine = EngineProcess("transformers", SETTINGS, start_timeout_seconds=0.05, log_file=log)
    started = time.monotonic()
    with pytest.raises(EngineProcessError, match=r"did not answer start within 0.05 s.*engine\.log") as caught:
        engine.wait_until_ready()
    assert time.monotonic() - started < 10
    assert "is still running and is now ended" in str(caught.value)
    assert not Path(f"/proc/{engine._child.pid}").exists() or engine._child.poll() is not None
    engine.close()
    engine.close()
    assert log.exists()


def test_closing_ends_the_child() -> None:
    engine = EngineProcess("transformers", SETTINGS)
    engine.close()
    assert engine._child.poll() is not None
    with pytest.raises(EngineProcessError, match="this engine is closed"):
        engine.wait_until_ready()
