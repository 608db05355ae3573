"""The Transformer Engine spec equals the local one on a GPU, in bfloat16: logits and gradients of packed sequences; and
either continues the other's checkpoints. tests/unit/model_providers/test_transformer_engine.py needs no GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_apo.config import ParallelConfig
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.forward_step import unwrap
from megatron_apo.weight_sync.export import export_tensors
from model_providers.qwen_vl.layers import packed_layout
from model_providers.qwen_vl.loading import global_parameters, load_hf_checkpoint, model_rows
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import to_hf
from tests.doubles import transformer_engine as double
from tests.unit.model_providers.reference import VOCAB, make_checkpoint, model_arguments, pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, work_of

Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


def run(directory: Path, groups: Groups, layer_spec: str, dtype: torch.dtype, recompute: str = "none") -> Result:
    """Logits and gradients by published name, both in float32."""
    settings = BuildSettings(dtype=dtype, layer_spec=layer_spec, recompute=recompute)
    model = QwenVLModel(read_shape(directory), settings, pg_collection=groups.collection).cuda().train()
    load_hf_checkpoint(model, directory, tensor_rank=0, tensor_size=1)
    (ids, positions, layout), images = model_arguments(pack(model.shape.vision.patch_values), model.shape.vision_tokens)
    placed = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in images.items()}
    boundaries = packed_layout(layout.cu_seqlens_q.cuda(), layout.max_seqlen_q)
    logits = model(ids.cuda(), positions.cuda(), boundaries, **placed)[0, :, :VOCAB].float()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).cuda()
    (torch.log_softmax(logits, -1) * weights).sum().backward()
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in global_parameters(model):
        assert parameter.grad is not None, name
        gradients |= {hf: part.float() for hf, part in to_hf(model_rows(model)[name], [parameter.grad])}
    return logits.detach(), gradients


def error(found: Result, exact: Result) -> tuple[float, float]:
    """Largest difference of a logit; largest |g - g'| / max(|g'|, 1e-3 of the global norm) of a tensor."""
    total = torch.stack([gradient.norm() for gradient in exact[1].values()]).norm()
    worst = max(
        float((found[1][name] - gradient).norm() / max(gradient.norm(), 1e-3 * total))
        for name, gradient in exact[1].items()
    )
    return float((found[0] - exact[0]).abs().max()), worst


@pytest.fixture
def groups() -> Iterator[Groups]:
    pytest.importorskip("transformer_engine.pytorch")
    yield initialise(ParallelConfig(), seed=0)
    shut_down()


def keywords(of: type) -> set[str]:
    """The names of a constructor's arguments, those that it hands on to its base classes' among them."""
    found: set[str] = set()
    for one in of.__mro__:
        if "__init__" in vars(one):
            arguments = inspect.signature(vars(one)["__init__"]).parameters
            kinds = {argument.kind for argument in arguments.values()}
            found |= {name for name in arguments if name not in ("self", "args", "kwargs", "linear", "given")}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Linear", "LayerNormLinear", "RMSNorm", "LayerNorm", "DotProductAttention"])
def test_what_the_double_takes_is_taken_here(name: str) -> None:
    """And by this version: another one may import and pass other things (Megatron-Core asks for it)."""
    package = pytest.importorskip("transformer_engine")
    assert package.__version__.split("+")[0] == double.VERSION
    ours, theirs = getattr(double, name), getattr(pytest.importorskip("transformer_engine.pytorch"), name)
    assert keywords(ours) <= keywords(theirs)
    if name.endswith("Norm"):
        return  # one tensor
    taken = inspect.signature(theirs.forward).parameters
    for argument in inspect.signature(ours.forward).parameters.values():
        assert argument.kind is not inspect.Parameter.KEYWORD_ONLY or argument.name in taken, argument


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("family", "tied"), [("qwen2_5_vl", False), ("qwen2_5_vl", True), ("qwen2_vl", False)])
def test_equals_the_local_spec(tmp_path: Path, groups: Groups, family: str, tied: bool, recompute: str) -> None:
    """Both bfloat16 results are held against local float32: Transformer Engine may not be further off than local is,
    but for a factor of two between two roundings."""
    directory = make_checkpoint(tmp_path / "policy", tied=tied, family=family)
    exact = run(directory, groups, "local", torch.float32)
    local = error(run(directory, groups, "local", torch.bfloat16), exact)
    fused = error(run(directory, groups, "transformer_engine", torch.bfloat16, recompute), exact)
    print(f"\nlocal bfloat16: logits {local[0]:.1e}, gradients {local[1]:.1e}; fused {fused[0]:.1e}, {fused[1]:.1e}")
    assert fused[0] <= 2 * local[0]
    assert fused[1] <= 2 * local[1]


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "second"), [("local", "transformer_engine"), ("transformer_engine", "local")])
def test_a_checkpoint_passes_between_the_specs(tmp_path: Path, groups: Groups, first: str, second: str) -> None:
    """The weights to the last bit; the update after it ends within bfloat16's rounding."""
    directory, packed = make_checkpoint(tmp_path / "policy", tied=True), pack(PATCH_VALUES)
    losses, weights = [], []
    for spec in (first, second):
        config = job_config(directory, "--model.dtype=bfloat16", f"--model.layer_spec={spec}")
        trainer, state = make_trainer(config, groups)
        if spec == first:
            trainer.step(work_of(config, packed, updates=2))
            save_checkpoint(state, groups, tmp_path / "checkpoints", LoopState(2, 2, 2), keep=1)
        else:
            load_checkpoint(state, groups, tmp_path / "checkpoints")
        exported = export_tensors([unwrap(chunk) for chunk in state.model], groups)
        weights.append({name: tensor.cpu().clone() for name, tensor in exported})
        losses.append(trainer.step(work_of(config, packed, updates=1))[0]["loss/total"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
