"""A run's directory: claimed once, resumed only with the settings it began with, which are named where they differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.run_directory import check_claim, claim


def config_in(directory: Path, *overrides: str) -> Config:
    return load_config(None, [f"--run.directory={directory}", "--model.path=m", "--data.train=d.jsonl", *overrides])


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_claim_makes_the_directory_and_writes_the_settings(tmp_path: Path) -> None:
    config = config_in(tmp_path / "runs" / "a")
    directory = claim(config, resume=False)
    assert load_config(directory.config) == config
    assert directory.rollouts.is_dir() and directory.checkpoints.is_dir()


def test_an_empty_directory_may_be_claimed(tmp_path: Path) -> None:
    assert claim(config_in(tmp_path), resume=False).root == tmp_path


def test_another_runs_directory_is_refused_and_untouched(tmp_path: Path) -> None:
    claim(config_in(tmp_path / "a"), resume=False)
    with pytest.raises(ValueError, match="holds a run without a checkpoint.*remove the directory.*or give another"):
        claim(config_in(tmp_path / "a"), resume=False)
    (tmp_path / "a" / "checkpoints" / "step_000002").mkdir()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"run\.directory=.*a: holds another run; continue it with --resume"):
        claim(config_in(tmp_path / "a", "--run.seed=5"), resume=False)
    assert contents(tmp_path) == before


def test_somebody_elses_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        claim(config_in(tmp_path), resume=False)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        claim(config_in(tmp_path / "a"), resume=False)


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    check_claim(config_in(tmp_path / "a"), resume=False)
    assert not (tmp_path / "a").exists()


def test_a_resumed_run_reads_its_data_as_before(tmp_path: Path) -> None:
    claim(config_in(tmp_path / "a", "--data.format=r1v_counting"), resume=False)
    with pytest.raises(ValueError, match="data.format: 'r1v_counting' -> ''; put"):
        claim(config_in(tmp_path / "a"), resume=True)


def test_a_setting_that_is_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    saved = claim(config_in(tmp_path / "a"), resume=False).config
    saved.write_text("".join(line for line in saved.read_text().splitlines(True) if "  format: ''" not in line))
    assert "format:" not in saved.read_text().partition("rewards:")[0]
    check_claim(config_in(tmp_path / "a"), resume=True)
    with pytest.raises(ValueError, match="these differ: data.format: '' -> 'mmk12'; put"):
        check_claim(config_in(tmp_path / "a", "--data.format=mmk12"), resume=True)
    with pytest.raises(ValueError, match=r"these differ: data.formats.d.jsonl: None -> 'mmk12'; put"):
        check_claim(config_in(tmp_path / "a", "--data.formats={d.jsonl: mmk12}"), resume=True)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run there to resume; leave --resume out"):
        claim(config_in(tmp_path / "a"), resume=True)
    assert not (tmp_path / "a").exists()


def test_a_resumed_run_may_be_longer_and_log_differently(tmp_path: Path) -> None:
    claim(config_in(tmp_path / "a"), resume=False)
    longer = config_in(tmp_path / "a", "--run.steps=500", "--run.save_every=7", "--logging.progress=false")
    assert load_config(claim(longer, resume=True).config) == longer


def test_a_resumed_run_may_have_another_layout(tmp_path: Path) -> None:
    claim(config_in(tmp_path / "a"), resume=False)
    words = ["--parallel.tensor=2", "--rewards.workers=3", "--rollout.kv_cache_gib=2"]
    claim(config_in(tmp_path / "a", *words), resume=True)
    with pytest.raises(ValueError, match="parallel.distributed_optimizer: False -> True; put"):
        claim(config_in(tmp_path / "a", "--parallel.distributed_optimizer=true"), resume=True)


def test_settings_that_changed_are_named(tmp_path: Path) -> None:
    claim(config_in(tmp_path / "a"), resume=False)
    before = contents(tmp_path)
    changed = config_in(tmp_path / "a", "--sampling.group_size=4", "--optimizer.learning_rate=0.5")
    with pytest.raises(ValueError) as caught:
        claim(changed, resume=True)
    message = str(caught.value)
    assert "sampling.group_size: 8 -> 4" in message
    assert "optimizer.learning_rate: 1e-06 -> 0.5" in message
    assert "run.seed" not in message
    assert contents(tmp_path) == before


def test_nested_settings_are_compared_too(tmp_path: Path) -> None:
    config = config_in(tmp_path / "a")
    claim(config, resume=False)
    stcr = dataclasses.replace(config.objective.stcr, base=1.5)
    changed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, stcr=stcr))
    with pytest.raises(ValueError, match=r"objective\.stcr\.base: 1\.00001 -> 1\.5"):
        claim(changed, resume=True)
