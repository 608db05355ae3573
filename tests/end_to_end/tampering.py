"""What a tampered engine and a partial update do to a real run: nothing is trained on either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo import compose
from megatron_apo.config_loading import load_config
from megatron_apo.loop import LoopParts, run_step
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.parallel.groups import initialise, shut_down
from megatron_apo.run_directory import RunDirectory
from megatron_apo.weight_sync.verify import LogprobGateError, WeightSyncError
from tests.end_to_end.commands import as_without_a_launcher

TAMPERED = "language_model.model.layers.1.post_attention_layernorm.weight"
LEFT_OUT = "model.layers.0.mlp.up_proj.weight"


def _trainer_state(run: compose.Run) -> list[torch.Tensor]:
    """Copies of all parameters and of everything that Adam keeps."""
    optimizer = run.state.optimizer
    while hasattr(optimizer, "chained_optimizers"):
        (optimizer,) = optimizer.chained_optimizers
    adam = [value for state in optimizer.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*run.state.model[0].parameters(), *adam)]


def _same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def _engine_parameter(engine: Any, name: str) -> torch.Tensor:
    worker = engine._llm.llm_engine.model_executor.driver_worker
    parameter: torch.Tensor = worker.model_runner.get_model().get_parameter(name).data
    return parameter


def tamper(directory: Path, config: str) -> None:
    """A good step, then one with a tensor changed in the engine, then a sync that leaves one out."""
    as_without_a_launcher()
    settings = load_config(config, [f"--run.directory={directory / 'run'}", "--logging.progress=false"])
    groups = initialise(settings.parallel, seed=0)
    run = compose.Run(settings, groups, RunDirectory(directory / "run"))
    try:
        controller = run.start_controller(None)
        run.sync(0)
        parts = LoopParts(settings, groups, run.trainer, controller, run.sync, run.save, run.evaluate_validation)
        start = _trainer_state(run)
        run_step(parts, 1, 0, PhaseTimer())
        good = _trainer_state(run)
        assert not _same(start[: len(list(run.state.model[0].parameters()))], good[: len(start)])

        assert run.engine is not None
        _engine_parameter(run.engine, TAMPERED)[0] *= 1.5
        with pytest.raises(
            LogprobGateError, match=r"above sync\.logprob_gate=0\.0001 .*: prompt .*-\d+.*, response token \d+ "
        ):
            run_step(parts, 2, 1, PhaseTimer())
        assert _same(good, _trainer_state(run)), "the optimizer must not have moved"

        run.sync(2)  # the engine is whole again
        run_step(parts, 2, 2, PhaseTimer())

        everything = compose.export_tensors

        def without_one(*arguments: Any) -> Any:
            return ((name, tensor) for name, tensor in everything(*arguments) if name != LEFT_OUT)

        compose.export_tensors = without_one  # type: ignore[assignment]
        with pytest.raises(WeightSyncError, match=f"left out by the trainer: {LEFT_OUT}"):
            run_step(parts, 3, 3, PhaseTimer())
        assert run.engine.weight_version == 3, "a partial update is refused whole"
    finally:
        run.close()
        shut_down()
