"""Each preset's loss and gradient equal the papers' formulas, transcribed without any of the product's code; and the
check notices what people get wrong: a part of APO off, on the wrong responses, a mean of local means.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_apo.config import Config
from megatron_apo.config_loading import load_config
from megatron_apo.data import distribution
from megatron_apo.objective import objective
from megatron_apo.records import ReplicaWork
from megatron_apo.training import forward_step
from tests.unit.objective.as_trained import Update, train
from tests.unit.objective.transcription import RECIPES, Answer, coefficient, update_loss

CAP, STEPS, UPDATES = 24, 20, 2
LIMIT = 1e-6
DRAWS = 4


def _answer(dice: random.Random, *, right: bool, well_formed: bool, tokens: int, **known: bool) -> Answer:
    old = [-2.0 + dice.gauss(0, 0.8) for _ in range(tokens)]
    # Some tokens have moved a little, some so far that any clip range cuts them.
    policy = [value + dice.choice([0.0, dice.gauss(0, 1e-4), dice.gauss(0, 0.3)]) for value in old]
    reference = [value + dice.gauss(0, 0.4) for value in old]
    flags = {"ended": True, "kept": True} | known
    return Answer(right, well_formed, **flags, policy=tuple(policy), old=tuple(old), reference=tuple(reference))


def _group(dice: random.Random, size: int, share: float, *, aborts: bool) -> list[Answer]:
    group = []
    for _ in range(size):
        tokens, kind = dice.choice([1, 2, dice.randint(3, CAP)]), dice.random()
        if kind < 0.15:
            group.append(_answer(dice, right=False, well_formed=False, tokens=CAP, ended=False))
        elif kind < 0.25 and aborts:
            group.append(_answer(dice, right=False, well_formed=False, tokens=tokens, kept=False))
        else:
            right, well_formed = dice.random() < share, dice.random() < 0.7
            group.append(_answer(dice, right=right, well_formed=well_formed, tokens=tokens))
    return group


def prompts_of(number: int, *, aborts: bool) -> list[list[Answer]]:
    """Random groups and, in every draw, all right, all wrong, all cut, equal rewards, and one response left alone.

    Without ``aborts`` as the authors' batches are: an even number of responses, all of them kept.
    """
    dice = random.Random(number)
    size = dice.choice([4, 8] if not aborts else [3, 5, 8])

    def made(right: bool, well_formed: Callable[[int], bool], **known: bool) -> list[Answer]:
        tokens = [CAP if known.get("ended") is False else dice.randint(1, CAP) for _ in range(size)]
        return [
            _answer(dice, right=right, well_formed=well_formed(place), tokens=count, **known)
            for place, count in enumerate(tokens)
        ]

    alone = made(True, bool)
    if aborts:
        alone = [alone[0], *(replace(answer, kept=False) for answer in alone[1:])]
    groups = [
        *(_group(dice, size, share, aborts=aborts) for share in (0.2, 0.5, 0.5, 0.8)),
        made(True, lambda place: True),
        made(True, lambda place: place > 0),
        made(False, lambda place: place > 0),
        made(False, lambda place: False, ended=False),
        alone,
    ]
    dice.shuffle(groups)
    return [*groups, _group(dice, size, 0.5, aborts=aborts)]


def config_of(name: str) -> Config:
    return load_config(None, [f"--objective.name={name}", f"--sampling.max_tokens={CAP}", f"--run.steps={STEPS}"])


def largest_error(updates: Sequence[Update], prompts: list[list[Answer]], name: str, step: int) -> float:
    """Of losses, relative to the sum of their terms' sizes (advantages cancel), and of gradients, a response's relative
    to its own norm, or a thousandth of the whole's."""
    found = []
    for number, update in enumerate(updates):
        first, last = len(prompts) * number // UPDATES, len(prompts) * (number + 1) // UPDATES
        times = coefficient(name, step, STEPS)
        written = update_loss(prompts[first:last], RECIPES[name], cap=CAP, kl_coefficient=times)
        expected = {
            (first + p, g): torch.tensor(gradient, dtype=torch.float64)
            for p, group in enumerate(written.gradients)
            for g, gradient in enumerate(group)
        }
        whole = torch.cat(list(expected.values())).norm()
        found.append(abs(update.loss - written.loss) / written.size)
        for place, gradient in expected.items():
            given = update.gradients.get(place, torch.zeros_like(gradient))  # a response that was left out
            found.append(float((given - gradient).norm() / max(gradient.norm(), 1e-3 * whole)))
        assert update.gradients.keys() <= expected.keys()
    return max(found)


def check(name: str, number: int) -> float:
    """The largest error of a draw, at a step of its own."""
    prompts, step = prompts_of(number, aborts=name != "view_r1_exact"), (7 * number) % (STEPS + 1)
    return largest_error(train(prompts, config_of(name), updates=UPDATES, step=step), prompts, name, step)


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_equals_its_paper(name: str) -> None:
    errors = [check(name, number) for number in range(DRAWS)]
    assert max(errors) <= LIMIT, errors


def _without_dads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "dads_kl_weights", lambda advantages, correct, **known: torch.ones_like(advantages))


def _without_stcr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "stcr_weights", lambda lengths, correct, *, advantages_PG, **known: advantages_PG**0)


def _dads_on_wrong_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = objective.dads_kl_weights

    def changed(advantages: torch.Tensor, correct: torch.Tensor, **known: Any) -> torch.Tensor:
        return whole((~correct).to(advantages.dtype), correct, **known)

    monkeypatch.setattr(objective, "dads_kl_weights", changed)


def _dads_by_correctness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer is right instead of where A' > 0: a wrong, well-formed response may have that too."""
    whole = objective.dads_kl_weights
    monkeypatch.setattr(
        objective, "dads_kl_weights", lambda advantages, correct, **known: whole(correct.double(), correct, **known)
    )


def _unweighted_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    """DADS's factors are made and never used."""
    whole = forward_step.token_objective

    def changed(*given: Any, kl_weights_T: torch.Tensor, **known: Any) -> Any:
        return whole(*given, kl_weights_T=torch.ones_like(kl_weights_T), **known)

    monkeypatch.setattr(forward_step, "token_objective", changed)


def _local_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank divides by its own tokens, and the ranks are averaged."""
    whole = distribution.distribute

    def changed(*given: Any, **known: Any) -> list[ReplicaWork]:
        works = []
        for work in whole(*given, **known):
            samples = list(work.samples)
            for update in work.updates:
                own = [index for microbatch in update for index in microbatch]
                tokens = sum(len(samples[index].response_ids) for index in own)
                for index in own:
                    samples[index] = replace(samples[index], policy_weight=1 / (tokens * known["data_parallel"]))
            works.append(replace(work, samples=tuple(samples)))
        return works

    monkeypatch.setattr(distribution, "distribute", changed)


MUTATIONS = {
    "DADS off": _without_dads,
    "STCR off": _without_stcr,
    "DADS on wrong samples": _dads_on_wrong_samples,
    "DADS by correctness": _dads_by_correctness,
    "KL unweighted": _unweighted_kl,
    "local mean": _local_mean,
}


@pytest.mark.parametrize("name", ["view_r1_exact", "apo"])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_noticed(mutation: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[mutation](monkeypatch)
    errors = [check(name, number) for number in range(2)]
    assert max(errors) > 10 * LIMIT, errors
