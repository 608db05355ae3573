"""Settings as they are read: a file, overrides, the objective's preset, and what cannot be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from megatron_apo.config import KlConfig, ParallelConfig
from megatron_apo.config_checks import (
    check_purpose,
)
from megatron_apo.config_loading import dump_config, load_config
from megatron_apo.objective.presets import PRESETS


def write(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  steps: 7\n  seed: 3\noptimizer:\n  learning_rate: 1e-4\nmodel:\n")
    config = load_config(path, ["--run.steps=9", "rewards.format=1", "--data.instruction=Answer: a number"])
    assert (config.run.steps, config.run.seed) == (9, 3)
    assert config.optimizer.learning_rate == 1e-4  # "1e-4" is text to plain YAML 1.1
    assert config.rewards.format == 1.0 and isinstance(config.rewards.format, float)
    assert config.data.instruction == "Answer: a number"
    assert config.parallel == ParallelConfig()
    assert load_config(None, ["--run.directory=12"]).run.directory == "12"
    assert load_config(None, ["--run.directory='a b'"]).run.directory == "a b"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("runs/a #1", "runs/a #1"),  # no comment: another directory than runs/a
        ("2026", "2026"),
        ("a: [b", "a: [b"),
        ("'quoted #1'", "quoted #1"),
        ('"a": b', '"a": b'),
        ("'a' b", "'a' b"),
        ("~", "~"),
        ("", ""),
    ],
)
def test_text_on_the_command_line_is_taken_as_it_stands(given: str, read: str) -> None:
    assert load_config(None, [f"--data.instruction={given}"]).data.instruction == read


@pytest.mark.parametrize(
    ("yaml", "override", "read"),
    [
        ("train: rows.jsonl", None, ("rows.jsonl",)),
        ("train: [a.jsonl, 'b #1.parquet']", None, ("a.jsonl", "b #1.parquet")),
        ("train:\n    - a.jsonl", None, ("a.jsonl",)),
        ("train: []", None, ()),
        ("train: ''", None, ()),
        ("train: a.jsonl", "[b.jsonl, c.jsonl]", ("b.jsonl", "c.jsonl")),
        ("train: [a.jsonl, b.jsonl]", "rows of 2026 #1.jsonl", ("rows of 2026 #1.jsonl",)),
        ("train: a.jsonl", "2026", ("2026",)),
        ("train: a.jsonl", "'[b].jsonl'", ("[b].jsonl",)),
        ("train: a.jsonl", "", ()),
    ],
)
def test_one_file_or_a_list(yaml: str, override: str | None, read: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [] if override is None else [f"--data.train={override}"]
    config = load_config(write(tmp_path, f"data:\n  {yaml}\n"), overrides)
    assert config.data.train == read
    again = load_config(write(tmp_path, dump_config(config)))
    assert again == config


def test_weights_go_with_files(tmp_path: Path) -> None:
    files = "--data.train=[a.jsonl, b.jsonl]"
    config = load_config(None, [files, "--data.weights=[3, 0.5]"])
    assert config.data.weights == (3.0, 0.5) and all(isinstance(weight, float) for weight in config.data.weights)
    assert "train: rows.jsonl" in dump_config(load_config(None, ["--data.train=rows.jsonl"]))
    for weights, message in (
        ("[1]", r"must have one weight for each of the 2 file\(s\) of data.train"),
        ("[1, 0]", "must each lie between 0.001 and 100"),
        ("[1, .inf]", "must each lie between 0.001 and 100"),
        ("[1, many]", "must be a number"),
        ("3", "must be a list of numbers"),
    ):
        with pytest.raises(ValueError, match=rf"data\.weights=.*{message}"):
            load_config(None, [files, f"--data.weights={weights}"])
    with pytest.raises(ValueError, match=r"data\.train=5: must be text"):
        load_config(None, ["--data.train=[5]"])
    with pytest.raises(ValueError, match=r"data\.train=\{.*: must be text or a list of texts, this is a section"):
        load_config(write(tmp_path, "data:\n  train: {a: 3}\n"))


def test_an_override_of_a_nested_section() -> None:
    config = load_config(None, ["--objective.stcr.base=1.01", "--objective.stcr.only_negative=true"])
    assert config.objective.stcr.base == 1.01 and config.objective.stcr.only_negative is True
    assert load_config(None, ["--run.directory="] + ["--run.directory=a=b"]).run.directory == "a=b"


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_loads_and_reads_back_equal(name: str, tmp_path: Path) -> None:
    overrides = [f"--objective.name={name}", "--optimizer.learning_rate=3e-7", "--data.instruction='1e-4: \"x\" # é'"]
    config = load_config(None, overrides)
    assert config.objective.name == name
    path = write(tmp_path, dump_config(config))
    assert load_config(path, []) == config


def test_explicit_keys_override_the_preset(tmp_path: Path) -> None:
    preset = load_config(None, ["--objective.name=apo"])
    assert preset.objective.stcr.enabled and preset.objective.dads.enabled
    path = write(tmp_path, "objective:\n  name: apo\n  kl:\n    coefficient: 0.02\n")
    config = load_config(path, [])
    assert config.objective.kl.coefficient == 0.02  # named
    assert config.objective.dads.enabled and config.objective.kl.estimator == "k3"  # the preset's
    grpo = load_config(None, ["--objective.name=grpo"])
    assert not grpo.objective.stcr.enabled and not grpo.objective.dads.enabled
    # an empty section is no section
    assert load_config(write(tmp_path, "objective:\n  name: apo\n  stcr:\n"), []).objective == preset.objective
    assert load_config(write(tmp_path, "objective:\n"), []).objective == preset.objective


@pytest.mark.parametrize("name", list(PRESETS))
def test_another_objective_for_a_written_out_file(name: str, tmp_path: Path) -> None:
    """Every value of the old preset is in the file, and none of them may stay under the new name."""
    for own in ("apo", "grpo", "dr_grpo"):
        path = write(tmp_path, dump_config(load_config(None, [f"--objective.name={own}", "--run.steps=400"])))
        config = load_config(path, [f"--objective.name={name}"])
        assert config.objective == load_config(None, [f"--objective.name={name}", "--run.steps=400"]).objective
        assert config.run.steps == 400


def test_another_objective_keeps_what_the_file_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, dump_config(load_config(None, ["--objective.stcr.base=1.02", "--objective.clip_high=0.3"])))
    grpo = load_config(path, ["--objective.name=grpo"]).objective
    assert (grpo.stcr.enabled, grpo.dads.enabled, grpo.kl.coefficient, grpo.reduction) == (
        False,
        False,
        0.04,
        "sequence_mean",
    )
    assert (grpo.stcr.base, grpo.clip_high, grpo.advantage.epsilon) == (1.02, 0.3, 1e-4)
    dads = load_config(path, ["--objective.name=apo_dads_only"]).objective
    assert (dads.stcr.enabled, dads.dads.enabled, dads.stcr.base) == (False, True, 1.02)
    # an option is kept though it says what the old preset said; the file's own name changes nothing
    words = ["--objective.name=grpo", "--objective.kl.coefficient=0.001", "--objective.stcr.enabled=true"]
    kept = load_config(path, words).objective
    assert (kept.kl.coefficient, kept.stcr.enabled) == (0.001, True)
    assert load_config(path, ["--objective.name=apo"]) == load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  stps: 3\n", "run.stps: unknown setting; did you mean run.steps?"),
        ("rnu:\n  steps: 3\n", "rnu: unknown setting; did you mean run?"),
        ("run: 3\n", "run=3: must be a section"),
        ("run:\n  directory: 12\n", "run.directory=12: must be text (str), this is a whole number; put it in quotes"),
        ("- run\n", "holds a list"),
        ("run: [\n", "is not valid YAML"),
        ("run:\n  steps: 1\n  steps: 2\n", "steps: written twice (line 3)"),
        ("objective:\n  name: apoo\n", "did you mean apo?"),
    ],
)
def test_a_bad_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load_config(write(tmp_path, text), [])
    assert message in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml", [])


def test_another_schedule_of_the_kl_takes_the_place_of_the_presets(tmp_path: Path) -> None:
    """What the preset says of its own schedule makes room; what is asked for is kept, and read back equal."""
    bounds = {"schedule": "grpo_d", "minimum": 0.0005, "maximum": 0.002, "exploration_share": 0.3}
    config = load_config(write(tmp_path, yaml.safe_dump({"objective": {"name": "apo", "kl": bounds}})))
    assert config.objective.kl == KlConfig(**bounds)
    assert load_config(write(tmp_path, dump_config(config))) == config
    flat = load_config(None, ["--objective.name=grpo_d", "--objective.kl.schedule=constant"]).objective.kl
    assert flat == KlConfig()
    words = ["--objective.name=grpo_d", "--objective.kl.schedule=constant", "--objective.kl.coefficient=0.04"]
    assert load_config(None, words).objective == dataclasses.replace(
        load_config(None, ["--objective.name=grpo"]).objective, name="grpo_d"
    )


def test_rewards_of_the_users_are_weights_by_function(tmp_path: Path) -> None:
    path = write(tmp_path, "rewards:\n  accuracy: 0\n  format: 0\n  user:\n    a.py:f: 1\n    b.c:g: -0.5\n")
    config = load_config(path)
    assert config.rewards.user == {"a.py:f": 1.0, "b.c:g": -0.5}
    assert all(isinstance(weight, float) for weight in config.rewards.user.values())
    check_purpose(config, supervised=False)  # they are paid, so there is something to learn from
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert load_config(path, ["--rewards.user={d.py:h: 2}"]).rewards.user == {"d.py:h": 2.0}
    for text, message in (
        ("{a.py:f: much}", "must be a number"),
        ("[a.py:f]", "must be a mapping"),
        ("{f: .inf}", "finite"),
    ):
        with pytest.raises(ValueError, match=rf"^rewards\.user.*{message}"):
            load_config(None, [f"--rewards.user={text}"])


def test_what_sequences_and_microbatches_are_a_multiple_of() -> None:
    layout = ParallelConfig(tensor=2, context=2)
    assert (layout.sequence_multiple, layout.microbatch_multiple) == (4, 1)
    assert ParallelConfig(pipeline=2, virtual_pipeline=2).microbatch_multiple == 2
    assert ParallelConfig(pipeline=2).sequence_multiple == ParallelConfig(pipeline=2).microbatch_multiple == 1
