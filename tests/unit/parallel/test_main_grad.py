"""The head's gradient in Megatron's buffer: what autograd would have brought, and no tensor of the weight's size."""

from __future__ import annotations

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer import TransformerConfig
from torch.profiler import ProfilerActivity, profile

from megatron_apo.parallel import main_grad as module
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.logprobs import vocab_parallel_logprobs

VOCABULARY, HIDDEN, BF16 = 40, 6, torch.bfloat16
BATCHES = (9, 0, 14)  # tokens of each microbatch of a step


class Model(torch.nn.Module):
    """A lookup, a projection and a head, which is the lookup's own weight in a tied model."""

    def __init__(self, *, tied: bool, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (VOCABULARY, HIDDEN)):
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def random(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.lookup, self.middle = random(*size), random(size[1], size[1])
        self.head = self.lookup if tied else random(*size)

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.embedding(ids_T, self.lookup) @ self.middle).tanh()


def wrapped(model: Model, *, fp32: bool = True, overlap: bool = False) -> DistributedDataParallel:
    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    return DistributedDataParallel(
        config, DistributedDataParallelConfig(grad_reduce_in_fp32=fp32, overlap_grad_reduce=overlap), model
    )


def batch(tokens: int, vocabulary: int = VOCABULARY) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids_T, labels_T = torch.randint(0, vocabulary, (2, tokens), generator=generator)
    return ids_T, labels_T


def fused(model: Model, tokens: int, *, view: bool = False) -> torch.Tensor:
    """A loss that weighs every token differently; ``view``: of a view of the head."""
    ids_T, labels_T = batch(tokens, len(model.head))
    head = model.head[:] if view else model.head
    logprobs_T, _ = vocab_parallel_logprobs(model(ids_T), head, labels_T, temperature=0.8, chunk_tokens=4)
    return (logprobs_T * torch.linspace(-1.0, 2.0, tokens)).sum()


def plain(model: Model, tokens: int) -> torch.Tensor:
    """The same loss by torch's own log_softmax."""
    ids_T, labels_T = batch(tokens, len(model.head))
    log_p_TV = (model(ids_T) @ model.head.t()).float().div(0.8).log_softmax(dim=-1)
    return (log_p_TV.gather(1, labels_T[:, None])[:, 0] * torch.linspace(-1.0, 2.0, tokens)).sum()


