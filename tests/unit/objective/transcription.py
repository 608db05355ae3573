"""The papers' mathematics once more, a response and a token at a time: what the product's loss is held against.

Written from the formulas alone and shares no code with the product: plain loops over lists in Python's floats, and
autograd through float64 scalars for the gradient. APO as View-R1's code computes it (arXiv:2506.21655), GRPO
(arXiv:2402.03300), GRPO-D (arXiv:2503.16081, eq. 3), Dr. GRPO (arXiv:2503.20783), DAPO (arXiv:2503.14476), RLOO
(arXiv:2402.14740), GSPO (arXiv:2507.18071, eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Answer:
    """One response as it was drawn and judged; log-probabilities of its tokens, the end token's included.

    ``ended``: not cut by the cap. ``kept`` is False for one that never came to its end for reasons of the engine.
    ``corrections``: what each token's PG is multiplied by for the mismatch of trainer and engine, where anything is.
    """

    right: bool
    well_formed: bool
    ended: bool
    kept: bool
    policy: tuple[float, ...]
    old: tuple[float, ...]
    reference: tuple[float, ...]
    corrections: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What the papers differ in. ``mean``: "microbatches of two", "tokens", "sequences", "sums" or "cap"."""

    mean: str
    scaled: bool = True
    epsilon: float = 1e-9
    others: bool = False  # the baseline is the mean of the other responses
    stcr: bool = False
    dads: bool = False
    kl: str = "none"  # "none", "loss" (k3) or "reward" (k1)
    low: float = 0.2
    high: float = 0.2
    whole_responses: bool = False  # ratios of responses, not of tokens
    overlong: bool = False
    only_contrast: bool = False


APO = Recipe("tokens", stcr=True, dads=True, kl="loss")
RECIPES = {
    "view_r1_exact": Recipe("microbatches of two", stcr=True, dads=True, kl="loss"),
    "apo": APO,
    "apo_dads_only": Recipe("tokens", dads=True, kl="loss"),
    "apo_stcr_only": Recipe("tokens", stcr=True, kl="loss"),
    "grpo": Recipe("sequences", epsilon=1e-4, kl="loss"),
    "grpo_d": Recipe("sequences", epsilon=1e-4, kl="loss"),
    "dr_grpo": Recipe("cap", scaled=False),
    "dapo": Recipe("tokens", high=0.28, overlong=True, only_contrast=True),
    "rloo": Recipe("sums", scaled=False, others=True, kl="reward"),
    "gspo": Recipe("sequences", epsilon=1e-4, low=3e-4, high=4e-4, whole_responses=True),
}


def coefficient(name: str, step: int, steps: int) -> float:
    """The KL coefficient of a preset: APO's constant, GRPO's, GRPO-D's equation 3 for visual counting, RLOO's here."""
    if name != "grpo_d":
        return {"grpo": 0.04, "rloo": 0.05}.get(name, 1e-3)
    low, high, explored = 0.04, 0.10, round(0.3 * steps)
    middle = (low + high) / 2
    if step <= explored:
        return middle - (middle - low) * step / explored
    return low + (high - low) * (step - explored) / (steps - explored)


def reward(answer: Answer, recipe: Recipe, cap: int, kl_coefficient: float) -> float:
    """accuracy + format, 1 and 0.5; DAPO's punishment over the last fifth before the cap; RLOO's KL, summed."""
    total = (1.0 if answer.right else 0.0) + (0.5 if answer.well_formed else 0.0)
    tokens = len(answer.old)
    if recipe.overlong:
        buffer = 0.2 * cap
        if tokens > cap:
            total -= 1
        elif tokens > cap - buffer:
            total += ((cap - buffer) - tokens) / buffer
    if recipe.kl == "reward":
        total -= kl_coefficient * sum(o - r for o, r in zip(answer.old, answer.reference, strict=True))
    return total


def group_terms(group: Sequence[Answer], rewards: Sequence[float], recipe: Recipe) -> tuple[list[float], list[float]]:
    """A' and k of each response of one prompt."""
    count = len(group)
    mean = sum(rewards) / count
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (count - 1)) if count > 1 else 0.0
    difficulty = 1 - sum(answer.right for answer in group) / count
    right_lengths = [len(answer.old) for answer in group if answer.right]
    advantages, factors = [], []
    for answer, r in zip(group, rewards, strict=True):
        if count == 1 or max(rewards) == min(rewards):
            advantage = 0.0  # instead of rounding errors divided by epsilon
        elif recipe.others:
            advantage = r - (sum(rewards) - r) / (count - 1)
        else:
            advantage = (r - mean) / (spread + recipe.epsilon) if recipe.scaled else r - mean
        if recipe.stcr and right_lengths and not answer.right:
            excess = max(len(answer.old) - sum(right_lengths) / len(right_lengths), 0.0)
            advantage *= 1 + (1 - 1.00001 ** (-excess))
        factor = 1.0
        if recipe.dads and advantage > 0 and 0 < difficulty < 1:
            factor = 1 - math.exp(-math.exp(1) * (1 - difficulty))
        advantages.append(advantage)
        factors.append(factor)
    return advantages, factors


