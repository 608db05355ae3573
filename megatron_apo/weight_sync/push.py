"""One weight update, sent and proved: what the trainer exports, hashed on its way, against the engine's receipt."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch

from megatron_apo.rollout.engine import RolloutEngine
from megatron_apo.weight_sync.verify import check_receipt, tensor_hash


@dataclass(frozen=True)
class SyncReport:
    """``seconds`` of the whole update, verification included; ``bytes`` and ``tensors`` that were sent."""

    version: int
    seconds: float
    bytes: int
    tensors: int


def push_weights(
    engine: RolloutEngine,
    version: int,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    expected_names: Collection[str],
    *,
    verify: bool = True,
) -> SyncReport:
    """Sends ``named_tensors`` (Hugging Face names, published form) to ``engine`` as weights ``version``.

    ``expected_names``: every name of the model, from its weight map. Raises WeightSyncError, naming every tensor left
    out, extra or different. ``verify=False`` saves the hashing on this side; the names are always compared.
    """
    started = time.perf_counter()
    hashes: dict[str, str] = {}
    total = 0

    def outgoing() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal total
        for name, tensor in named_tensors:
            hashes[name] = tensor_hash(tensor) if verify else ""
            total += tensor.nbytes
            yield name, tensor

    receipt = engine.update_weights(version, outgoing())
    sent = hashes if verify else {name: receipt.hashes.get(name, "") for name in hashes}
    check_receipt(sent, receipt, version, expected_names)
    return SyncReport(version, time.perf_counter() - started, total, len(hashes))