def plain_gradients(*, tied: bool, batches: tuple[int, ...] = BATCHES) -> dict[str, torch.Tensor]:
    """Of the sum over the microbatches, from autograd in float32, of the values that bfloat16 has."""
    model = Model(tied=tied, dtype=BF16).float()
    torch.stack([plain(model, tokens) for tokens in batches]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def rounded_model(*, tied: bool, dtype: torch.dtype = torch.float32) -> Model:
    """Holds values that bfloat16 has, in ``dtype``."""
    return Model(tied=tied, dtype=BF16).to(dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert (actual - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlap"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (BF16, 0.02)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_microbatches_add_up_in_the_buffer(
    tied: bool, dtype: torch.dtype, bound: float, overlap: bool, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tied embedding's own gradient arrives at the same parameter, and is not dropped."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    model = rounded_model(tied=tied, dtype=dtype)
    ddp = wrapped(model, overlap=overlap)
    for step in range(2):
        ddp.zero_grad_buffer()
        with ddp.no_sync():
            for tokens in BATCHES[:-1]:
                fused(model, tokens).backward()
        fused(model, BATCHES[-1]).backward()
        ddp.finish_grad_sync()
        expected = plain_gradients(tied=tied)
        assert len(expected) == (2 if tied else 3), step
        for name, parameter in model.named_parameters():
            assert parameter.grad is None
            assert_close(parameter.main_grad, expected[name], bound)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_another_loss_on_the_same_weight_counts_too(tied: bool, one_process: Groups) -> None:
    """In a microbatch of its own, after one that has added to the buffer, and in the same one."""
    model = rounded_model(tied=tied)
    wrapped(model)
    fused(model, 9).backward()
    plain(model, 14).backward()
    (fused(model, 5) + plain(model, 11) + fused(model, 3)).backward()
    assert_close(
        model.head.main_grad, plain_gradients(tied=tied, batches=(9, 14, 5, 11, 3))["lookup" if tied else "head"], 1e-6
    )


def test_a_frozen_head_leaves_its_buffer_alone(one_process: Groups) -> None:
    model = rounded_model(tied=False)
    wrapped(model)
    model.head.requires_grad_(False)
    fused(model, 9).backward()
    assert not model.head.main_grad.any() and model.head.grad is None
    assert_close(model.middle.main_grad, plain_gradients(tied=False, batches=(9,))["middle"], 1e-6)
    never = rounded_model(tied=False)
    never.head.requires_grad_(False)
    wrapped(never)
    fused(never, 9).backward()
    assert not hasattr(never.head, "main_grad") and never.head.grad is None


@pytest.mark.parametrize("case", ["hook", "bfloat16 buffer", "view", "a buffer that is not DDP's"])
def test_elsewhere_autograd_brings_the_gradient(case: str, one_process: Groups) -> None:
    """To the bit as without a buffer; hooks see it."""
    dtype = BF16 if case == "bfloat16 buffer" else torch.float32
    bare, model = rounded_model(tied=False, dtype=dtype), rounded_model(tied=False, dtype=dtype)
    fused(bare, 9).backward()
    expected = bare.head.grad
    assert expected is not None
    seen: list[torch.Tensor] = []
    if case == "a buffer that is not DDP's":
        model.head.main_grad = torch.zeros_like(model.head)
    else:
        wrapped(model, fp32=dtype == torch.float32)
    if case == "hook":
        model.head.register_hook(seen.append)
    fused(model, 9, view=case == "view").backward()
    if case == "a buffer that is not DDP's":
        assert model.head.grad is not None and not model.head.main_grad.any()
        assert torch.equal(model.head.grad, expected)
    else:
        assert torch.equal(model.head.main_grad, expected) and model.head.grad is None
    assert [torch.equal(gradient, expected) for gradient in seen] == [True] * (case == "hook")


def test_gradients_that_are_not_to_be_accumulated(one_process: Groups) -> None:
    """autograd.grad and backward(inputs=...) of other tensors leave the buffer alone; grad of the weight is refused."""
    model = rounded_model(tied=False)
    wrapped(model)
    loss = fused(model, 9)
    expected = plain_gradients(tied=False, batches=(9,))
    (middle,) = torch.autograd.grad(loss, model.middle, retain_graph=True)
    assert_close(middle, expected["middle"], 1e-6)
    with pytest.raises(RuntimeError, match="autograd.grad"):
        torch.autograd.grad(loss, model.head, retain_graph=True)
    loss.backward(inputs=[model.lookup], retain_graph=True)
    assert not model.head.main_grad.any()
    loss.backward(inputs=[model.head], retain_graph=True)
    loss.backward()
    assert_close(model.head.main_grad, 2 * expected["head"], 1e-6)


# A tied embedding's lookup makes its own gradient; of bfloat16 DDP's hook makes a float32 copy of that.
@pytest.mark.parametrize(
    ("tied", "dtype", "expected"),
    [(False, torch.float32, 0), (False, BF16, 0), (True, torch.float32, 1), (True, BF16, 2)],
    ids=["untied, fp32", "untied, bf16", "tied, fp32", "tied, bf16"],
)
def test_the_backward_pass_makes_no_tensor_of_the_heads_size(
    tied: bool, dtype: torch.dtype, expected: int, one_process: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 32)
    model = Model(tied=tied, dtype=dtype, size=(2048, 64))
    wrapped(model)
    model.lookup.requires_grad_(tied)  # a lookup of its own makes a gradient of its own
    loss = fused(model, 24)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss.backward()
    assert model.head.main_grad.any()
    whole = model.head.numel() * model.head.element_size()
    made = [event for event in profiled.events() or [] if event.self_cpu_memory_usage > whole / 3]
    assert len(made) == expected, [(event.name, event.self_cpu_memory_usage) for event in made]
