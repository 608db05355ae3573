"""The updates of a rollout: what is scored before them, and which tokens say how engine and trainer agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from megatron_apo.records import Microbatch, ReplicaWork, TrainingSample
from megatron_apo.training import update
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.update import Trainer
from tests.distributed.finite import differences, make_rl_trainer, make_work, snapshot
from tests.unit.model_providers.reference import make_checkpoint

Update = tuple[tuple[int, ...], ...]
FIRST, SECOND = ((0, 2), (4,)), ((1,), (3, 5))  # two updates of two microbatches each


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("policy"), tied=True))


def work_of(groups: Groups, *updates: Update) -> ReplicaWork:
    """The samples of the skipped-update tests, in these microbatches."""
    work = make_work(groups, [[[0]]])
    totals = {f"total_tokens/{number}": float(tokens_of(work, one)) for number, one in enumerate(updates)}
    return replace(work, updates=updates, scalars={"kl_coefficient": 0.1} | totals)


def tokens_of(work: ReplicaWork, update: Update) -> int:
    return sum(len(work.samples[index].response_ids) for batch in update for index in batch)


class Watched:
    """A trainer that keeps what it packed, what it scored with which model, and what the gate was shown."""

    def __init__(self, checkpoint: str, groups: Groups, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        self.trainer: Trainer
        self.state: TrainingState
        self.trainer, self.state = make_rl_trainer(checkpoint, groups, list(overrides))
        self.scored: list[tuple[str, list[tuple[int, ...]]]] = []
        self.gates: list[dict[str, float]] = []
        self.moved: list[list[str]] = []
        self.packed: list[Sequence[int]] = []
        self.pack = self.trainer._microbatch
        monkeypatch.setattr(self.trainer, "_microbatch", self._keep)
        self.start = snapshot(self.state)
        self.score = update.score_microbatches
        monkeypatch.setattr(update, "score_microbatches", self._watch)

    def _keep(self, samples: Sequence[TrainingSample], indices: Sequence[int]) -> Microbatch:
        self.packed.append(indices)
        return self.pack(samples, indices)

    def _watch(self, model: list[Any], batches: Sequence[Any], *arguments: Any) -> list[torch.Tensor] | None:
        kind = "policy" if model is self.state.model else "reference"
        self.scored.append((kind, [batch.sample_indices for batch in batches]))
        return self.score(model, batches, *arguments)

    def _gate(self, metrics: dict[str, float], worst_token: Callable[[], str]) -> None:
        self.gates.append(metrics)
        self.moved.append(differences(self.start, snapshot(self.state)))

    def step(self, work: ReplicaWork) -> list[dict[str, float]]:
        return self.trainer.step(work, self._gate)


def disagreement(watched: Watched, work: ReplicaWork, *updates: Update) -> tuple[float, float, int]:
    """Sum and maximum of |trainer - engine| over the response tokens of ``updates``, and their number; scored apart."""
    trainer = watched.trainer
    batches = [watched.pack(work.samples, indices) for one in updates for indices in one]
    scored = watched.score(watched.state.model, batches, trainer.settings.head, trainer.groups)
    assert scored is not None
    found = torch.cat(
        [
            (logprobs - batch.rollout_logprobs_T).abs()[batch.response_mask_T].double()
            for batch, logprobs in zip(batches, scored, strict=True)
        ]
    )
    return float(found.sum()), float(found.max()), len(found)


@pytest.mark.parametrize("old", ["engine", "trainer"])
def test_engine_log_probabilities_cost_no_forward_pass(
    old: str, checkpoint: str, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engine's, agreement is that of the first update, taken in its own forward before the optimizer moves."""
    watched = Watched(checkpoint, one_process, monkeypatch, f"--objective.old_logprobs={old}")
    work = work_of(one_process, FIRST, SECOND)
    measured = (FIRST,) if old == "engine" else (FIRST, SECOND)
    total, largest, count = disagreement(watched, work, *measured)
    results = watched.step(work)
    everything = [*FIRST, *SECOND]
    assert watched.scored == [("reference", everything)] + [("policy", everything)] * (old == "trainer")
    (gate,) = watched.gates
    assert watched.moved == [[]], "nothing has moved when agreement is judged"
    assert gate["gate/count"] == count == sum(tokens_of(work, one) for one in measured)
    assert gate["gate/sum"] == pytest.approx(total, rel=1e-5)
    assert gate["gate/max"] == pytest.approx(largest, rel=1e-5)
    assert [result["optimizer/skipped_updates"] for result in results] == [0.0, 0.0]
    assert "weight" in {name.split()[0] for name in differences(watched.start, snapshot(watched.state))}


