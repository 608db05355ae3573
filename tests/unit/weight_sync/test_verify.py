"""The proof of a weight update: hashes, names, and the gate on log-probabilities."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence

import pytest
import torch

from megatron_apo.records import Prompt, Rollout
from megatron_apo.rollout.engine import SamplingSettings, WeightReceipt
from megatron_apo.weight_sync.push import push_weights
from megatron_apo.weight_sync.verify import (
    LogprobGateError,
    WeightSyncError,
    check_logprob_agreement,
    check_receipt,
    tensor_hash,
)


def test_a_hash_covers_dtype_shape_and_bytes() -> None:
    expected = hashlib.sha256(b"torch.float32 (2,)" + struct.pack("<2f", 1.0, -2.0)).hexdigest()
    assert tensor_hash(torch.tensor([1.0, -2.0])) == expected
    values = torch.arange(6, dtype=torch.float32)
    hashes = {
        tensor_hash(values),
        tensor_hash(values.reshape(2, 3)),
        tensor_hash(values.reshape(3, 2)),
        tensor_hash(values.bfloat16()),
        tensor_hash(values.nextafter(torch.tensor(9.0))),
        tensor_hash(torch.empty(0)),
    }
    assert len(hashes) == 6
    square = torch.arange(4.0).reshape(2, 2)
    assert tensor_hash(square.t()) == tensor_hash(square.t().contiguous()) != tensor_hash(square)
    assert tensor_hash(torch.nn.Parameter(values)) == tensor_hash(values)


def test_a_whole_receipt_passes() -> None:
    check_receipt({"a": "1", "b": "2"}, WeightReceipt(4, {"b": "2", "a": "1"}), 4, ["a", "b"])


def test_every_difference_is_named() -> None:
    receipt = WeightReceipt(3, {"a": "1", "b": "9", "x": "7"}, missing=("fused.qkv",), unknown=("x",))
    with pytest.raises(WeightSyncError) as caught:
        check_receipt({"a": "1", "b": "2", "c": "3"}, receipt, 4, ["a", "b", "d"])
    message = str(caught.value)
    for part in (
        "weight update 4",
        "left out by the trainer: d",
        "sent but not part of the model: c",
        "sent but not received: c",
        "received but never sent: x",
        "received with other bytes, shape or dtype: b",
        "parameters of the engine not covered: fused.qkv",
        "names that the engine does not know: x",
        "the engine is at version 3",
    ):
        assert part in message, part


def test_a_long_list_is_cut() -> None:
    names = [f"layer.{number:03d}" for number in range(25)]
    with pytest.raises(WeightSyncError, match=r"layer\.019, and 5 more"):
        check_receipt({}, WeightReceipt(1, {}), 1, names)


def test_the_gate_lets_agreement_through_and_nothing_else() -> None:
    check_logprob_agreement(1e-4, 0.5, str, 1e-4)  # the limit itself passes
    with pytest.raises(
        LogprobGateError, match=r"0\.0002 is above sync\.logprob_gate=0\.0001.*0\.7: prompt 'p3'.*token 5"
    ):
        check_logprob_agreement(2e-4, 0.7, lambda: "prompt 'p3', response token 5", 1e-4)
    for mean, largest in ((math.nan, 0.0), (0.0, math.nan), (math.inf, math.inf)):
        with pytest.raises(LogprobGateError):
            check_logprob_agreement(mean, largest, str, 1e-4)


class RecordingEngine:
    """An engine that keeps what it is sent; ``spoil`` changes one tensor on its way, ``lose`` drops one."""

    def __init__(self, spoil: str = "", lose: str = "") -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.weight_version = 0
        self.spoil, self.lose = spoil, lose

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        return []

    def update_weights(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> WeightReceipt:
        self.weights = {name: tensor.clone() for name, tensor in weights if name != self.lose}
        if self.spoil:
            self.weights[self.spoil].view(-1)[0] += 1e-7
        self.weight_version = version
        return WeightReceipt(version, {name: tensor_hash(tensor) for name, tensor in self.weights.items()})

    def close(self) -> None:
        self.weights = {}


def test_push_sends_everything_and_reports_it() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    engine = RecordingEngine()
    report = push_weights(engine, 5, iter(tensors.items()), tensors.keys())
    assert (report.version, report.bytes, report.tensors) == (5, 3 * 4 + 4 * 2, 2)
    assert report.seconds > 0
    assert engine.weight_version == 5
    assert all(torch.equal(engine.weights[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("verify", [True, False])
def test_push_names_a_tensor_lost_on_the_way(verify: bool) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2)}
    with pytest.raises(WeightSyncError, match="sent but not received: b"):
        push_weights(RecordingEngine(lose="b"), 1, tensors.items(), tensors.keys(), verify=verify)
    with pytest.raises(WeightSyncError, match="left out by the trainer: c"):
        push_weights(RecordingEngine(), 1, tensors.items(), ["a", "b", "c"], verify=verify)


def test_push_names_a_tensor_changed_on_the_way() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2)}
    with pytest.raises(WeightSyncError, match="received with other bytes, shape or dtype: b"):
        push_weights(RecordingEngine(spoil="b"), 1, tensors.items(), tensors.keys())
