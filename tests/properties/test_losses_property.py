"""The quick set of random losses, batches and layouts; ``python -m tests.properties.losses`` draws more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.properties.draws import Draw
from tests.properties.injected_losses import BUGS
from tests.properties.layouts import failure, line_of, run_draws
from tests.properties.losses import LOSSES

# The first twenty; two more each of what is rare among them: a data rank without a response token (24, 29), mismatch
# weights of responses that context ranks share (26, 39; 39 has their ratios as well).
DRAWS = [*range(20), 24, 26, 29, 39]
RARE = ("data rank without a response token", "sequence ratio under CP", "sequence mismatch weight under CP")
# Two data ranks, two microbatches, context parallelism, and a ratio of whole responses.
SHOWN_BY = [10]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Draw, dict[str, Any]]]:
    """Each draw, and its result."""
    return run_draws(DRAWS, 4, Path(tmp_path_factory.mktemp("losses")), checked=LOSSES)[0]


@pytest.mark.parametrize("number", DRAWS)
def test_loss_metrics_and_gradients_equal_one_unsplit_computation(
    found: list[tuple[Draw, dict[str, Any]]], number: int
) -> None:
    ((draw, result),) = [one for one in found if one[0].number == number]
    line = line_of(draw, result, LOSSES)
    print(line)
    assert not failure(result, LOSSES), line


@pytest.mark.parametrize("factor", RARE)
def test_the_quick_set_has_what_is_rare(found: list[tuple[Draw, dict[str, Any]]], factor: str) -> None:
    has = [draw.number for draw, _ in found if factor in draw.factors() + LOSSES.more(draw)]
    assert len(has) >= 2, f"{factor}: only draws {has}; find others by Draw.factors and LossDraw.factors"


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
