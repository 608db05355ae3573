"""Bugs put in on purpose, each once made by somebody: the property has to fail with each of them.

A rank applies one to its own process before it builds anything; nothing is undone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from megatron_apo.training import microbatches, setup
from model_providers.qwen_vl import vision
from tests.properties import ranks


def _after_loading(spoil: Callable[[Any], None]) -> None:
    load = setup.load_hf_checkpoint

    def load_and_spoil(model: Any, directory: Any, **ranks_of_model: Any) -> None:
        load(model, directory, **ranks_of_model)
        with torch.no_grad():
            spoil(model)

    setup.load_hf_checkpoint = load_and_spoil  # type: ignore[assignment]


def swap_query_and_key() -> None:
    """In the vision tower's fused rows."""

    def spoil(model: Any) -> None:
        for layer in model.vision_model.layers if model.vision_model else ():
            for tensor in layer.self_attention.linear_qkv.parameters():
                rows = tensor.view(-1, 3, layer.self_attention.hidden_size_per_attention_head, *tensor.shape[1:])
                rows[:, :2] = rows[:, :2].flip(1)

    _after_loading(spoil)


def swap_query_and_key_of_language() -> None:
    """The last query head of each group of the language model, and its key."""

    def spoil(model: Any) -> None:
        for layer in model.language_model.decoder.layers:
            attention = layer.self_attention
            groups = attention.num_query_groups_per_partition
            for tensor in attention.linear_qkv.parameters():
                rows = tensor.view(groups, -1, attention.hidden_size_per_attention_head, *tensor.shape[1:])
                rows[:, -3:-1] = rows[:, -3:-1].flip(1)

    _after_loading(spoil)


def leave_a_bias_of_language_at_zero() -> None:
    """One of the language model's query, key and value rows."""

    def spoil(model: Any) -> None:
        model.language_model.decoder.layers[0].self_attention.linear_qkv.bias.zero_()

    _after_loading(spoil)


def leave_a_bias_at_zero() -> None:
    """One of the vision tower's, as a loader that forgot it would."""

    def spoil(model: Any) -> None:
        if model.vision_model:
            model.vision_model.layers[0].self_attention.linear_proj.bias.zero_()

    _after_loading(spoil)


def skip_the_window_permutation() -> None:
    """Patches stay in the images' order, cut where the windows end."""
    plan_windows = vision.plan_windows

    def unordered(*arguments: Any) -> Any:
        plan = plan_windows(*arguments)
        return replace(plan, order_M=torch.arange(len(plan.order_M)))

    vision.plan_windows = unordered  # type: ignore[assignment]


def _positions(spoil: Callable[..., torch.Tensor]) -> None:
    positions = microbatches.mrope_position_ids
    microbatches.mrope_position_ids = lambda *arguments: spoil(positions, *arguments)  # type: ignore[assignment]


def drop_the_seconds_of_videos() -> None:
    """Every temporal patch a second after the one before it."""
    _positions(lambda positions, *known, seconds=1.0: positions(*known[:4], [s and seconds for s in known[4]]))


def restart_positions() -> None:
    """The response counts from 0 again."""

    def restarted(positions: Any, prompt: Any, *known: Any) -> torch.Tensor:
        found: torch.Tensor = positions(prompt, *known).clone()
        found[:, len(prompt) :] -= found[:, len(prompt) : len(prompt) + 1].clone()
        return found

    _positions(restarted)


def restart_at_every_boundary() -> None:
    """Each packed sequence takes the row's first positions, as Megatron's rotary code for "thd" does."""
    build = microbatches.build_microbatch

    def restarted(*arguments: Any, **settings: Any) -> Any:
        batch = build(*arguments, **settings)
        positions = batch.position_ids_3T.clone()
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            positions[:, start:end] = batch.position_ids_3T[:, : end - start]
        return replace(batch, position_ids_3T=positions)

    microbatches.build_microbatch = restarted  # type: ignore[assignment]


BUGS: dict[str, Callable[[], None]] = {
    "swap query and key": swap_query_and_key,
    "leave a bias at zero": leave_a_bias_at_zero,
    "swap query and key of the language model": swap_query_and_key_of_language,
    "leave a bias of the language model at zero": leave_a_bias_of_language_at_zero,
    "skip the window permutation": skip_the_window_permutation,
    "drop the seconds of videos": drop_the_seconds_of_videos,
    "restart positions": restart_positions,
    "restart positions at every boundary": restart_at_every_boundary,
}


def check_with_bug(directory: Any, *, bug: str, **arguments: Any) -> None:
    """``ranks.check`` with ``bug`` put in."""
    BUGS[bug]()
    ranks.check(directory, **arguments)
