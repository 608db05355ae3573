"""The quick set of random models, inputs and layouts; ``python -m tests.properties.layouts`` draws more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.properties.layouts import failure, line_of, run_draws

DRAWS = 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, str]]:
    """What is wrong with each draw, and its line."""
    found, refused = run_draws(list(range(DRAWS)), 4, Path(tmp_path_factory.mktemp("draws")))
    assert refused  # some of the layouts drawn are impossible, and were refused by name
    return {draw.number: (failure(result), line_of(draw, result)) for draw, result in found}


@pytest.mark.parametrize("number", range(DRAWS))
def test_logits_and_gradients_equal_transformers(results: dict[int, tuple[str, str]], number: int) -> None:
    wrong, line = results[number]
    print(line)
    assert not wrong, line
