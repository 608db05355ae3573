"""What the tests of the layer spec ``transformer_engine`` run on its double: in a process of its own each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from megatron.core.utils import get_te_version

from megatron_apo.config import ParallelConfig
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from megatron_apo.training.forward_step import unwrap
from megatron_apo.training.setup import TrainingState
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.weight_map import to_hf
from tests.doubles import transformer_engine
from tests.gradients import largest_error
from tests.unit.model_providers.reference import build_model, make_checkpoint, model_arguments, pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, make_trainer, work_of

Tensors = dict[str, torch.Tensor]


def _run(checkpoint: Path, groups: Groups, **settings: Any) -> tuple[torch.Tensor, Tensors]:
    """Logits of all sequences, and every gradient by published name."""
    model = build_model(checkpoint, groups, **settings).train()
    arguments, images = model_arguments(pack(model.shape.vision.patch_values), model.shape.vision_tokens)
    logits = model(*arguments, **images)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (torch.log_softmax(logits, -1) * weights).sum().backward()
    gradients: Tensors = {}
    for name, parameter in global_parameters(model):
        assert parameter.grad is not None, name
        row = model_rows(model)[name]
        marked = (getattr(parameter, "tensor_model_parallel", False), getattr(parameter, "partition_dim", -1))
        assert marked == ((True, row.cut) if row.cut is not None else (False, -1)), (name, marked)
        gradients |= dict(to_hf(row, [parameter.grad]))
    return logits.detach(), gradients


def compare(directory: Path, *, family: str, tied: bool) -> None:
    """Writes errors.json: the double against the local spec, by recompute setting, and the mask types it was given."""
    torch.set_num_threads(1)
    transformer_engine.install()
    assert str(get_te_version()) == transformer_engine.VERSION  # what Megatron-Core's wrappers go by
    checkpoint = make_checkpoint(directory / "policy", tied=tied, family=family)
    groups = initialise(ParallelConfig(), seed=0)
    try:
        logits, gradients = _run(checkpoint, groups, layer_spec="local")
        found = {}
        for recompute in ("none", "selective", "full"):
            transformer_engine.MASKS.clear()
            other, others = _run(checkpoint, groups, layer_spec="transformer_engine", recompute=recompute)
            assert others.keys() == gradients.keys()
            error, worst = largest_error(others, gradients)
            found[recompute] = {
                "logits": float((other - logits).abs().max()),
                "gradients": error,
                "worst": worst,
                "masks": dict(transformer_engine.MASKS),
            }
        (directory / "errors.json").write_text(json.dumps(found))
    finally:
        shut_down()


def _state(state: TrainingState) -> dict[str, Tensors]:
    """Weights and both moments by published name."""
    model, (inner,) = unwrap(state.model[0]), [one.optimizer for one in state.optimizer.chained_optimizers]
    found: dict[str, Tensors] = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, parameter in global_parameters(model):
        row = model_rows(model)[name]
        found["weights"] |= dict(to_hf(row, [parameter.detach()]))
        for moment in ("exp_avg", "exp_avg_sq"):
            found[moment] |= dict(to_hf(row, [inner.state[parameter][moment]]))
    return {what: {key: value.clone() for key, value in tensors.items()} for what, tensors in found.items()}


def continue_in_the_other(directory: Path, *, family: str, first: str, second: str) -> None:
    """A run of the spec ``first`` is saved, ``second`` continues: the same state to the bit, and the next loss."""
    torch.set_num_threads(1)
    transformer_engine.install()
    checkpoint = make_checkpoint(directory / "policy", tied=True, family=family)
    groups, packed = initialise(ParallelConfig(), seed=0), pack(PATCH_VALUES)
    try:
        config = job_config(checkpoint, f"--model.layer_spec={first}")
        trainer, state = make_trainer(config, groups)
        trainer.step(work_of(config, packed, updates=2))
        save_checkpoint(state, groups, directory / "checkpoints", LoopState(2, 2, 2), keep=1)
        saved = _state(state)
        expected = trainer.step(work_of(config, packed, updates=1))

        config = job_config(checkpoint, f"--model.layer_spec={second}")
        trainer, state = make_trainer(config, groups)
        load_checkpoint(state, groups, directory / "checkpoints")
        loaded = _state(state)
        found = trainer.step(work_of(config, packed, updates=1))
    finally:
        shut_down()
    differ = [f"{w} {key}" for w in saved for key, value in saved[w].items() if not torch.equal(loaded[w][key], value)]
    losses = [metrics[0]["loss/total"] for metrics in (expected, found)]
    (directory / "continued.json").write_text(
        json.dumps({"tensors": len(saved["weights"]), "differ": differ, "losses": losses})
    )
