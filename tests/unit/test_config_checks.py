"""Settings that cannot work, alone or beside another: each refused with its name, its value and the reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_apo.config import Config
from megatron_apo.config_checks import (
    leaves,
)
from megatron_apo.config_loading import known_keys, load_config
from tests.unit.test_config import write


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.formats={a.jsonl: r1v}", "data.formats={'a.jsonl': 'r1v'}: each must be one of r1v_counting"),
        ("--data.format=r1v", "data.format=r1v: must be one of r1v_counting, r1v_geoqa, mmk12, or empty"),
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


@pytest.mark.parametrize("key", [key for key, value in leaves(Config(), "") if isinstance(value, float)])
def test_an_infinity_is_refused_wherever_a_number_stands(key: str) -> None:
    for text, value in ((".inf", "inf"), ("1e999", "inf"), ("-.inf", "-inf")):
        with pytest.raises(ValueError, match=rf"^{key}={value}: must be a finite number"):
            load_config(None, [f"--{key}={text}"])
    with pytest.raises(ValueError, match=rf"^{key}=nan: must be a number"):
        load_config(None, [f"--{key}=.nan"])


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


def test_freezing_everything_is_refused() -> None:
    parts = [f"--model.freeze_{part}=true" for part in ("vision", "merger", "language")]
    for index in range(3):
        load_config(None, parts[:index] + parts[index + 1 :])
    with pytest.raises(ValueError, match="model.freeze_language=true: must be false with"):
        load_config(None, parts)
