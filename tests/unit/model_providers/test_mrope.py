"""Position ids equal transformers' own, and a response is text whatever was sampled."""

from __future__ import annotations

import gc
import re
import tracemalloc
from typing import Any

import pytest
import torch
from transformers import AutoModel

from model_providers.qwen_vl.mrope import mrope_position_ids
from model_providers.qwen_vl.shape import VisionTokens
from tests.unit.model_providers.reference import END, IMAGE, START, VIDEO, config

Grid = tuple[int, int, int]
TOKENS = VisionTokens(IMAGE, VIDEO, 2, tokens_per_second=2)


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
    assert torch.equal(mrope_position_ids(prompt, len(response), grids, TOKENS), expected[:, 0])


def test_by_hand() -> None:
    """Two text tokens, an image of 1 x 2 merged patches, one text token, two of the response."""
    found = mrope_position_ids([5, START, IMAGE, IMAGE, END], 2, [(1, 2, 4)], TOKENS)
    assert found.tolist() == [
        [0, 1, 2, 2, 4, 5, 6],  # time: the image stands still, and the text goes on after its largest position, 3
        [0, 1, 2, 2, 4, 5, 6],  # height: one row
        [0, 1, 2, 3, 4, 5, 6],  # width: two columns
    ]


Visual = tuple[Grid, float]
VIDEOS: list[list[Visual]] = [
    [((3, 4, 10), 0.75)],
    [((2, 8, 8), 1.0), ((1, 6, 10), 0.0), ((4, 2, 16), 0.5)],
    [((1, 4, 4), 2.0), ((1, 4, 4), 0.0)],  # one temporal patch is a video all the same
]


def video_prompt(visuals: list[Visual]) -> list[int]:
    ids = [1, 2]
    for (t, h, w), seconds in visuals:
        ids += [START, *[VIDEO if seconds else IMAGE] * (t * h * w // 4), END, 5]
    return ids


@pytest.mark.parametrize("visuals", VIDEOS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_videos_equal_transformers(family: str, visuals: list[Visual]) -> None:
    """Where no video lasts longer than it is wide: its code lets the text go on inside a longer one's time."""
    model = AutoModel.from_config(config(tied=False, family=family))
    ids = torch.tensor([video_prompt(visuals) + [7, 8]])
    images = [grid for grid, seconds in visuals if not seconds]
    videos = [grid for grid, seconds in visuals if seconds]
    given: dict[str, Any] = {"video_grid_thw": torch.tensor(videos)}
    given |= {"image_grid_thw": torch.tensor(images)} if images else {}
    if family == "qwen2_5_vl":
        given["second_per_grid_ts"] = torch.tensor([seconds for _, seconds in visuals if seconds])
    expected, _ = model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int() + 2 * (ids == VIDEO).int(), **given)
    tokens = VisionTokens(IMAGE, VIDEO, 2, tokens_per_second=2 if family == "qwen2_5_vl" else 0)
    grids, seconds = zip(*visuals, strict=True)
    found = mrope_position_ids(video_prompt(visuals), 2, grids, tokens, seconds)
    assert torch.equal(found, expected[:, 0])


def test_a_long_video_by_hand() -> None:
    """Three temporal patches, 1.3 seconds apart at two positions a second: 0, 2.6 and 5.2, cut to 0, 2 and 5."""
    found = mrope_position_ids([5, START, VIDEO, VIDEO, VIDEO, END], 1, [(3, 2, 2)], TOKENS, [1.3])
    assert found.tolist() == [
        [0, 1, 2, 4, 7, 8, 9],  # the text goes on after the largest position, 7
        [0, 1, 2, 2, 2, 8, 9],
        [0, 1, 2, 2, 2, 8, 9],
    ]


@pytest.mark.parametrize(
    ("grid", "seconds", "placeholder", "message"),
    [
        ((2, 2, 2), 0.0, VIDEO, "grid (2, 2, 2) has 2 temporal patches but seconds_per_grid is 0"),
        ((2, 2, 2), -1.0, VIDEO, "seconds_per_grid=-1.0 must be above 0"),
        ((2, 2, 2), float("nan"), VIDEO, "seconds_per_grid=nan must be above 0"),
        ((2, 2, 2), 1.0, IMAGE, f"video 0 with grid (2, 2, 2) needs 2 placeholder tokens from token 0 on (id {VIDEO})"),
        ((1, 2, 4), 0.0, VIDEO, f"image 0 with grid (1, 2, 4) needs 2 placeholder tokens from token 0 on (id {IMAGE})"),
        ((1, 3, 4), 0.0, IMAGE, "multiples of 2, the spatial merge"),
        ((1, 0, 4), 0.0, IMAGE, "must be positive"),
    ],
)
def test_what_is_no_video_or_image_is_named(grid: Grid, seconds: float, placeholder: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mrope_position_ids([placeholder] * 2, 1, [grid], TOKENS, [seconds])


def test_seconds_and_grids_are_as_many() -> None:
    with pytest.raises(ValueError, match="1 grids but 0 seconds_per_grid"):
        mrope_position_ids([IMAGE], 1, [(1, 2, 2)], TOKENS, [])


def test_a_response_is_text_whatever_it_holds() -> None:
    """Only its length is asked for; positions go on by one, the same on all three axes."""
    prompt = prompt_of([(1, 4, 4)])
    found = mrope_position_ids(prompt, 5, [(1, 4, 4)], TOKENS)[:, len(prompt) :]
    assert torch.equal(found, (torch.arange(5) + int(found[0, 0])).expand(3, -1))


def test_empty_response_and_no_two_answers_share_memory() -> None:
    prompt = prompt_of([(1, 4, 4)])
    first = mrope_position_ids(prompt, 0, [(1, 4, 4)], TOKENS)
    expected = first.clone()
    first += 100
    assert torch.equal(mrope_position_ids(prompt, 0, [(1, 4, 4)], TOKENS), expected)


def test_nothing_is_kept_of_a_prompt() -> None:
    """A run sees prompts without end: 8 of 2,300 tokens, every id an object of its own, leave no memory behind."""
    grids: list[Grid] = [(1, 8, 8), (1, 8, 8)]

    def positions(number: int) -> None:
        text = [1000 + number * 2500 + place for place in range(2264)]
        mrope_position_ids([*text, *prompt_of(grids)[3:]], 5, grids, TOKENS)

    positions(0)
    gc.collect()
    tensors = sum(type(each) is torch.Tensor for each in gc.get_objects())
    tracemalloc.start()
    try:
        for number in range(1, 9):
            positions(number)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2264 * 28  # bytes of one prompt's ids
    assert sum(type(each) is torch.Tensor for each in gc.get_objects()) <= tensors


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
        mrope_position_ids(ids, 1, grids, TOKENS)


def test_a_run_cut_short_by_the_end_of_the_prompt() -> None:
    with pytest.raises(ValueError, match="needs 2 placeholder tokens"):
        mrope_position_ids([1, IMAGE], 3, [(1, 2, 4)], TOKENS)
