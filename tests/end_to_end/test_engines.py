"""The engines on a real checkpoint: vLLM in this process, transformers, and each in a process of its own.

Reference for log-probabilities: one full forward pass of transformers per sequence, without a cache or padding.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file

from megatron_apo.config import DataConfig
from megatron_apo.data.images import load_image
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.rows import Row
from megatron_apo.records import Prompt, PromptImage, Rollout
from megatron_apo.rollout import weight_file
from megatron_apo.rollout.engine import EngineSettings, RolloutEngine, SamplingSettings
from megatron_apo.rollout.process import EngineProcess, EngineProcessError
from megatron_apo.rollout.transformers_engine import TransformersEngine
from megatron_apo.weight_sync.push import push_weights
from megatron_apo.weight_sync.verify import LogprobGateError, WeightSyncError, check_logprob_agreement

pytestmark = pytest.mark.slow

SAMPLING = SamplingSettings(group_size=4, max_tokens=14, temperature=1.2, seed=3)
TOLERANCE = 1e-5


def load(image: PromptImage) -> Image:
    return load_image(image.path, sha256=image.sha256)


@pytest.fixture(scope="module")
def builder(tiny_policy: Path) -> PromptBuilder:
    return PromptBuilder(tiny_policy, DataConfig())


@pytest.fixture(scope="module")
def prompts(builder: PromptBuilder, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Prompts of different lengths over pictures of different sizes, one with two pictures and one with none."""
    import numpy as np
    from PIL import Image as Images

    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = []
    for number in range(12):
        files = []
        for part in range({5: 2, 7: 0}.get(number, 1)):
            size = (56, 56, 3) if number % 3 else (56, 84, 3)
            path = folder / f"{number}-{part}.png"
            Images.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(path)
            files.append(str(path))
        rows.append(Row(f"row{number}", tuple(files), "What is the sum? " + "again " * number, "4"))
    return [builder.build(row) for row in rows]


@pytest.fixture(scope="module")
def settings(tiny_policy: Path, builder: PromptBuilder) -> EngineSettings:
    return EngineSettings(
        model=str(tiny_policy),
        dtype="float32",
        forbidden_token_ids=builder.forbidden_token_ids,
        max_model_len=256,
        max_images=2,
        memory_gib=0.25,
    )


@pytest.fixture(scope="module")
def weights(tiny_policy: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_policy / "model.safetensors")


@pytest.fixture(scope="module")
def process_before() -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def vllm_engine(
    settings: EngineSettings, process_before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutEngine]:
    from megatron_apo.rollout.vllm.engine import VllmEngine

    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    torch.manual_seed(5)
    process_before["random"] = torch.get_rng_state()
    process_before["set_num_threads"] = torch.set_num_threads
    process_before["threads"] = torch.get_num_threads()
    process_before["environment"] = dict(os.environ)
    engine = VllmEngine(settings, load)
    yield engine
    engine.close()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def transformers_engine(settings: EngineSettings) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(settings, load)
    yield engine
    engine.close()


def changed(weights: dict[str, torch.Tensor], scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Every tensor moved by noise of ``scale`` times its size."""
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    return {name: tensor + scale * (tensor.std() + 0.1) * noise[name] for name, tensor in weights.items()}


class Reference:
    """Log-probabilities by a full forward pass of transformers with given weights (published names)."""

    def __init__(self, settings: EngineSettings, weights: dict[str, torch.Tensor]) -> None:
        self.engine = TransformersEngine(settings, load)
        self.engine.update_weights(1, weights.items())

    def logits(self, prompt: Prompt, response: Sequence[int]) -> torch.Tensor:
        """[response tokens, vocabulary], each row predicting the response's token of that position."""
        ids = torch.tensor([prompt.token_ids + tuple(response)])
        types = torch.zeros_like(ids, dtype=torch.int32)
        types[:, : len(prompt.token_ids)] = (ids == self.engine._image_token)[:, : len(prompt.token_ids)]
        vision = self.engine._vision_inputs([prompt])
        self.engine._model.model.rope_deltas = None
        with torch.no_grad():
            output = self.engine._model(
                input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **vision
            )
        return output.logits[0, len(prompt.token_ids) - 1 : -1]

    def differences(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]]) -> torch.Tensor:
        """|reference - engine| of every sampled token, [tokens]."""
        found = []
        for prompt, group in zip(prompts, groups, strict=True):
            for rollout in group:
                logits = self.logits(prompt, rollout.token_ids).clone()
                logits[:, list(self.engine._settings.forbidden_token_ids)] = -torch.inf
                logprobs = (logits / SAMPLING.temperature).log_softmax(-1)
                expected = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
                found.append((expected - torch.tensor(rollout.logprobs)).abs())
        return torch.cat(found)


