"""Whether there is a reference, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apo.objective.objective import needs_reference
from megatron_apo.parallel.groups import Groups
from megatron_apo.training import setup
from megatron_apo.training.reference import HostReference, ResidentReference
from tests.unit.model_providers.reference import make_checkpoint
from tests.unit.training.jobs import job_config


@pytest.mark.parametrize(
    ("words", "kind", "loads"),
    [
        (("--objective.name=dapo", "--objective.kl.coefficient=0"), None, 1),
        (("--objective.kl.coefficient=0.1",), ResidentReference, 2),
        (("--objective.kl.coefficient=0.1", "--model.reference=host"), HostReference, 1),
    ],
)
def test_the_weights_are_loaded_as_often_as_needed(
    words: tuple[str, ...],
    kind: type | None,
    loads: int,
    tmp_path: Path,
    one_process: Groups,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = job_config(make_checkpoint(tmp_path, tied=True), *words)
    seen = []
    load = setup.load_hf_checkpoint
    monkeypatch.setattr(setup, "load_hf_checkpoint", lambda *args, **keys: (seen.append(1), load(*args, **keys)))
    state = setup.build_training_state(config, one_process, updates=1, reference=needs_reference(config.objective))
    assert len(seen) == loads
    assert state.reference is None if kind is None else isinstance(state.reference, kind)
