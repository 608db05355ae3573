"""The gradient of a large weight, added straight to Megatron's gradient buffer.

Megatron's DDP gives a trainable parameter ``main_grad``, its part of one buffer, and adds ``.grad`` to it in a hook of
the parameter's AccumulateGrad. A backward pass that adds to ``main_grad`` itself needs no tensor of the weight's size,
as Megatron's linear layers with ``gradient_accumulation_fusion`` (core/tensor_parallel/layers.py). Those return a
full-size dummy, which the hook drops (``grad_added_to_main_grad``) or, of a shared embedding, adds as zeros
(``zero_out_wgrad``). Here autograd gets a sparse tensor without entries, a true summand of 0, and the flags stay as
they are: the hook runs, as ``overlap_grad_reduce`` needs, and nothing that reaches the weight by another way (a shared
embedding's lookup, a second loss, another microbatch) is dropped; autograd and the hook add to it without a copy.

Shape suffixes: V rows of the weight, H its columns, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK_ROWS = 8192  # of a product that has to change its dtype before it is added


def gradient_buffer(weight_VH: torch.Tensor) -> torch.Tensor | None:
    """``weight_VH.main_grad`` where a backward pass may add to it: [V, H], float32 (float64 of a float64 weight).

    None where autograd has to bring the gradient: no parameter under Megatron's DDP; Megatron's FSDP, whose buffers
    come and go; hooks on the weight, which must see its gradient; a buffer in half precision, in which a sum over
    chunks would be rounded once a chunk.
    """
    buffer = getattr(weight_VH, "main_grad", None)
    if not isinstance(buffer, torch.Tensor) or not weight_VH.is_leaf or weight_VH._backward_hooks:
        return None
    if not hasattr(weight_VH, "grad_added_to_main_grad") or hasattr(weight_VH, "__fsdp_param__"):
        return None
    fits = buffer.shape == weight_VH.shape and buffer.dtype == torch.promote_types(weight_VH.dtype, torch.float32)
    return buffer if fits else None


def reaches_the_parameter(ctx: Any, index: int) -> bool:
    """In a backward pass: whether this one accumulates into tensor input ``index`` of ``ctx``'s function, a leaf.

    False under ``backward(inputs=...)`` and ``torch.autograd.grad`` of other tensors. RuntimeError (torch's own) under
    ``torch.autograd.grad`` of that leaf: its gradient is to be returned, and not to be accumulated anywhere.
    """
    return torch._C._will_engine_execute_node(ctx.next_functions[index][0])


def no_gradient(weight_VH: torch.Tensor) -> torch.Tensor:
    """Zero as a gradient of ``weight_VH``: sparse, without entries, of its shape, dtype and device."""
    values = weight_VH.new_empty((0, weight_VH.shape[1]))
    rows = torch.empty((1, 0), dtype=torch.int64, device=weight_VH.device)
    return torch.sparse_coo_tensor(rows, values, weight_VH.shape, check_invariants=False, is_coalesced=True)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b``; of half precision on a GPU the float32 accumulator, not rounded."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b)


def add_product(total_VH: torch.Tensor, grad_CV: torch.Tensor, hidden_CH: torch.Tensor) -> None:
    """``total_VH += grad_CV.T @ hidden_CH`` in place; of another dtype than the total's by blocks of its rows."""
    if total_VH.dtype == grad_CV.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
        return
    for total_BH, grad_CB in zip(total_VH.split(BLOCK_ROWS), grad_CV.split(BLOCK_ROWS, dim=1), strict=True):
        total_BH.add_(product(grad_CB.t(), hidden_CH))
