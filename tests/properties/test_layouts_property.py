"""The quick set of random models, inputs and layouts; ``python -m tests.properties.layouts`` draws more."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.properties.injected import BUGS
from tests.properties.layouts import failure, line_of, possible, run_draws

DRAWS = 40


# These show each bug: Qwen2.5-VL, ragged windows, a video of other than a second a patch, long responses.
SHOWN_BY = [40, 48]


def test_the_draws_have_every_kind_of_layout() -> None:
    """What the issue of layouts is about must be among the quick draws too, not only among the 500."""
    found = Counter(factor for number in range(DRAWS) for factor in kinds_of(number))
    wanted = (
        "PP 2",
        "PP 4",
        "interleaved",
        "uneven first stage",
        "TP 2",
        "TP 4",
        "sequence parallelism",
        "CP 2",
        "DP 2",
    )
    more = ("KV heads < TP", "recompute full", "recompute selective", "video longer than wide", "vision FFN padded")
    assert all(found[factor] >= 2 for factor in (*wanted, *more)), found


def kinds_of(number: int) -> list[str]:
    """The factors of the first possible layout of a draw."""
    with tempfile.TemporaryDirectory() as folder:
        return possible(number, 4, Path(folder))[0].factors()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, str]]:
    """What is wrong with each draw, and its line."""
    found, refused = run_draws(list(range(DRAWS)), 4, Path(tmp_path_factory.mktemp("draws")))
    assert refused  # some of the layouts drawn are impossible, and were refused by name
    return {draw.number: (failure(result), line_of(draw, result)) for draw, result in found}


@pytest.mark.parametrize("number", range(DRAWS))
def test_outputs_and_gradients_equal_transformers(results: dict[int, tuple[str, str]], number: int) -> None:
    wrong, line = results[number]
    print(line)
    assert not wrong, line


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The results with each of the bugs."""
    found, _ = run_draws(SHOWN_BY, 1, tmp_path_factory.mktemp("bugs"), bugs=list(BUGS))
    results = iter([result for _, result in found])
    return {bug: [next(results) for _ in SHOWN_BY] for bug in BUGS}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(spoiled: dict[str, list[dict[str, Any]]], bug: str) -> None:
    assert any(failure(result) for result in spoiled[bug]), spoiled[bug]
    print(bug, [failure(result) for result in spoiled[bug]])
