"""Runs side by side: seeds together, and a difference is only called one when seeds do not explain it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_apo.cli import main
from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import write_evaluations
from megatron_apo.observability.comparison_page import write_comparison
from megatron_apo.observability.run_comparison import (
    arms_of,
    differences,
    mean_curve,
    mean_interval,
    read_run,
    same_seeds,
)
from tests.unit.observability.test_report import Page


def make_run(root: Path, objective: str, seed: int, accuracy: float, *, steps: int = 20, **settings: Any) -> Path:
    directory = root / f"{objective}-{seed}-{len(list(root.iterdir()))}"
    directory.mkdir()
    config = {
        "run": {"directory": str(directory), "seed": seed, "steps": 20},
        "objective": {"name": objective, **settings},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": n, "reward/total": accuracy * n / steps, "policy/entropy": 0.5} for n in range(1, steps + 1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = Evaluation(accuracy, (accuracy, accuracy), 1.0, 10, 10, 12.0, accuracy, by_category={"two": accuracy})
    write_evaluations(directory, {"after": measured})
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds each of grpo, apo (far better) and rloo (as good as grpo)."""
    made = tmp_path / "made"
    made.mkdir()
    of = {"grpo": (0.60, 0.61, 0.62), "apo": (0.80, 0.81, 0.82), "rloo": (0.605, 0.61, 0.62)}
    return [make_run(made, name, seed, value) for name, values in of.items() for seed, value in enumerate(values)]


def test_seeds_of_the_same_settings_are_one_arm(runs: list[Path]) -> None:
    arms = arms_of([read_run(run) for run in runs])
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in arms] == [
        ("grpo", [0, 1, 2]),
        ("apo", [0, 1, 2]),
        ("rloo", [0, 1, 2]),
    ]
    assert mean_curve(arms[0], "reward/total")[-1] == (20, pytest.approx(0.61))


def test_arms_of_one_objective_are_named_by_what_differs(tmp_path: Path) -> None:
    directories = [make_run(tmp_path, "apo", 0, 0.5, kl={"coefficient": value}) for value in (0.01, 0.1)]
    assert [arm.name for arm in arms_of([read_run(one) for one in directories])] == [
        "apo coefficient=0.01",
        "apo coefficient=0.1",
    ]


def test_arms_have_the_names_of_their_directories_where_these_end_in_the_seed(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path, "grpo", seed, 0.5, kl={"coefficient": value}) for value in (0.01, 0.1) for seed in (0, 1)
    ]
    named = [tmp_path / name for name in ("weak-0", "weak-1", "strong-0", "strong-1")]
    for run, target in zip(made, named, strict=True):
        run.rename(target)
    assert [arm.name for arm in arms_of([read_run(one) for one in named])] == ["weak", "strong"]
    named[3].rename(tmp_path / "stronger-1")  # one arm, two names
    named[3] = tmp_path / "stronger-1"
    assert [arm.name for arm in arms_of([read_run(one) for one in named])] == [
        "grpo coefficient=0.01",
        "grpo coefficient=0.1",
    ]


def test_a_tenth_of_the_steps_is_the_end(runs: list[Path]) -> None:
    assert read_run(runs[0]).end_of("reward/total") == pytest.approx(0.60 * (19 / 20 + 1) / 2)
    assert read_run(runs[0]).end_of("kl/raw") is None


def test_intervals_against_published_numbers() -> None:
    # Student: t(0.975, 2) = 4.3027; the standard deviation of 1, 2, 3 is 1.
    low, high = mean_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4), pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4))
    assert mean_interval([1.0]) is None
    # Dunnett 1955, table 2a: two-sided 95 %, 2 treatments, 6 degrees of freedom: 2.86.
    (first, second) = differences([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [11.0, 12.0, 13.0]])
    assert first is not None and second is not None and first.interval is not None
    assert first.value == 1 and second.value == 10
    assert first.interval[1] - first.value == pytest.approx(2.86 * (2 / 3) ** 0.5, abs=0.01)
    assert not first.shown and second.shown


