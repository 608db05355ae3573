"""Settings: the file, the overrides, the presets beneath them, and what is refused in which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_apo.config import Config, KlConfig, ParallelConfig
from megatron_apo.config_checks import (
    check_evaluation,
    check_files,
    check_length,
    check_purpose,
    leaves,
    notices,
    require,
)
from megatron_apo.config_loading import dump_config, known_keys, load_config
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
    ("override", "message"),
    [
        ("--run.stps=3", "run.stps: unknown setting; did you mean run.steps?"),
        ("--trainin.batch_size=3", "trainin.batch_size: unknown setting; did you mean training.batch_size?"),
        ("--run.learning_rate=3", "run.learning_rate: unknown setting; did you mean optimizer.learning_rate?"),
        ("--objective.stcr=3", "objective.stcr: is a section; set one of its keys, such as objective.stcr.enabled"),
        ("--run.steps", "expected --section.key=value"),
        ("--run.steps=many", "run.steps='many': must be a whole number (int), this is text"),
        ("--run.steps=2.5", "run.steps=2.5: must be a whole number (int), this is a number"),
        ("--run.steps=true", "run.steps=True: must be a whole number"),
        ("--data.shuffle=1", "data.shuffle=1: must be true or false (bool), this is a whole number"),
        ("--optimizer.learning_rate=[1", "optimizer.learning_rate=[1: is not a YAML value"),
        ("--optimizer.learning_rate=[1]", "optimizer.learning_rate=[1]: must be a number (float), this is a list"),
        ("--optimizer.learning_rate=.nan", "optimizer.learning_rate=nan: must be a number"),
        ("--run.directory=", "run.directory=: must name the directory"),
        ("--objective.name=apoo", "objective.name=apoo: must be one of"),
        (
            "--sampling.group_size=1",
            "sampling.group_size=1: must be at least 2; a group of one always has zero",
        ),
        ("--sampling.temperature=0", "sampling.temperature=0.0: must be above 0"),
        ("--rollout.engine=vlm", "rollout.engine=vlm: must be one of vllm, transformers"),
        ("--optimizer.minimum_learning_rate=1", "must not exceed optimizer.learning_rate=1e-06"),
        ("--evaluation.samples=4", "evaluation.samples=4: must be 1 with evaluation.temperature=0"),
        ("--training.updates_per_rollout=33", "must not exceed rollout.prompts_per_step=32"),
        ("--parallel.sequence=true", "parallel.sequence=true: must be false with parallel.tensor=1"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, [override])
    assert message in str(error.value)


# Overrides that contradict each other, and what is said about them; the command line says the same (test_cli.py).
CONTRADICTIONS = {
    "APO without a KL": (
        ["--objective.name=apo", "--objective.kl.coefficient=0"],
        "objective.kl.coefficient=0: must be above 0 with objective.dads.enabled=true; DADS weights the KL term",
    ),
    "DADS alone without a KL": (
        ["--objective.name=apo_dads_only", "--objective.kl.coefficient=0"],
        "objective.kl.coefficient=0: must be above 0 with objective.dads.enabled=true; DADS weights the KL term",
    ),
    "APO without DADS or KL": (
        ["--objective.name=apo", "--objective.dads.enabled=false", "--objective.kl.coefficient=0"],
        "objective.kl.coefficient=0: must be above 0 with objective.name=apo, an objective with a KL term",
    ),
    "STCR alone without a KL": (
        ["--objective.name=apo_stcr_only", "--objective.kl.coefficient=0"],
        "objective.kl.coefficient=0: must be above 0 with objective.name=apo_stcr_only, an objective with a KL term",
    ),
    "View-R1 without a KL": (
        ["--objective.name=view_r1_exact", "--objective.kl.coefficient=0"],
        "objective.kl.coefficient=0: must be above 0 with objective.dads.enabled=true",
    ),
    "an STCR base of 1": (
        ["--objective.stcr.base=1"],
        "objective.stcr.base=1.0: must be above 1; the weight of a longer wrong response grows with it",
    ),
    "an STCR base below 1": (["--objective.stcr.base=0.5"], "objective.stcr.base=0.5: must be above 1"),
    "an endless STCR base": (["--objective.stcr.base=.inf"], "objective.stcr.base=inf: must be a finite number"),
    "a negative KL": (["--objective.kl.coefficient=-0.1"], "objective.kl.coefficient=-0.1: must not be negative"),
    "a minimum above the maximum": (
        ["--objective.name=grpo_d", "--objective.kl.minimum=0.2"],
        "objective.kl.minimum=0.2: must not exceed objective.kl.maximum=0.1",
    ),
    "APO with GRPO-D, its bounds swapped": (
        [
            *("--objective.name=apo", "--objective.kl.schedule=grpo_d"),
            *("--objective.kl.minimum=0.02", "--objective.kl.maximum=0.01"),
        ],
        "objective.kl.minimum=0.02: must not exceed objective.kl.maximum=0.01",
    ),
    "APO with GRPO-D without bounds": (
        ["--objective.name=apo", "--objective.kl.schedule=grpo_d"],
        "objective.kl.maximum=0.0: must be above 0 with objective.kl.schedule=grpo_d",
    ),
    "exploration beyond the run": (
        [
            *("--objective.name=grpo_d", "--run.steps=40"),
            *("--objective.kl.exploration_share=0", "--objective.kl.exploration_steps=41"),
        ],
        "objective.kl.exploration_steps=41: must lie between 0 and run.steps=40",
    ),
    "more than the whole run explores": (
        ["--objective.name=grpo_d", "--objective.kl.exploration_share=1.1"],
        "objective.kl.exploration_share=1.1: must lie between 0 and 1, a share of run.steps",
    ),
    "exploration said twice": (
        ["--objective.name=grpo_d", "--objective.kl.exploration_steps=3"],
        "objective.kl.exploration_steps=3: must be 0 with objective.kl.exploration_share=0.3; say one of them",
    ),
    "a constant for GRPO-D": (
        ["--objective.name=grpo_d", "--objective.kl.coefficient=0.5"],
        "objective.kl.coefficient=0.5: must be 0 with objective.kl.schedule=grpo_d, which does not read it; set "
        "objective.kl.schedule=constant, or minimum and maximum",
    ),
    "bounds for a constant": (
        ["--objective.name=grpo", "--objective.kl.minimum=0.01", "--objective.kl.maximum=0.1"],
        "objective.kl.minimum=0.01: must be 0 with objective.kl.schedule=constant, which does not read it; set "
        "objective.kl.schedule=grpo_d, or coefficient",
    ),
    "exploration of a constant": (
        ["--objective.name=apo", "--objective.kl.exploration_steps=5"],
        "objective.kl.exploration_steps=5: must be 0 with objective.kl.schedule=constant",
    ),
    "a share of exploration of a constant": (
        ["--objective.name=grpo_d", "--objective.kl.schedule=constant", "--objective.kl.exploration_share=0.3"],
        "objective.kl.exploration_share=0.3: must be 0 with objective.kl.schedule=constant",
    ),
    "APO without DADS": (
        ["--objective.name=apo", "--objective.dads.enabled=false"],
        "objective.dads.enabled=false: must be true with objective.name=apo, which is named for it; start from "
        "objective.name=apo_stcr_only",
    ),
    "APO without STCR": (
        ["--objective.stcr.enabled=false"],
        "objective.stcr.enabled=false: must be true with objective.name=apo, which is named for it; start from "
        "objective.name=apo_dads_only",
    ),
    "APO without either": (
        ["--objective.stcr.enabled=false", "--objective.dads.enabled=false"],
        "objective.stcr.enabled=false: must be true with objective.name=apo, which is named for it; start from "
        "objective.name=grpo",
    ),
    "DADS alone with STCR": (
        ["--objective.name=apo_dads_only", "--objective.stcr.enabled=true"],
        "objective.stcr.enabled=true: must be false with objective.name=apo_dads_only, which is named for it; start "
        "from objective.name=apo",
    ),
    "STCR alone with DADS": (
        ["--objective.name=apo_stcr_only", "--objective.dads.enabled=true"],
        "objective.dads.enabled=true: must be false with objective.name=apo_stcr_only",
    ),
    "View-R1 without STCR": (
        ["--objective.name=view_r1_exact", "--objective.stcr.enabled=false"],
        "objective.stcr.enabled=false: must be true with objective.name=view_r1_exact",
    ),
    "a stop by a KL that nobody measures": (
        ["--objective.name=dapo", "--alarms.stop.kl=5"],
        "alarms.stop.kl=5: must be 0 without a KL coefficient, as there is no initial policy to measure kl/raw against",
    ),
    "a stop by corrections that nobody makes": (
        ["--alarms.stop.corrected=0.5"],
        "alarms.stop.corrected=0.5: must be 0 with objective.mismatch.correction=none, which corrects nothing",
    ),
}


@pytest.mark.parametrize("which", CONTRADICTIONS)
def test_contradictions_are_refused_with_the_reason(which: str, tmp_path: Path) -> None:
    """As overrides, and as a file that says the same."""
    overrides, message = CONTRADICTIONS[which]
    tree: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.removeprefix("--").partition("=")
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = yaml.safe_load(value)
    for given in ((None, overrides), (write(tmp_path, yaml.safe_dump(tree)), [])):
        with pytest.raises(ValueError) as error:
            load_config(*given)
        assert str(error.value).startswith(message)


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


def test_require_names_the_empty_setting() -> None:
    config = load_config(None, ["--model.path=here"])
    require(config, "model.path")
    with pytest.raises(ValueError, match=r"data\.train: is required"):
        require(config, "model.path", "data.train")


@pytest.mark.parametrize(
    "words",
    [
        ["--objective.name=grpo", "--alarms.stop.kl=5"],
        ["--objective.name=grpo_d", "--alarms.stop.kl=5"],
        ["--objective.name=rloo", "--alarms.stop.kl=5"],
        ["--objective.name=dapo", "--alarms.stop.kl_old=5"],
        ["--objective.mismatch.correction=mask", "--alarms.stop.corrected=0.5"],
    ],
)
def test_a_stop_that_can_come_is_taken(words: list[str]) -> None:
    assert sum(dataclasses.asdict(load_config(None, words).alarms.stop).values()) > 0


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text("")
    good = [f"--model.path={tmp_path}", f"--data.train={tmp_path}/train.jsonl", f"--rollout.replay={tmp_path}"]
    check_files(load_config(None, good))
    check_files(load_config(None))  # empty settings lead nowhere on purpose
    for key in ("model.path", "data.train", "data.validation", "data.test", "data.image_root", "rollout.replay"):
        with pytest.raises(ValueError, match=f"{key}={tmp_path}/absent: no"):
            check_files(load_config(None, [*good, f"--{key}={tmp_path}/absent"]))


@pytest.mark.parametrize(
    "text", ['{"text_config": {"max_position_embeddings": 100}}', '{"max_position_embeddings": 100}']
)
def test_prompt_and_response_must_fit_the_model(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    base = [f"--model.path={tmp_path}", "--data.max_prompt_tokens=60"]
    check_length(load_config(None, [*base, "--sampling.max_tokens=40"]))
    with pytest.raises(ValueError, match=r"max_prompt_tokens=60 \+ sampling.max_tokens=41: must not exceed the 100"):
        check_length(load_config(None, [*base, "--sampling.max_tokens=41"]))
    for content, message in (
        (b"{", "cannot be read"),
        (b"\xff{}", "cannot be read"),
        (b"[]", "holds a list, expected"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json:? {message}"):
            check_length(load_config(None, base))


@pytest.mark.parametrize("key", [key for key, value in leaves(Config(), "") if isinstance(value, float)])
def test_an_infinity_is_refused_wherever_a_number_stands(key: str) -> None:
    for text, value in ((".inf", "inf"), ("1e999", "inf"), ("-.inf", "-inf")):
        with pytest.raises(ValueError, match=rf"^{key}={value}: must be a finite number"):
            load_config(None, [f"--{key}={text}"])
    with pytest.raises(ValueError, match=rf"^{key}=nan: must be a number"):
        load_config(None, [f"--{key}=.nan"])


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


def test_rewards_that_never_differ_are_refused_in_training_with_rewards() -> None:
    nothing = ["--rewards.accuracy=0", "--rewards.format=0"]
    with pytest.raises(ValueError, match=r"rewards\.accuracy=0: must be above 0 with rewards\.format=0"):
        check_purpose(load_config(None, nothing), supervised=False)
    for works in (nothing[:1], nothing[1:], [*nothing, "--objective.overlong.policy=punish"]):
        check_purpose(load_config(None, works), supervised=False)
    check_purpose(load_config(None, nothing), supervised=True)  # demonstrations earn nothing


def test_a_kl_that_holds_nothing_is_told() -> None:
    k1 = ["--objective.name=grpo", "--objective.kl.estimator=k1"]
    (notice,) = notices(load_config(None, k1))
    assert notice.startswith("objective.kl.estimator=k1: its gradient in the loss is 0 in the mean")
    for works in (["--objective.name=grpo"], ["--objective.name=rloo"], [*k1, "--objective.kl.coefficient=0"]):
        assert not notices(load_config(None, works))


def test_every_setting_is_checked_or_free() -> None:
    """A number or a choice that is added without a check is found here."""
    from megatron_apo.config_checks import _CHECKS

    free = {"logging.wandb_project", "model.path", "rollout.replay", "data.train", "data.validation"}
    free |= {"data.test", "data.image_root", "data.system_prompt", "data.instruction"}
    free |= {key for key in known_keys() if key.startswith("objective.")}  # objective/validation.py, with its own tests
    free |= {"sampling.group_size"}
    values = {key: value for key, value in _flat(dataclasses.asdict(Config()))}
    unchecked = {key for key in values if not isinstance(values[key], bool)} - {key for key, _, _ in _CHECKS} - free
    assert not unchecked
    assert sorted(values) == sorted(known_keys())


def _flat(tree: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    result: list[tuple[str, object]] = []
    for key, value in tree.items():
        result += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return result


def test_what_sequences_and_microbatches_are_a_multiple_of() -> None:
    layout = ParallelConfig(tensor=2, context=2)
    assert (layout.sequence_multiple, layout.microbatch_multiple) == (4, 1)
    assert ParallelConfig(pipeline=2, virtual_pipeline=2).microbatch_multiple == 2
    assert ParallelConfig(pipeline=2).sequence_multiple == ParallelConfig(pipeline=2).microbatch_multiple == 1


def test_freezing_everything_is_refused() -> None:
    parts = [f"--model.freeze_{part}=true" for part in ("vision", "merger", "language")]
    for index in range(3):
        load_config(None, parts[:index] + parts[index + 1 :])
    with pytest.raises(ValueError, match="model.freeze_language=true: must be false with"):
        load_config(None, parts)


def test_an_evaluation_that_would_not_take_place_is_refused() -> None:
    asked = ["--run.evaluate_every=25"]
    with pytest.raises(ValueError, match=r"run\.evaluate_every=25: needs data\.validation"):
        check_evaluation(load_config(None, asked))
    for possible in ([], [*asked, "--data.validation=rows.jsonl"], [*asked, "--rollout.replay=rollouts"]):
        check_evaluation(load_config(None, possible))