@pytest.fixture(params=["vllm_engine", "transformers_engine"])
def engine(request: pytest.FixtureRequest, weights: dict[str, torch.Tensor]) -> RolloutEngine:
    """Each engine, with the checkpoint's weights."""
    found: RolloutEngine = request.getfixturevalue(request.param)
    push_weights(found, found.weight_version + 1, weights.items(), weights.keys())
    return found


def test_building_vllm_leaves_the_process_as_it_was(
    vllm_engine: RolloutEngine, prompts: list[Prompt], process_before: dict[str, Any]
) -> None:
    assert torch.equal(torch.get_rng_state(), process_before["random"])
    vllm_engine.generate(prompts, SAMPLING)  # its sampler draws from torch's global generator
    assert torch.equal(torch.get_rng_state(), process_before["random"])
    assert torch.set_num_threads is process_before["set_num_threads"]
    assert torch.get_num_threads() == process_before["threads"]
    changed_names = {name for name in os.environ if os.environ[name] != process_before["environment"].get(name)}
    own = {"HF_HUB_OFFLINE", "TORCH_COMPILE_DISABLE", "PYTEST_CURRENT_TEST"}
    assert not {name for name in changed_names - own if not name.startswith("VLLM_")}


def test_responses_are_complete_and_reproducible(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    groups = engine.generate(prompts, SAMPLING)
    assert engine.generate(prompts, SAMPLING) == groups
    other = engine.generate(prompts, dataclasses.replace(SAMPLING, seed=4))
    assert [[r.token_ids for r in group] for group in other] != [[r.token_ids for r in group] for group in groups]
    assert [group[0].prompt_id for group in groups] == [prompt.id for prompt in prompts]
    for group in groups:
        assert [rollout.index for rollout in group] == [0, 1, 2, 3]
        assert len({rollout.token_ids for rollout in group}) > 1
        for rollout in group:
            assert len(rollout.logprobs) == len(rollout.token_ids) <= 14
            assert rollout.weight_version == engine.weight_version


def test_a_list_drawn_in_two_calls_is_drawn_alike(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    whole = [[rollout.token_ids for rollout in group] for group in engine.generate(prompts, SAMPLING)]
    rest = engine.generate(prompts[7:], dataclasses.replace(SAMPLING, first_position=7))
    assert [[rollout.token_ids for rollout in group] for group in rest] == whole[7:]


def test_a_response_ends_with_the_end_token(
    engine: RolloutEngine, prompts: list[Prompt], builder: PromptBuilder
) -> None:
    sampling = SamplingSettings(group_size=16, max_tokens=14, temperature=1.0)
    rollouts = [rollout for group in engine.generate(prompts, sampling) for rollout in group]
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert stopped  # 192 responses of 14 tokens, one token in about 350 is the end
    for rollout in rollouts:
        ends = rollout.token_ids.count(builder.eos_token_id)
        if rollout.finish_reason == "stop":
            assert ends == 1 and rollout.token_ids[-1] == builder.eos_token_id
        else:
            assert rollout.finish_reason == "length" and ends == 0 and len(rollout.token_ids) == 14


def test_logprobs_are_transformers_before_and_after_a_sync(
    engine: RolloutEngine, settings: EngineSettings, prompts: list[Prompt], weights: dict[str, torch.Tensor]
) -> None:
    before = Reference(settings, weights)
    assert before.differences(prompts, engine.generate(prompts, SAMPLING)).max() < TOLERANCE
    new = changed(weights)
    version = engine.weight_version + 1
    report = push_weights(engine, version, new.items(), weights.keys())
    assert (report.version, report.tensors, engine.weight_version) == (version, len(weights), version)
    groups = engine.generate(prompts, SAMPLING)
    assert Reference(settings, new).differences(prompts, groups).max() < TOLERANCE
    assert before.differences(prompts, groups).mean() > 1e-2  # the sync did change what is computed


def test_forbidden_tokens_are_never_sampled(
    engine: RolloutEngine, settings: EngineSettings, prompts: list[Prompt], weights: dict[str, torch.Tensor]
) -> None:
    forbidden = list(settings.forbidden_token_ids)
    loud = {name: tensor.clone() for name, tensor in weights.items()}
    loud["model.embed_tokens.weight"][forbidden] *= 30  # of tied weights: now almost all probability lies on them
    push_weights(engine, engine.weight_version + 1, loud.items(), weights.keys())
    reference = Reference(settings, loud)
    greedy = engine.generate(prompts, SamplingSettings(group_size=1, max_tokens=4, temperature=0.0))
    unmasked = torch.cat([reference.logits(p, g[0].token_ids) for p, g in zip(prompts, greedy, strict=True)])
    assert set(unmasked.argmax(-1).tolist()) & set(forbidden)  # they would be chosen
    hot = engine.generate(prompts, SamplingSettings(group_size=8, max_tokens=14, temperature=2.0))
    sampled = {token for group in (*greedy, *hot) for rollout in group for token in rollout.token_ids}
    assert not sampled & set(forbidden)
    masked = unmasked.clone()
    masked[:, forbidden] = -torch.inf
    expected = masked.log_softmax(-1).amax(-1).tolist()
    found = [value for group in greedy for value in group[0].logprobs]
    assert found == pytest.approx(expected, abs=TOLERANCE)  # greedy reports the masked distribution too


@pytest.mark.parametrize(
    "left_out",
    ["model.layers.1.self_attn.k_proj.bias", "visual.merger.mlp.2.weight", "model.layers.0.mlp.up_proj.weight"],
)
def test_a_partial_update_is_named_and_refused_whole(
    engine: RolloutEngine, prompts: list[Prompt], weights: dict[str, torch.Tensor], left_out: str
) -> None:
    version, before = engine.weight_version, engine.generate(prompts[:3], SAMPLING)
    partial = {name: tensor for name, tensor in changed(weights).items() if name != left_out}
    with pytest.raises(WeightSyncError) as caught:
        push_weights(engine, version + 1, partial.items(), weights.keys())
    assert f"left out by the trainer: {left_out}" in str(caught.value)
    assert "parameters of the engine not covered" in str(caught.value)
    assert engine.weight_version == version
    assert engine.generate(prompts[:3], SAMPLING) == before
    with pytest.raises(WeightSyncError, match="does not know: visual.extra"):
        push_weights(engine, version + 1, (*weights.items(), ("visual.extra", torch.ones(1))), weights.keys())


def test_prompt_ids_that_differ_are_named(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    other = (*prompts[1].token_ids[:3], 0, *prompts[1].token_ids[4:])
    with pytest.raises(ValueError, match=f"prompt '{prompts[1].id}'.*differ first at position 3"):
        engine.generate([prompts[0], dataclasses.replace(prompts[1], token_ids=other)], SAMPLING)
    assert len(engine.generate(prompts[:2], SAMPLING)) == 2  # the engine goes on


def test_a_tensor_tampered_with_after_a_sync_is_found_by_the_gate(
    vllm_engine: Any, settings: EngineSettings, prompts: list[Prompt], weights: dict[str, torch.Tensor]
) -> None:
    push_weights(vllm_engine, vllm_engine.weight_version + 1, weights.items(), weights.keys())
    reference = Reference(settings, weights)

    def gate() -> None:
        groups = vllm_engine.generate(prompts, SAMPLING)
        differences = reference.differences(prompts, groups)
        check_logprob_agreement(float(differences.mean()), float(differences.max()), lambda: prompts[0].id, 1e-4)

    gate()
    model = vllm_engine._llm.llm_engine.model_executor.driver_worker.model_runner.get_model()
    model.get_parameter("language_model.model.layers.1.post_attention_layernorm.weight").data[0] *= 1.5
    with pytest.raises(LogprobGateError, match="sync.logprob_gate"):
        gate()


def test_closing_vllm_leaves_the_trainers_process_group(vllm_engine: RolloutEngine, prompts: list[Prompt]) -> None:
    vllm_engine.close()
    vllm_engine.close()
    total = torch.ones(2)
    torch.distributed.all_reduce(total)
    assert total.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="this engine is closed"):
        vllm_engine.generate(prompts, SAMPLING)


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_an_engine_process_answers_and_its_death_is_reported(
    kind: str,
    settings: EngineSettings,
    prompts: list[Prompt],
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights_folder = tmp_path / "weights"
    weights_folder.mkdir()
    monkeypatch.setattr(weight_file, "_SHARED_MEMORY", weights_folder)
    monkeypatch.setenv("RANK", "3")  # a launcher's variables, which would make vLLM look for other ranks
    monkeypatch.setenv("WORLD_SIZE", "4")
    engine = EngineProcess(kind, settings, timeout_seconds=60, log_file=tmp_path / "engine.log")
    try:
        assert engine.weight_version == 0
        new = changed(weights)
        push_weights(engine, 1, new.items(), weights.keys())
        assert engine.weight_version == 1
        groups = engine.generate(prompts, SAMPLING)
        assert Reference(settings, new).differences(prompts, groups).max() < TOLERANCE
        with pytest.raises(ValueError, match="differ first at position"):
            engine.generate([dataclasses.replace(prompts[0], token_ids=(1,))], SAMPLING)
        assert engine.generate(prompts, SAMPLING) == groups

        threading.Timer(0.2, os.kill, (engine._child.pid, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(EngineProcessError, match=r"died; it was ended by SIGKILL.*engine\.log"):
            while time.monotonic() - started < 30:
                engine.generate(prompts, SAMPLING)
        assert time.monotonic() - started < 5
    finally:
        engine.close()
    assert not list(weights_folder.iterdir())