def surrogate(
    logprobs: list[torch.Tensor], old: Sequence[float], advantage: float, recipe: Recipe
) -> list[torch.Tensor]:
    """PG of each token."""
    log_ratios = [new - before for new, before in zip(logprobs, old, strict=True)]
    if recipe.whole_responses:
        log_ratios = [torch.stack(log_ratios).mean()] * len(log_ratios)
    losses = []
    for log_ratio in log_ratios:
        ratio = torch.exp(log_ratio)
        clipped = torch.clamp(ratio, 1 - recipe.low, 1 + recipe.high)
        losses.append(-torch.minimum(ratio * advantage, clipped * advantage))
    return losses


def k3(logprobs: list[torch.Tensor], reference: Sequence[float]) -> list[torch.Tensor]:
    """exp(x) - 1 - x of each token, x = log of reference over policy."""
    found = []
    for new, fixed in zip(logprobs, reference, strict=True):
        x = fixed - new
        found.append(torch.exp(x) - 1 - x)
    return found


def _average(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


# Of a response: PG of each token, KL of each token, k.
Terms = tuple[list[torch.Tensor], list[torch.Tensor], float]


def combined(terms: Sequence[Terms], recipe: Recipe, *, cap: int, kl_coefficient: float) -> torch.Tensor:
    """The loss of the responses of an update, in their order."""

    def kl_of(chosen: Sequence[Terms]) -> torch.Tensor:
        if recipe.kl != "loss":
            return torch.zeros((), dtype=torch.float64)
        return kl_coefficient * _average([factor * _average(kl) for _, kl, factor in chosen])

    if recipe.mean == "microbatches of two":
        losses = []
        for start in range(0, len(terms), 2):
            chosen = terms[start : start + 2]
            losses.append(_average([one for policy, _, _ in chosen for one in policy]) + kl_of(chosen))
        return _average(losses)
    if recipe.mean == "tokens":
        return _average([one for policy, _, _ in terms for one in policy]) + kl_of(terms)
    if recipe.mean == "sequences":
        return _average([_average(policy) for policy, _, _ in terms]) + kl_of(terms)
    loss = _average([_average(policy) * len(policy) for policy, _, _ in terms]) + kl_of(terms)
    return loss / cap if recipe.mean == "cap" else loss


@dataclass(frozen=True)
class Written:
    """The loss of an update; the sum of the same terms without their signs, which it may cancel down from; and the
    gradient with respect to each token's log-probability, by prompt and response."""

    loss: float
    size: float
    gradients: list[list[list[float]]]


def update_loss(prompts: Sequence[Sequence[Answer]], recipe: Recipe, *, cap: int, kl_coefficient: float) -> Written:
    """One update of these prompts; responses that are not kept are nowhere in it."""
    leaves = [
        [[torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in answer.policy] for answer in group]
        for group in prompts
    ]
    terms: list[Terms] = []
    for group, group_leaves in zip(prompts, leaves, strict=True):
        kept = [number for number, answer in enumerate(group) if answer.kept]
        answers = [group[number] for number in kept]
        if not answers:
            continue
        rewards = [reward(answer, recipe, cap, kl_coefficient) for answer in answers]
        if recipe.only_contrast and max(rewards) == min(rewards):
            continue
        advantages, factors = group_terms(answers, rewards, recipe)
        for number, answer, advantage, factor in zip(kept, answers, advantages, factors, strict=True):
            logprobs = group_leaves[number]
            policy = surrogate(logprobs, answer.old, advantage, recipe)
            if answer.corrections:
                policy = [times * one for times, one in zip(answer.corrections, policy, strict=True)]
            terms.append((policy, k3(logprobs, answer.reference), factor))
    loss = combined(terms, recipe, cap=cap, kl_coefficient=kl_coefficient)
    loss.backward()
    unsigned: list[Terms] = [([one.detach().abs() for one in policy], kl, factor) for policy, kl, factor in terms]
    return Written(
        loss.item(),
        combined(unsigned, recipe, cap=cap, kl_coefficient=kl_coefficient).item(),
        [[[0.0 if v.grad is None else v.grad.item() for v in answer] for answer in group] for group in leaves],
    )
