"""How far gradients are from their reference, by the measure that all exactness tests share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

BOUND = 1e-5


def largest(values: Iterable[float]) -> float:
    """The largest value, NaN if any is: Python's own ``max`` passes over a NaN that is not the first."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def relative(distance: float, scale: float) -> float:
    """``distance`` / ``scale``; of a scale of 0 (every token clipped, no KL: no gradient at all) 0 or infinity."""
    return distance / scale if scale else math.inf if distance else 0.0


def largest_error(
    found: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], *, total: float | None = None
) -> tuple[float, str]:
    """max over tensors of |g - g'| / max(|g'|, 1e-3 of the global norm of all g'), and the tensor.

    ``total``: the global norm, where ``reference`` is not all of it. AssertionError when the names differ.
    """
    assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
    if total is None:
        total = float(torch.stack([gradient.double().norm() for gradient in reference.values()]).norm())
    errors = {
        name: relative(float((found[name].double() - g.double()).norm()), max(float(g.double().norm()), 1e-3 * total))
        for name, g in reference.items()
    }
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[worst], worst


def assert_same_gradients(found: Path, reference: Path) -> None:
    """The tensors of two safetensors files are within ``BOUND``, and none of the reference is all zeros."""
    expected = load_file(reference)
    assert all(bool(gradient.any()) for gradient in expected.values())
    error, worst = largest_error(load_file(found), expected)
    assert error <= BOUND, f"{found}: {worst}"
