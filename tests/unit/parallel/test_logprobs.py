from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron_apo.parallel import logprobs as module
from megatron_apo.parallel.logprobs import vocab_parallel_logprobs

F64 = torch.float64
FORBIDDEN = (3, 11)
KNOWN = 20  # of 24 rows


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by torch's own log_softmax, with all logits at once."""
    masked = torch.zeros(weight.shape[0], dtype=torch.bool)
    masked[list(FORBIDDEN)] = True
    masked[KNOWN:] = True
    logits = (hidden @ weight.t() / temperature).masked_fill(masked, -torch.inf)
    log_p = logits.log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p.masked_fill(masked, 0.0)).sum(dim=-1)
    return log_p.gather(1, labels[:, None])[:, 0], entropy


def inputs(tokens: int = 13, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(tokens, 6, generator=generator, dtype=F64).to(dtype).requires_grad_()
    weight = torch.randn(24, 6, generator=generator, dtype=F64).to(dtype).requires_grad_()
    allowed = torch.tensor([i for i in range(KNOWN) if i not in FORBIDDEN])
    return hidden, weight, allowed[torch.randint(0, len(allowed), (tokens,), generator=generator)]


def test_two_tokens_by_hand() -> None:
    # Logits (0, log 3) over temperature 1: probabilities 1/4 and 3/4.
    weight = torch.tensor([[0.0], [math.log(3.0)]], dtype=F64)
    logprobs, entropy = vocab_parallel_logprobs(torch.ones(2, 1, dtype=F64), weight, torch.tensor([0, 1]))
    assert logprobs.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy.tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("chunk", [1, 4, 13, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_log_softmax(chunk: int, temperature: float) -> None:
    hidden, weight, labels = inputs()
    expected, expected_entropy = plain(hidden, weight, labels, temperature)
    logprobs, entropy = vocab_parallel_logprobs(
        hidden,
        weight,
        labels,
        temperature=temperature,
        forbidden_token_ids=FORBIDDEN,
        vocab_size=KNOWN,
        chunk_tokens=chunk,
    )
    torch.testing.assert_close(logprobs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    upstream = torch.linspace(-1.0, 2.0, len(labels), dtype=F64)
    actual_grads = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))
    expected_grads = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    for actual, wanted in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, labels = inputs(tokens=4)

    def function(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return vocab_parallel_logprobs(hidden, weight, labels, temperature=0.8, chunk_tokens=3)[0]

    assert torch.autograd.gradcheck(function, (hidden, weight))


@pytest.mark.parametrize("impossible", [FORBIDDEN[0], KNOWN + 1])
def test_an_impossible_label_leaves_the_others_alone(impossible: int) -> None:
    hidden, weight, labels = inputs()
    options: dict[str, Any] = {"forbidden_token_ids": FORBIDDEN, "vocab_size": KNOWN, "chunk_tokens": 5}
    keep = torch.arange(len(labels)) != 6
    good = vocab_parallel_logprobs(hidden[keep], weight, labels[keep], **options)[0]
    good_grads = torch.autograd.grad(good.sum(), (hidden, weight))
    labels[6] = impossible
    logprobs, entropy = vocab_parallel_logprobs(hidden, weight, labels, **options)
    assert logprobs[6] == -math.inf and torch.isfinite(entropy).all()
    torch.testing.assert_close(logprobs[keep], good)
    for actual, wanted in zip(torch.autograd.grad(logprobs.sum(), (hidden, weight)), good_grads, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_bfloat16_inputs_give_float32() -> None:
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    logprobs, entropy = vocab_parallel_logprobs(
        hidden, weight, labels, forbidden_token_ids=FORBIDDEN, vocab_size=KNOWN, chunk_tokens=4
    )
    exact, _ = plain(hidden.double(), weight.double(), labels, 1.0)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), exact, rtol=0.01, atol=0.03)
    actual = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    wanted = torch.autograd.grad(exact.sum(), (hidden, weight))
    for value, expected in zip(actual, wanted, strict=True):
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value, expected, rtol=0.03, atol=0.06)


def test_no_tokens() -> None:
    hidden, weight, labels = inputs()
    logprobs, entropy = vocab_parallel_logprobs(hidden[:0], weight, labels[:0])
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None and hidden.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_input_gets_no_gradient(frozen: int) -> None:
    hidden, weight, labels = inputs()
    (hidden, weight)[frozen].requires_grad_(False)
    other = (hidden, weight)[1 - frozen]
    logprobs, _ = vocab_parallel_logprobs(hidden, weight, labels, chunk_tokens=4)
    (actual,) = torch.autograd.grad(logprobs.sum(), other)
    reference = (hidden @ weight.t()).log_softmax(-1).gather(1, labels[:, None]).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(reference, other)[0])


def test_without_gradients_and_without_entropy() -> None:
    hidden, weight, labels = inputs()
    expected, _ = vocab_parallel_logprobs(hidden, weight, labels)
    with torch.no_grad():
        logprobs, entropy = vocab_parallel_logprobs(hidden, weight, labels, with_entropy=False)
    assert not logprobs.requires_grad and torch.equal(logprobs, expected)
    assert torch.equal(entropy, torch.zeros_like(entropy))


def test_no_product_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = module._Head.logits

    def spy(self: module._Head, hidden: torch.Tensor, weight: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.shape[0])
        return original(self, hidden, weight, forbidden)

    monkeypatch.setattr(module._Head, "logits", spy)
    hidden, weight, labels = inputs()
    vocab_parallel_logprobs(hidden, weight, labels, chunk_tokens=5)[0].sum().backward()
    assert rows == [5, 5, 3, 5, 5, 3]


def test_bad_arguments_are_refused() -> None:
    hidden, weight, labels = inputs()
    with pytest.raises(ValueError, match="temperature=0"):
        vocab_parallel_logprobs(hidden, weight, labels, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        vocab_parallel_logprobs(hidden, weight, labels, chunk_tokens=0)
    with pytest.raises(ValueError, match="must be \\[T, H\\], \\[T\\]"):
        vocab_parallel_logprobs(hidden, weight, labels[1:])
    labels[0] = 24
    with pytest.raises(ValueError, match="must lie between 0 and 23"):
        vocab_parallel_logprobs(hidden, weight, labels)