@pytest.mark.parametrize("old", ["engine", "trainer"])
def test_later_epochs_are_neither_packed_nor_scored_again(
    old: str, checkpoint: str, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They train as if they were: copies of the samples, which are packed and scored apart, give the same numbers."""
    once = work_of(one_process, FIRST, SECOND, FIRST, SECOND)
    behind = len(once.samples)
    copies = [tuple(tuple(index + behind for index in batch) for batch in one) for one in (FIRST, SECOND)]
    apart = replace(once, samples=once.samples * 2, updates=(FIRST, SECOND, *copies))
    found = []
    for work, microbatches in ((once, 4), (apart, 8)):
        with monkeypatch.context() as patch:
            watched = Watched(checkpoint, one_process, patch, f"--objective.old_logprobs={old}")
            results = watched.step(work)
            assert [len(batches) for _, batches in watched.scored] == [microbatches] * len(watched.scored)
            assert len(watched.packed) == microbatches
            found.append((results, watched))
    (results, watched), (expected, other) = found
    assert results == expected and len(results) == 4
    assert differences(snapshot(watched.state), snapshot(other.state)) == []
    (gate,), (gate_apart,) = watched.gates, other.gates
    assert gate["gate/max"] == gate_apart["gate/max"]
    assert gate["gate/sum"] / gate["gate/count"] == pytest.approx(gate_apart["gate/sum"] / gate_apart["gate/count"])


def test_an_update_with_nothing_to_train_on_moves_nothing(
    checkpoint: str, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither weights nor Adam's momentum nor the schedule; the others are as if it were not there."""
    schedule = ("--optimizer.schedule=linear", "--optimizer.warmup_steps=2")
    with monkeypatch.context() as patch:
        alone = Watched(checkpoint, one_process, patch, *schedule)
        expected = alone.step(work_of(one_process, FIRST, SECOND))
    watched = Watched(checkpoint, one_process, monkeypatch, *schedule)
    empty = {"optimizer/empty_updates": 1.0}
    found = watched.step(work_of(one_process, (), FIRST, (), SECOND, ()))
    assert found == [empty, expected[0], empty, expected[1], empty]
    assert watched.scored == alone.scored and watched.gates == alone.gates
    before = snapshot(watched.state)
    assert differences(before, snapshot(alone.state)) == []
    watched.trainer.skipped_in_a_row = 2
    assert watched.step(work_of(one_process, (), ())) == [empty, empty]
    assert differences(before, snapshot(watched.state)) == []
    assert watched.trainer.skipped_in_a_row == 2, "neither one more of a row nor the end of it"
    assert len(watched.gates) == 1
    assert watched.step(work_of(one_process, (), FIRST))[1]["policy/ratio"] == 1.0, "the only update is the first"


def test_a_gate_that_closes_leaves_everything_as_it_was(
    checkpoint: str, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(checkpoint, one_process, monkeypatch, "--objective.old_logprobs=engine")

    def closed(metrics: dict[str, float], worst_token: Callable[[], str]) -> None:
        raise RuntimeError(worst_token())

    with pytest.raises(RuntimeError, match="prompt 'row [024]', response token"):
        watched.trainer.step(work_of(one_process, FIRST, SECOND), closed)
    assert differences(watched.start, snapshot(watched.state)) == []
