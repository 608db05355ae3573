"""One status exchange per phase: a failure on any rank reaches all of them, so nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from megatron_apo.parallel.groups import Groups

_MESSAGE_BYTES = 4096


class PhaseError(RuntimeError):
    """Another rank failed in this phase; the message is that rank's."""


def _message_tensor(text: str) -> torch.Tensor:
    encoded = text.encode("utf-8")[:_MESSAGE_BYTES]
    tensor = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
    tensor[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else tensor[:0]
    return tensor


def _message_text(tensor: torch.Tensor) -> str:
    return bytes(tensor.tolist()).rstrip(b"\0").decode("utf-8", errors="replace")


def exchange_status(groups: Groups, phase: str, error: BaseException | None) -> None:
    """Tells every rank whether ``phase`` went well on all of them.

    Raises ``error`` where it happened and PhaseError (naming rank, phase and message) on the other ranks.
    """
    if groups.world_size > 1:
        statuses = [torch.zeros(1, dtype=torch.int32) for _ in range(groups.world_size)]
        dist.all_gather(statuses, torch.tensor([int(error is not None)], dtype=torch.int32), group=groups.control)
        failed = [rank for rank, status in enumerate(statuses) if int(status)]
        if failed:
            message = _message_tensor("" if error is None else f"{type(error).__name__}: {error}")
            dist.broadcast(message, src=failed[0], group=groups.control)
            if error is None:
                raise PhaseError(f"rank {failed[0]} failed in phase {phase!r}: {_message_text(message)}")
    if error is not None:
        raise error


@contextmanager
def phase(groups: Groups, name: str) -> Iterator[None]:
    """Runs a block without collectives on any subset of ranks, then exchanges how it went.

    Every rank must enter it. The block must not contain a collective: a rank that failed inside would not take part.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it before it is raised
        error = caught
    exchange_status(groups, name, error)
