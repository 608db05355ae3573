"""Group-relative advantages. Shape suffixes: P prompts, G responses per prompt."""

from __future__ import annotations

import torch

BASELINES = ("group", "leave_one_out")


def group_advantages(
    rewards_PG: torch.Tensor,
    *,
    epsilon: float = 1e-9,
    unbiased: bool = True,
    scale: bool = True,
    baseline: str = "group",
    valid_PG: torch.Tensor | None = None,
) -> torch.Tensor:
    """(r - baseline) / (std + epsilon) of each row's valid responses: [P, G], rewards' dtype (GRPO, arXiv:2402.03300).

    ``baseline``: the mean of the row ("group"), or of its other responses ("leave_one_out": RLOO, arXiv:2402.14740).

    A row whose valid rewards are all equal, or with fewer than two of them, gets exactly 0: rounding in the mean over
    a tiny epsilon would otherwise make large advantages out of nothing. Responses that are not valid get 0 and count in
    neither the mean nor the standard deviation. ``unbiased``: divide the variance by n - 1. ``scale``: divide by the
    standard deviation at all (False: Dr. GRPO, arXiv:2503.20783). Raises ValueError for groups of one, another
    baseline and a valid reward that is not finite.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline}: must be one of {', '.join(BASELINES)}")
    check_groups("rewards_PG", rewards_PG)
    valid = validity(rewards_PG, valid_PG)
    if not bool((torch.isfinite(rewards_PG) | ~valid).all()):
        raise ValueError("rewards_PG: holds a reward that is not finite; mark such a response invalid in valid_PG")
    dtype = rewards_PG.dtype if rewards_PG.is_floating_point() else torch.float32
    rewards = rewards_PG.double().masked_fill(~valid, 0.0)
    count = valid.sum(dim=1, keepdim=True)
    centred = (rewards - rewards.sum(dim=1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0.0)
    advantages = centred
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1)
        advantages = centred * count / (count - 1).clamp(min=1)
    if scale:
        divisor = (count - int(unbiased)).clamp(min=1)
        deviation = (centred.square().sum(dim=1, keepdim=True) / divisor).sqrt()
        advantages = advantages / (deviation + epsilon)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    # Written as "not above": a row without a valid response has highest -inf and lowest +inf. The fill also keeps
    # 0 / (0 + epsilon) with epsilon 0 from becoming nan.
    return advantages.masked_fill(~valid | ~(highest > lowest), 0.0).to(dtype)


def check_groups(name: str, values_PG: torch.Tensor) -> None:
    """ValueError unless ``values_PG`` is [P, G] with G of at least 2."""
    if values_PG.ndim != 2:
        raise ValueError(f"{name}: has shape {tuple(values_PG.shape)}; must be [prompts, responses per prompt]")
    if values_PG.shape[1] < 2:
        raise ValueError(
            f"{name}: has groups of {values_PG.shape[1]}; must be at least 2; a group of one always has zero advantage"
        )


def validity(like_PG: torch.Tensor, valid_PG: torch.Tensor | None) -> torch.Tensor:
    """``valid_PG`` as booleans, all True when None; ValueError when its shape is not that of ``like_PG``."""
    if valid_PG is None:
        return torch.ones(like_PG.shape, dtype=torch.bool, device=like_PG.device)
    return boolean("valid_PG", valid_PG, like_PG)


def boolean(name: str, values_PG: torch.Tensor, like_PG: torch.Tensor) -> torch.Tensor:
    """0/1 or boolean ``values_PG`` as booleans; ValueError when its shape is not that of ``like_PG``."""
    if values_PG.shape != like_PG.shape:
        raise ValueError(f"{name}: has shape {tuple(values_PG.shape)}; must be {tuple(like_PG.shape)} like the others")
    return values_PG.bool()
