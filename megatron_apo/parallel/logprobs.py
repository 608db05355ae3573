"""Log-probabilities and entropy under a vocabulary split over tensor-parallel ranks, without the logits in memory.

The output projection, the softmax and their gradient run over chunks of tokens; the backward pass computes each chunk's
logits again. At any moment one float32 buffer [chunk, V / tp] exists. Under Megatron's DDP the weight's gradient is
added to its gradient buffer chunk by chunk (main_grad.py); elsewhere autograd gets it as a tensor [V / tp, H].

Shape suffixes: T tokens, H hidden, V vocabulary (this rank's part of it), C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megatron_apo.parallel.main_grad import add_product, gradient_buffer, no_gradient, product, reaches_the_parameter


def vocab_parallel_logprobs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
    forbidden_token_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    chunk_tokens: int = 512,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / temperature) at ``labels_T``, and that distribution's entropy: two [T] tensors.

    ``weight_VH`` is this rank's rows of the output embedding: rank r of ``tp_group`` holds those from r * V on
    (all of them without a group). Ids from ``vocab_size`` on are padding; they and ``forbidden_token_ids`` have
    probability 0. A label among them gets -inf and no gradient, and leaves the other tokens' gradients alone.

    float32 out (float64 from float64); half-precision products are taken to float32 before the softmax. The entropy,
    in nats, has no gradient; zeros without ``with_entropy``. Every rank of the group must call it with the same tokens;
    the gradient of ``hidden_TH`` comes back summed over the group. That of a parameter under Megatron's DDP goes to its
    ``main_grad``; ``torch.autograd.grad`` of one raises RuntimeError, as none is returned.

    ValueError for a label outside the vocabulary, unequal shapes, and a temperature or chunk of 0 or less.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0; greedy decoding has no log-probabilities")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens}: must be at least 1")
    tokens, shard = hidden_TH.shape[0], weight_VH.shape[0]
    if hidden_TH.ndim != 2 or labels_T.shape != (tokens,):
        raise ValueError(
            f"hidden_TH, labels_T: have shapes {tuple(hidden_TH.shape)}, {tuple(labels_T.shape)}; must be [T, H], [T]"
        )
    size, rank = (1, 0) if tp_group is None else (dist.get_world_size(tp_group), dist.get_rank(tp_group))
    known = min(shard * size, shard * size if vocab_size is None else vocab_size)
    if tokens and not 0 <= int(labels_T.min()) <= int(labels_T.max()) < shard * size:
        low, high = int(labels_T.min()), int(labels_T.max())
        raise ValueError(f"labels_T: holds ids {low} to {high}; must lie between 0 and {shard * size - 1}")
    head = _Head(
        first=rank * shard,
        known=max(0, min(shard, known - rank * shard)),
        forbidden=tuple(i - rank * shard for i in forbidden_token_ids if 0 <= i - rank * shard < shard),
        temperature=temperature,
        chunk=chunk_tokens,
        group=tp_group if size > 1 else None,
        with_entropy=with_entropy,
    )
    logprobs_T, entropy_T = _VocabParallelLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_TH, weight_VH, labels_T, head
    )
    return logprobs_T, entropy_T


@dataclass(frozen=True)
class _Head:
    """This rank's part of the vocabulary: ids from ``first``, ``known`` real ones, ``forbidden`` counted from it."""

    first: int
    known: int
    forbidden: tuple[int, ...]
    temperature: float
    chunk: int
    group: dist.ProcessGroup | None
    with_entropy: bool

    def logits(self, hidden_CH: torch.Tensor, weight_VH: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
        """[C, V] float32 (or float64) logits over the temperature, -inf where an id cannot be sampled."""
        logits_CV = product(hidden_CH, weight_VH.t())
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self.temperature != 1.0:
            logits_CV.div_(self.temperature)
        if self.known < logits_CV.shape[1]:
            logits_CV[:, self.known :] = -torch.inf
        if self.forbidden:
            logits_CV.index_fill_(1, forbidden, -torch.inf)
        return logits_CV

    def all_reduce(self, values: torch.Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        if self.group is not None:
            dist.all_reduce(values, op=operation, group=self.group)

    def local(self, labels_C: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels counted from this rank's first id, as a column [C, 1] clamped into it, and whether they are in it."""
        index_C1 = (labels_C - self.first)[:, None]
        return index_C1.clamp(0, width - 1), (index_C1 >= 0) & (index_C1 < width)


class _VocabParallelLogprobs(torch.autograd.Function):
    """Projection, log-softmax and entropy in one; the backward pass recomputes the logits chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, head: _Head
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
        logprobs_T = torch.zeros(labels_T.shape, dtype=dtype, device=hidden_TH.device)
        entropy_T = torch.zeros_like(logprobs_T)
        normaliser_T = torch.zeros_like(logprobs_T)
        forbidden = torch.tensor(head.forbidden, dtype=torch.int64, device=hidden_TH.device)
        for start in range(0, labels_T.shape[0], head.chunk):
            rows = slice(start, start + head.chunk)
            logits_CV = head.logits(hidden_TH[rows], weight_VH, forbidden)
            highest_C1 = logits_CV.amax(dim=1, keepdim=True)
            head.all_reduce(highest_C1, dist.ReduceOp.MAX)
            logits_CV.sub_(highest_C1)
            index_C1, here_C1 = head.local(labels_T[rows], logits_CV.shape[1])
            label_C1 = logits_CV.gather(1, index_C1).masked_fill_(~here_C1, 0.0)
            exp_CV = logits_CV.exp_()
            parts = [label_C1, exp_CV.sum(dim=1, keepdim=True)]
            if head.with_entropy:  # -e ln e, in place: with e = exp(s) it sums to -sum(e s), and is 0 where e is 0
                parts.append(torch.special.entr(exp_CV, out=exp_CV).sum(dim=1, keepdim=True))
            del logits_CV, exp_CV
            sums_CK = torch.cat(parts, dim=1)
            head.all_reduce(sums_CK)
            log_sum_C = sums_CK[:, 1].log()
            logprobs_T[rows] = sums_CK[:, 0] - log_sum_C
            normaliser_T[rows] = log_sum_C + highest_C1[:, 0]
            if head.with_entropy:
                entropy_T[rows] = log_sum_C + sums_CK[:, 2] / sums_CK[:, 1]
        ctx.head = head
        ctx.main_grad = gradient_buffer(weight_VH)
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, normaliser_T, logprobs_T != -torch.inf, forbidden)
        ctx.mark_non_differentiable(entropy_T)
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_T: torch.Tensor | None, _grad_entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        if grad_T is None:
            return None, None, None, None
        hidden_TH, weight_VH, labels_T, normaliser_T, possible_T, forbidden = ctx.saved_tensors
        head: _Head = ctx.head
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        fused = needs_weight and ctx.main_grad is not None
        if fused:
            needs_weight = reaches_the_parameter(ctx, 1)
        # d logprob / d logits = onehot - p, over the temperature; none for a label that has probability 0.
        scale_T1 = grad_T.masked_fill(~possible_T, 0.0).div(head.temperature)[:, None]
        grad_hidden_TH = torch.zeros_like(hidden_TH) if needs_hidden else None
        grad_weight_VH: torch.Tensor | None = None
        if needs_weight:
            exact = torch.promote_types(weight_VH.dtype, torch.float32)
            grad_weight_VH = ctx.main_grad if fused else torch.zeros_like(weight_VH, dtype=exact)
        for start in range(0, labels_T.shape[0], head.chunk):
            rows = slice(start, start + head.chunk)
            hidden_CH, scale_C1 = hidden_TH[rows], scale_T1[rows]
            grad_CV = head.logits(hidden_CH, weight_VH, forbidden)
            grad_CV.sub_(normaliser_T[rows, None]).exp_().mul_(-scale_C1)
            index_C1, here_C1 = head.local(labels_T[rows], grad_CV.shape[1])
            grad_CV.scatter_add_(1, index_C1, scale_C1.masked_fill(~here_C1, 0.0))
            grad_CV = grad_CV.to(hidden_TH.dtype)
            if grad_hidden_TH is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_TH[rows])
            if grad_weight_VH is not None:
                add_product(grad_weight_VH, grad_CV, hidden_CH)
            del grad_CV  # before the next chunk's comes into being
        if grad_hidden_TH is not None and labels_T.shape[0]:
            head.all_reduce(grad_hidden_TH)
        if grad_weight_VH is not None:
            grad_weight_VH = no_gradient(weight_VH) if fused else grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None
