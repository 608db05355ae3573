"""Costs worked out by hand."""

from __future__ import annotations

from megatron_apo.data.costs import CostModel, image_costs
from megatron_apo.records import PromptImage, TrainingSample


def test_a_sequence_by_hand() -> None:
    """3 + 2 tokens: 5 tokens, 2 of the response, 15 pairs."""
    costs = CostModel(per_token=100.0, per_response_token=10.0, per_pair=1.0)
    assert costs.sequence(3, 2) == 500 + 20 + 15
    assert CostModel().sequence(3, 2) == 5


def test_an_image_by_hand() -> None:
    """Two frames of 6 x 10 patches; windows of 4 x 4 cut rows into 4 + 2 and columns into 4 + 4 + 2."""
    costs = CostModel(per_patch=1e6, per_window_pair=1.0, per_frame_pair=1e-6, window=4)
    windows = 2 * (4 * 4) ** 2 + (4 * 2) ** 2 + 2 * (2 * 4) ** 2 + (2 * 2) ** 2
    assert costs.image((2, 6, 10)) == 2 * (60e6 + windows + 3600e-6)
    assert CostModel(per_patch=1.0).image((1, 6, 10)) == 60


def test_what_makes_an_image_another_one() -> None:
    """Path does not matter, content, grid and rate do; an image that a prompt shows twice is encoded once."""
    cat = PromptImage("a.png", "cat", (1, 2, 2))
    same, larger, slower = (
        PromptImage("b.png", "cat", (1, 2, 2)),
        PromptImage("a.png", "cat", (1, 2, 4)),
        PromptImage("a.png", "cat", (1, 2, 2), 0.5),
    )
    sample = TrainingSample((1,), (2,), (cat, same, larger, slower))
    (found,) = image_costs([sample], CostModel(per_patch=1.0))
    assert list(found.values()) == [4.0, 8.0, 4.0]
