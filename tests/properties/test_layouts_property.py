"""The quick set of random models, inputs and layouts; ``python -m tests.properties.layouts`` draws more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.properties.injected import BUGS
from tests.properties.layouts import failure, line_of, run_draws

DRAWS = 40


# These show each bug: Qwen2.5-VL, ragged windows, a video of other than a second a patch, long responses.
SHOWN_BY = [20, 31]


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
