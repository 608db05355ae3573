"""Proof that the engine's weights are the trainer's: by bytes, by name, and by what they compute.

An engine fuses, shards and repacks weights as it loads them, so it cannot hash what it holds. Three checks together
leave nothing out: a hash of every tensor it received against what was sent, the names it loaded against what its model
needs, and the log-probabilities it computes against the trainer's on the very tokens it sampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping

import torch

from megatron_apo.rollout.engine import WeightReceipt

_NAMES_SHOWN = 20


class WeightSyncError(RuntimeError):
    """What an engine received or loaded is not what the trainer sent. The run must stop: its rollouts would be off."""


class LogprobGateError(RuntimeError):
    """The engine's log-probabilities are not the trainer's on the same tokens: their weights or their code differ."""


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256, hexadecimal, over dtype, shape and the bytes in row-major order; the same on every device."""
    tensor = tensor.detach()
    flat = tensor.contiguous().cpu().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_receipt(
    sent: Mapping[str, str], receipt: WeightReceipt, version: int, expected_names: Collection[str]
) -> None:
    """Compares one weight update with the engine's receipt.

    ``sent``: hash by Hugging Face name of every tensor that left the trainer. ``expected_names``: every name that the
    model has. Raises WeightSyncError with all the names of each kind of difference.
    """
    expected, received = set(expected_names), receipt.hashes
    both = sent.keys() & received.keys()
    differences = {
        "left out by the trainer": expected - sent.keys(),
        "sent but not part of the model": sent.keys() - expected,
        "sent but not received": sent.keys() - received.keys(),
        "received but never sent": received.keys() - sent.keys(),
        "received with other bytes, shape or dtype": {name for name in both if sent[name] != received[name]},
        "parameters of the engine not covered": set(receipt.missing),
        "names that the engine does not know": set(receipt.unknown),
    }
    problems = [f"{kind}: {_listed(names)}" for kind, names in differences.items() if names]
    if receipt.version != version:
        problems.append(f"the engine is at version {receipt.version}")
    if problems:
        raise WeightSyncError(
            f"weight update {version} did not arrive whole; {'; '.join(problems)}. The engine's samples would not come "
            "from the trainer's policy, so the run stops here: resume from its last checkpoint once this is fixed"
        )


def check_logprob_agreement(
    mean_difference: float, max_difference: float, worst_token: Callable[[], str], limit: float
) -> None:
    """The gate before an optimizer step: mean |trainer - engine| over the sampled tokens must be at most ``limit``.

    ``worst_token`` says where ``max_difference`` lies; it is called only when the gate closes. NaN never passes.
    Differences in nats.
    """
    if math.isfinite(mean_difference) and math.isfinite(max_difference) and mean_difference <= limit:
        return
    raise LogprobGateError(
        f"engine and trainer disagree on the sampled tokens: mean |difference| {mean_difference:.3g} is above "
        f"sync.logprob_gate={limit:g} (largest {max_difference:.3g}: {worst_token()}). "
        "In float32 about 1e-6 is normal and in bfloat16 about 1e-2; more means that the engine holds other weights, "
        "samples from another distribution, or sees other images. No step was taken; check the weight sync, or raise "
        "the gate if the model's dtype explains the difference"
    )


def _listed(names: Collection[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:_NAMES_SHOWN])
    return shown if len(ordered) <= _NAMES_SHOWN else f"{shown}, and {len(ordered) - _NAMES_SHOWN} more"
