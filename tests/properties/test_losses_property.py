"""The quick set of random losses, batches and layouts; ``python -m tests.properties.losses`` draws more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.properties.injected_losses import BUGS
from tests.properties.layouts import failure, line_of, run_draws
from tests.properties.losses import LOSSES

DRAWS = 20
# Two data ranks, two microbatches, context parallelism, and a ratio of whole responses.
SHOWN_BY = [10]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, str]]:
    """What is wrong with each draw, and its line."""
    found, _ = run_draws(list(range(DRAWS)), 4, Path(tmp_path_factory.mktemp("losses")), checked=LOSSES)
    return {draw.number: (failure(result, LOSSES), line_of(draw, result, LOSSES)) for draw, result in found}


@pytest.mark.parametrize("number", range(DRAWS))
def test_loss_metrics_and_gradients_equal_one_unsplit_computation(
    results: dict[int, tuple[str, str]], number: int
) -> None:
    wrong, line = results[number]
    print(line)
    assert not wrong, line


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is found wrong with each of the bugs."""
    root = Path(tmp_path_factory.mktemp("bugs"))
    found, _ = run_draws(SHOWN_BY, 4, root, bugs=list(BUGS), checked=LOSSES)
    wrong = iter([failure(result, LOSSES) for _, result in found])
    return {bug: [next(wrong) for _ in SHOWN_BY] for bug in BUGS}


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_scale_is_found(spoiled: dict[str, list[str]], bug: str) -> None:
    print(bug, spoiled[bug])
    assert any(spoiled[bug])
