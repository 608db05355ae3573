"""What flows through the loop: Prompt -> Rollout -> RolloutGroup -> TrainingSample -> Microbatch.

Frozen and versioned, plain Python values and torch tensors only, so that every record can be written to disk, sent
to another process as JSON plus tensors, and read back. A change of a field's meaning raises ``RECORD_VERSION``.

Shape suffixes: T packed tokens, N packed sequences, K image tokens, L patches, C values per patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

RECORD_VERSION = 1

FinishReason = Literal["stop", "length", "abort"]
Outcome = Literal["correct", "wrong", "no_answer", "grader_error"]
Dropped = Literal["", "no_contrast", "surplus"]


@dataclass(frozen=True)
class PromptImage:
    """One image or video of a prompt, by reference: pixels never travel, whoever needs them decodes ``path``.

    ``sha256`` is of the file's bytes, hexadecimal; ``grid_thw`` counts vision patches (time, height, width) before
    the spatial merge. ``seconds_per_grid``: of a video, the seconds from one temporal patch to the next (its
    ``second_per_grid_ts``); 0 for a still image.
    """

    path: str
    sha256: str
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """One data row, tokenised once.

    ``token_ids`` are the expanded ids (one ``<|image_pad|>`` per merged patch); ``collapsed_ids`` hold one
    ``<|image_pad|>`` per image, the form an engine expands itself. ``demonstration`` is the response to imitate in
    supervised training, empty where the row has none. ``choices``: the texts of a multiple-choice question's options,
    empty where the row lists none apart from its question.
    """

    id: str
    token_ids: tuple[int, ...]
    collapsed_ids: tuple[int, ...]
    images: tuple[PromptImage, ...]
    question: str
    gold: str
    demonstration: str = ""
    category: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """One sampled response. ``token_ids`` include the end-of-sequence token when ``finish_reason`` is "stop".

    ``logprobs`` are the sampling distribution's own (temperature and forbidden tokens applied), one per token;
    ``weight_version`` is the version of the weights that sampled it.
    """

    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    weight_version: int


@dataclass(frozen=True)
class Score:
    """The rewards of one response: the weighted sum, its parts by name, and correctness as a field of its own."""

    total: float
    parts: dict[str, float]
    outcome: Outcome

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def valid(self) -> bool:
        """False when the grader could not judge: such a response is left out of its group."""
        return self.outcome != "grader_error"


@dataclass(frozen=True)
class RolloutGroup:
    """The responses to one prompt, with their scores once scored (the same order).

    ``round``: of the step's draws, 0 the first, then refills. ``dropped``: why it is not trained on: its rewards are
    all equal ("no_contrast"), or enough others had come before it ("surplus"); empty where it is.
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...] = ()
    round: int = 0
    dropped: Dropped = ""


@dataclass(frozen=True)
class TrainingSample:
    """One sequence to train on: the prompt's ids, then the response's, with what the objective made of it.

    ``advantage`` is final (STCR applied). ``kl_weight`` is the DADS factor. ``policy_weight`` and ``kl_token_weight``
    are the reduction's weight of each response token, computed from the global batch before it is cut, so that
    summing ``weight * value`` over all tokens of all ranks gives the loss. ``rollout_logprobs`` is empty in
    supervised training.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    images: tuple[PromptImage, ...]
    advantage: float = 0.0
    kl_weight: float = 1.0
    policy_weight: float = 0.0
    kl_token_weight: float = 0.0
    rollout_logprobs: tuple[float, ...] = ()
    prompt_id: str = ""  # for messages

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Microbatch:
    """Several sequences packed into one (THD), ready for the model. All tensors share one device.

    Token t predicts ``labels_T[t]`` (the next token of its own sequence); ``response_mask_T[t]`` is True where that
    next token belongs to a response. Image features go to the rows ``image_positions_K``, taken from row
    ``image_features_K`` of the merged vision output (one image used by several sequences is encoded once).

    A context-parallel rank's share has fewer tokens; its ``cu_seqlens`` and ``max_seqlen`` are still those of the whole
    microbatch, and ``places_T`` says where in it each token is.
    """

    input_ids_T: torch.Tensor  # int64
    position_ids_3T: torch.Tensor  # int64, mrope (time, height, width)
    labels_T: torch.Tensor  # int64
    response_mask_T: torch.Tensor  # bool
    cu_seqlens: torch.Tensor  # int32 [N + 1]
    max_seqlen: int
    sample_indices: tuple[int, ...]
    advantages_T: torch.Tensor  # float32
    policy_weights_T: torch.Tensor  # float32, 0 outside the response
    kl_token_weights_T: torch.Tensor  # float32, 0 outside the response
    kl_weights_T: torch.Tensor  # float32
    rollout_logprobs_T: torch.Tensor  # float32, 0 outside the response
    old_logprobs_T: torch.Tensor | None = None  # float32
    ref_logprobs_T: torch.Tensor | None = None  # float32
    pixel_values_LC: torch.Tensor | None = None  # float32, unique images only
    image_grids: tuple[tuple[int, int, int], ...] = ()
    image_positions_K: torch.Tensor | None = None  # int64
    image_features_K: torch.Tensor | None = None  # int64
    places_T: torch.Tensor | None = None  # int64; None: this is the whole


@dataclass(frozen=True)
class ReplicaWork:
    """One data-parallel replica's part of a step.

    ``updates[u][m]`` lists the samples of microbatch m of optimizer update u; every replica has as many microbatches,
    none in an update without samples.
    ``scalars`` are the same on all replicas. ``numbers``: which of the step's samples each of ``samples`` is.
    """

    samples: tuple[TrainingSample, ...]
    updates: tuple[tuple[tuple[int, ...], ...], ...]
    scalars: dict[str, float]
    numbers: tuple[int, ...] = ()
