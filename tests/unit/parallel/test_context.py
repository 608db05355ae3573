"""The shares of context ranks: every token once, every image where a token of it is."""

from __future__ import annotations

import pytest
import torch

from megatron_apo.parallel.context import cut_microbatch
from tests.unit.data.test_packing import IMAGE, SAMPLES, build

PACKED = {"sequence_multiple": 4}  # two context ranks


def test_tokens_of_each_rank_by_hand() -> None:
    whole = build(SAMPLES, [0, 1], **PACKED)  # 6 tokens padded to 8, and 4
    first, second = (cut_microbatch(whole, rank, 2, spatial_merge_size=2) for rank in range(2))
    assert whole.input_ids_T.tolist() == [5, IMAGE, IMAGE, 6, 10, 11, 0, 0, 7, 12, IMAGE, 13]
    assert first.input_ids_T.tolist() == [5, IMAGE, 0, 0, 7, 13]
    assert second.input_ids_T.tolist() == [IMAGE, 6, 10, 11, 12, IMAGE]
    assert second.labels_T.tolist() == [6, 10, 11, 0, IMAGE, 13]
    assert second.response_mask_T.int().tolist() == [0, 1, 1, 0, 1, 1]
    assert second.rollout_logprobs_T.tolist() == [0, -1, -2, 0, -4, -5]
    assert first.position_ids_3T.tolist() == [[0, 1, 0, 0, 0, 3]] * 3
    assert second.places_T is not None and second.places_T.tolist() == [2, 3, 4, 5, 9, 10]
    assert first.cu_seqlens.tolist() == second.cu_seqlens.tolist() == [0, 8, 12]


def test_every_token_weight_is_on_one_rank() -> None:
    whole = build(SAMPLES, [0, 1, 2], align=8, sequence_multiple=8)
    shares = [cut_microbatch(whole, rank, 4, spatial_merge_size=2) for rank in range(4)]
    for name in ("policy_weights_T", "kl_token_weights_T", "response_mask_T"):
        found = sum(float(getattr(share, name).sum()) for share in shares)
        assert found == pytest.approx(float(getattr(whole, name).sum()))
    places = torch.cat([share.places_T for share in shares if share.places_T is not None])
    assert sorted(places.tolist()) == list(range(len(whole.input_ids_T)))


def test_an_image_goes_where_its_tokens_are() -> None:
    whole = build(SAMPLES, [1, 2], **PACKED)  # 7 12 99 13 | dog, cat, cat: 99 99 99 8 14 0 0 0
    assert whole.image_positions_K is not None and whole.image_positions_K.tolist() == [4, 5, 6]
    first, second = (cut_microbatch(whole, rank, 2, spatial_merge_size=2) for rank in range(2))
    assert first.image_positions_K is not None and first.image_features_K is not None
    assert first.input_ids_T[first.image_positions_K].tolist() == [IMAGE, IMAGE]
    assert first.image_features_K.tolist() == [0, 1] and first.image_grids == ((1, 2, 2), (1, 4, 2))
    assert second.image_positions_K is not None and second.image_features_K is not None
    assert second.input_ids_T.tolist() == [12, IMAGE, IMAGE, 8, 14, 0]  # the first of them is a response's: text
    assert second.image_positions_K.tolist() == [2]
    assert second.image_features_K.tolist() == [1] and second.image_grids == ((1, 4, 2),)
    assert second.pixel_values_LC is not None and second.pixel_values_LC.unique().tolist() == [1.0]  # the cat's


def test_a_rank_without_a_token_of_an_image_has_none() -> None:
    whole = build(SAMPLES, [0], sequence_multiple=16)
    shares = [cut_microbatch(whole, rank, 4, spatial_merge_size=2) for rank in range(4)]
    assert [share.image_positions_K is not None for share in shares] == [True, True, False, False]
    assert shares[2].pixel_values_LC is None and shares[2].image_grids == ()
    assert shares[1].image_features_K is not None and shares[1].image_features_K.tolist() == [1]


def test_one_rank_keeps_the_whole() -> None:
    whole = build(SAMPLES, [0, 1])
    assert cut_microbatch(whole, 0, 1, spatial_merge_size=2) is whole