def test_single_seeds_show_nothing_and_missing_values_stay_missing() -> None:
    one, missing = differences([[1.0], [5.0], []])
    assert one is not None and one.interval is None and not one.shown and missing is None
    assert differences([[], [5.0]]) == [None]
    (same,) = differences([[1.0, 1.0], [1.0, 1.0]])
    assert same is not None and same.interval == (0.0, 0.0) and not same.shown
    (single,) = differences([[1.0, 1.1, 0.9], [5.0]])
    assert single is not None and single.shown


def test_page_says_which_differ_and_which_do_not(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(runs, tmp_path / "page.html").read_text())
    assert "Held-out accuracy: differ from grpo: apo +20.0 [+" in page.text
    assert "; the other 1 does not" in page.text
    assert "Entropy: no arm differs from grpo by more than its seeds explain" in page.text
    assert "KL divergence" not in page.text.partition("Side by side")[0]
    dots = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert len(dots) == 3 * 9  # seeds x (held out, reward, entropy)


def test_a_seed_that_moves_all_arms_alike_hides_no_difference() -> None:
    first, second = [1.0, 5.0, 9.0], [1.6, 5.5, 9.7]
    (apart,) = differences([first, second])
    (together,) = differences([first, second], blocks=True)
    assert apart is not None and together is not None and apart.value == together.value == pytest.approx(0.6)
    assert not apart.shown and together.shown and together.interval is not None
    # Of two arms it is the paired t-test: t(0.975, 2) = 4.3027, the differences' standard deviation is 0.1.
    half = 4.3027 * 0.1 / 3**0.5
    assert together.interval == (pytest.approx(0.6 - half, abs=1e-3), pytest.approx(0.6 + half, abs=1e-3))
    # Dunnett 1955, table 2a: two-sided 95 %, 2 treatments, 6 degrees of freedom: 2.86; of 4 blocks the spread left is
    # (1/3)^(1/2): a block's values are 0, 1 and 2 above the block, twice with the second and third changed about.
    table = [[0.0, 10.0, 20.0, 30.0], [1.0, 12.0, 21.0, 32.0], [2.0, 11.0, 22.0, 31.0]]
    found = differences(table, blocks=True)
    assert all(one is not None and one.value == 1.5 and one.interval is not None for one in found)
    (low, high) = found[0].interval  # type: ignore[union-attr, misc]
    assert (high - low) / 2 == pytest.approx(2.86 * (1 / 3 * 2 / 4) ** 0.5, abs=2e-3)


def test_seeds_pair_runs_only_where_all_arms_have_the_same(runs: list[Path]) -> None:
    arms = arms_of([read_run(run) for run in reversed(runs)])
    assert same_seeds(arms) and [run.seed for run in arms[0].runs] == [0, 1, 2]
    assert not same_seeds(arms_of([read_run(run) for run in runs[:-1]]))


def test_page_names_unfinished_runs_and_escapes(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    directories = [make_run(made, "grpo", 0, 0.5), make_run(made, "<b>x", 1, 0.5, steps=7)]
    text = write_comparison(directories, tmp_path / "deep" / "page.html").read_text()
    assert "(7 of 20)" in text and "<b>x" not in text.replace("<b>x-", "")
    assert "one seed each: no difference can be told from chance" in text


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ValueError, match="two run directories or more"):
        write_comparison(runs[:1], tmp_path / "page.html")
    with pytest.raises(ValueError, match="given twice"):
        write_comparison([runs[0], runs[0]], tmp_path / "page.html")
    again = make_run(runs[0].parent, "grpo", 0, 0.7)
    with pytest.raises(ValueError, match=r"the same settings and the same run.seed=0"):
        write_comparison([*runs, again], tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no metrics.jsonl"):
        write_comparison([runs[0], tmp_path / "empty"], tmp_path / "page.html")
    assert main(["report"]) == 2 and "--compare" in capsys.readouterr().err
    assert main(["report", "--compare", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
