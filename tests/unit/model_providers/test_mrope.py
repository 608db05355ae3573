"""Position ids equal transformers' own, and a response is text whatever was sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model_providers.qwen_vl.mrope import mrope_position_ids
from tests.unit.model_providers.reference import END, IMAGE, START, config

Grid = tuple[int, int, int]
OPTIONS: dict[str, Any] = {"image_token_id": IMAGE, "spatial_merge_size": 2}


def prompt_of(grids: list[Grid], *, between: int = 2) -> list[int]:
    ids = [1, 2, 3]
    for t, h, w in grids:
        ids += [START, *[IMAGE] * (t * h * w // 4), END, *range(4, 4 + between)]
    return ids


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    return Qwen2_5_VLModel(config(tied=False))


@pytest.mark.parametrize(
    "grids",
    [
        [],
        [(1, 2, 2)],
        [(1, 8, 8)],
        [(1, 2, 40), (1, 14, 2)],
        [(1, 4, 6)] * 12,
        [(1, 6, 10), (1, 2, 2), (1, 40, 4), (1, 4, 4)],
    ],
)
@pytest.mark.parametrize("between", [0, 3])
def test_equals_transformers(reference: Any, grids: list[Grid], between: int) -> None:
    prompt, response = prompt_of(grids, between=between), [7, 8, 9, 10]
    ids = torch.tensor([prompt + response])
    images = {"image_grid_thw": torch.tensor(grids)} if grids else {}
    expected, _ = reference.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), **images)
    assert torch.equal(mrope_position_ids(prompt, len(response), grids, **OPTIONS), expected[:, 0])


def test_by_hand() -> None:
    """Two text tokens, an image of 1 x 2 merged patches, one text token, two of the response."""
    found = mrope_position_ids([5, START, IMAGE, IMAGE, END], 2, [(1, 2, 4)], **OPTIONS)
    assert found.tolist() == [
        [0, 1, 2, 2, 4, 5, 6],  # time: the image stands still, and the text goes on after its largest position, 3
        [0, 1, 2, 2, 4, 5, 6],  # height: one row
        [0, 1, 2, 3, 4, 5, 6],  # width: two columns
    ]


def test_a_response_is_text_whatever_it_holds() -> None:
    """Only its length is asked for; positions go on by one, the same on all three axes."""
    prompt = prompt_of([(1, 4, 4)])
    found = mrope_position_ids(prompt, 5, [(1, 4, 4)], **OPTIONS)[:, len(prompt) :]
    assert torch.equal(found, (torch.arange(5) + int(found[0, 0])).expand(3, -1))


def test_empty_response_and_cached_answers_are_not_shared() -> None:
    prompt = prompt_of([(1, 4, 4)])
    first = mrope_position_ids(prompt, 0, [(1, 4, 4)], **OPTIONS)
    expected = first.clone()
    first += 100
    assert torch.equal(mrope_position_ids(prompt, 0, [(1, 4, 4)], **OPTIONS), expected)


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([1, IMAGE, 2], [], "more image placeholder runs than its 0 images; token 1"),
        ([1, 2], [(1, 2, 2)], "placeholders for 0 images but 1 images"),
        ([1, IMAGE, 2], [(1, 2, 4)], "needs 2 placeholder tokens from token 1"),
        ([1, IMAGE, IMAGE, 2], [(1, 2, 2)], "more image placeholder runs than its 1 images; token 2"),
        ([IMAGE, 2, IMAGE], [(1, 2, 2), (1, 2, 2), (1, 2, 2)], "placeholders for 2 images but 3 images"),
    ],
)
def test_mismatches_are_named(ids: list[int], grids: list[Grid], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mrope_position_ids(ids, 1, grids, **OPTIONS)


def test_a_run_cut_short_by_the_end_of_the_prompt() -> None:
    with pytest.raises(ValueError, match="needs 2 placeholder tokens"):
        mrope_position_ids([1, IMAGE], 3, [(1, 2, 4)], **OPTIONS)
