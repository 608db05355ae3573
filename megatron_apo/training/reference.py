"""The reference policy: a second model beside the policy, or the initial weights on the host, swapped in to score.

A swap costs no device memory: the trained weights go to the host, the initial ones take their place in the policy's own
tensors, and afterwards the trained ones come back bit for bit. It costs two host copies of the trained parameters and
their transfer three times a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


class Reference(Protocol):
    """The initial policy on this rank."""

    def scoring(self) -> AbstractContextManager[list[Any]]:
        """Its model chunks, for forward passes within the block only."""
        ...


class ResidentReference:
    """Chunks of its own, which stay on the device."""

    def __init__(self, chunks: list[Any]) -> None:
        self._chunks = chunks

    @contextmanager
    def scoring(self) -> Iterator[list[Any]]:
        yield self._chunks


class HostReference:
    """The weights that ``model`` has now, kept in host memory (pinned where there is a GPU) for when it has moved.

    ``model``: the policy's chunks. Megatron's DDP and sharded optimizer hold views of its parameters, so values are
    copied in place and no tensor is ever replaced. Frozen parameters never differ and are left where they are.
    """

    def __init__(self, model: list[Any]) -> None:
        self._model = model
        self._parameters = [one for chunk in model for one in chunk.parameters() if one.requires_grad]
        self._initial = [_host_like(one) for one in self._parameters]
        self._trained = [_host_like(one) for one in self._parameters]
        _copy(self._parameters, self._initial)

    @contextmanager
    def scoring(self) -> Iterator[list[Any]]:
        """The policy's chunks with the initial weights, in eval mode; the block's end, or its error, undoes both."""
        training = [module for chunk in self._model for module in chunk.modules() if module.training]
        _copy(self._parameters, self._trained)  # all of them first: from here on they can be put back
        try:
            _copy(self._initial, self._parameters)
            for chunk in self._model:
                chunk.eval()
            yield self._model
        finally:
            _copy(self._trained, self._parameters)
            for module in training:
                module.training = True


def _host_like(parameter: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(parameter, device="cpu", requires_grad=False, pin_memory=parameter.is_cuda)


def _copy(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    """Copies values in the order of the device's stream, so that no copy has to be waited for."""
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source, non_blocking=True)
