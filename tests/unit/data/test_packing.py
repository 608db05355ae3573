"""The packing plan and the packed tensors, on sequences small enough to write out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from megatron_apo.data.packing import build_microbatch
from megatron_apo.records import Microbatch, PromptImage, TrainingSample

IMAGE, VIDEO = 99, 98  # their tokens
CAT = PromptImage("cat.png", "aa", (1, 4, 2))  # 8 patches, 2 image tokens after the 2 x 2 merge
DOG = PromptImage("dog.png", "bb", (1, 2, 2))  # 4 patches, 1 image token
PIXELS = {"aa": torch.full((8, 3), 1.0), "bb": torch.full((4, 3), 2.0)}


def text_positions(sample: TrainingSample) -> torch.Tensor:
    return torch.arange(sample.length).expand(3, -1)


def build(samples: list[TrainingSample], indices: list[int], **options: object) -> Microbatch:
    settings: dict[str, object] = {
        "position_ids": text_positions,
        "pixel_values": lambda image: PIXELS[image.sha256],
        "vision_token_ids": (IMAGE, VIDEO),
        "spatial_merge_size": 2,
    }
    return build_microbatch(samples, indices, **{**settings, **options})  # type: ignore[arg-type]


SAMPLES = [
    TrainingSample(
        prompt_ids=(5, IMAGE, IMAGE, 6),
        response_ids=(10, 11),
        images=(CAT,),
        advantage=0.5,
        kl_weight=0.25,
        policy_weight=0.1,
        kl_token_weight=0.2,
        rollout_logprobs=(-1.0, -2.0),
    ),
    TrainingSample((7,), (12, IMAGE, 13), (), advantage=-1.0, policy_weight=0.3, rollout_logprobs=(-3.0, -4.0, -5.0)),
    TrainingSample((IMAGE, IMAGE, IMAGE, 8), (14,), (DOG, CAT), advantage=2.0, policy_weight=0.4),
]


def test_a_video_is_placed_like_an_image() -> None:
    clip = PromptImage("clip.mp4", "cc", (2, 2, 2), seconds_per_grid=0.5)
    samples = [TrainingSample((5, VIDEO, VIDEO, 6, IMAGE), (10, VIDEO), (clip, DOG)), *SAMPLES]
    pixels = PIXELS | {"cc": torch.full((8, 3), 3.0)}
    batch = build(samples, [0, 2], pixel_values=lambda image: pixels[image.sha256])
    assert batch.image_grids == ((2, 2, 2), (1, 2, 2))
    assert batch.image_positions_K is not None and batch.image_features_K is not None
    assert batch.pixel_values_LC is not None
    assert batch.image_positions_K.tolist() == [1, 2, 4]
    assert batch.image_features_K.tolist() == [0, 1, 2]
    faster = [samples[0], replace(samples[0], images=(replace(clip, seconds_per_grid=0.25), DOG))]
    assert build(faster, [0, 1], with_pixels=False).image_grids == ((2, 2, 2), (1, 2, 2), (2, 2, 2))
    assert batch.pixel_values_LC[:, 0].tolist() == [3.0] * 8 + [2.0] * 4


def test_labels_masks_and_weights_by_hand() -> None:
    batch = build(SAMPLES, [0, 1])
    assert batch.input_ids_T.tolist() == [5, IMAGE, IMAGE, 6, 10, 11, 7, 12, IMAGE, 13]
    assert batch.labels_T.tolist() == [IMAGE, IMAGE, 6, 10, 11, 0, 12, IMAGE, 13, 0]
    # "6" predicts 10, "10" predicts 11; "7" predicts 12, and so on; the last tokens predict nothing
    assert batch.response_mask_T.int().tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 6, 10] and batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 6
    assert batch.advantages_T.tolist() == [0, 0, 0, 0.5, 0.5, 0, -1, -1, -1, 0]
    torch.testing.assert_close(batch.policy_weights_T, torch.tensor([0, 0, 0, 0.1, 0.1, 0, 0.3, 0.3, 0.3, 0]))
    torch.testing.assert_close(batch.kl_token_weights_T, torch.tensor([0, 0, 0, 0.2, 0.2, 0, 0, 0, 0, 0]))
    assert batch.kl_weights_T.tolist() == [0, 0, 0, 0.25, 0.25, 0, 1, 1, 1, 0]
    assert batch.rollout_logprobs_T.tolist() == [0, 0, 0, -1, -2, 0, -3, -4, -5, 0]
    assert batch.position_ids_3T.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]] * 3
    assert batch.sample_indices == (0, 1)


def test_images_are_encoded_once_and_never_found_in_a_response() -> None:
    asked: list[str] = []

    def pixel_values(image: PromptImage) -> torch.Tensor:
        asked.append(image.sha256)
        return PIXELS[image.sha256]

    batch = build(SAMPLES, [0, 1, 2], pixel_values=pixel_values)
    assert asked == ["aa", "bb"]
    assert batch.image_grids == ((1, 4, 2), (1, 2, 2))
    assert batch.image_positions_K is not None and batch.image_features_K is not None
    # the sampled image token at position 8 is not among them; sample 2 shows the dog (row 2), then the cat (rows 0, 1)
    assert batch.image_positions_K.tolist() == [1, 2, 10, 11, 12]
    assert batch.image_features_K.tolist() == [0, 1, 2, 0, 1]
    assert batch.pixel_values_LC is not None
    assert batch.pixel_values_LC[:, 0].tolist() == [1.0] * 8 + [2.0] * 4
    without = build(SAMPLES, [0], with_pixels=False)
    assert without.pixel_values_LC is None and without.image_grids == ((1, 4, 2),)
    text_only = build(SAMPLES, [1])
    assert text_only.image_positions_K is None and text_only.pixel_values_LC is None


def test_image_tokens_without_their_image_are_refused() -> None:
    sample = TrainingSample((IMAGE, 1), (2,), (CAT,))
    with pytest.raises(ValueError, match=r"1 image tokens, its images \(cat\.png\) give 2"):
        build([sample], [0])


@pytest.mark.parametrize(("align", "padding"), [(4, 2), (5, 0), (16, 6)])
def test_the_padded_tail_is_a_sequence_without_weight(align: int, padding: int) -> None:
    batch = build(SAMPLES, [0, 1], align=align)
    assert len(batch.input_ids_T) == 10 + padding and len(batch.input_ids_T) % align == 0
    assert batch.cu_seqlens.tolist() == [0, 6, 10] + ([10 + padding] if padding else [])
    assert batch.labels_T[10:].tolist() == [0] * padding
    assert not batch.response_mask_T[10:].any()
    assert not batch.policy_weights_T[10:].any()
    assert batch.position_ids_3T[:, 10:].tolist() == [list(range(padding))] * 3
    assert batch.sample_indices == (0, 1)


def test_each_sequence_is_padded_at_its_end() -> None:
    plain, batch = build(SAMPLES, [1, 2]), build(SAMPLES, [1, 2], sequence_multiple=4, align=6)
    assert batch.input_ids_T.tolist() == [7, 12, IMAGE, 13, IMAGE, IMAGE, IMAGE, 8, 14, 0, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 4, 12] and batch.max_seqlen == 8  # 12 is a multiple of 4 and of 6
    assert batch.response_mask_T.int().tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert batch.labels_T[7] == 14 and not batch.labels_T[9:].any()
    assert batch.image_positions_K is not None and batch.image_positions_K.tolist() == [4, 5, 6]
    for name in ("policy_weights_T", "advantages_T", "rollout_logprobs_T"):
        assert torch.equal(getattr(batch, name)[:9], getattr(plain, name)) and not getattr(batch, name)[9:].any()
    assert torch.equal(batch.position_ids_3T[:, :9], plain.position_ids_3T)
    assert len(build(SAMPLES, [], sequence_multiple=4, align=6).input_ids_T) == 12


@pytest.mark.parametrize(("align", "tokens"), [(1, 1), (4, 4)])
def test_a_rank_without_samples_gets_padding_alone(align: int, tokens: int) -> None:
    batch = build(SAMPLES, [], align=align)
    assert batch.input_ids_T.tolist() == [0] * tokens
    assert batch.cu_seqlens.tolist() == [0, tokens] and batch.max_seqlen == tokens
    assert batch.sample_indices == ()
    assert not batch.response_mask_T.any() and not batch.policy_weights_T.any()
    assert batch.position_ids_3T.tolist() == [list(range(tokens))] * 3
    assert batch.pixel_values_LC is None and batch.image_positions_K is None


def test_packing_is_quick() -> None:
    sample = TrainingSample((1,) * 20 + (IMAGE, IMAGE) + (2,) * 10, (3,) * 20, (CAT,), rollout_logprobs=(-1.0,) * 20)
    positions = text_positions(sample)
    build([sample] * 256, list(range(256)), position_ids=lambda _: positions)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        build([sample] * 256, list(range(256)), position_ids=lambda _: positions)
        seconds.append(time.perf_counter() - start)
    print(f"256 sequences of 52 tokens: {min(seconds) * 1e3:.1f} ms")
    assert min(seconds) < 0.05  # about 6 ms on an idle core
