"""vLLM as a rollout engine, in this process (its core too: ``VLLM_ENABLE_V1_MULTIPROCESSING=0``).

Prompts go in as token ids with one image placeholder per image and the pictures beside them; vLLM expands them, and the
expanded ids are compared with the trainer's for every prompt. Out come token ids and the log-probabilities of the very
distribution that was sampled from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import FinishReason, Prompt, PromptImage, Rollout
from megatron_apo.rollout.engine import EngineSettings, SamplingSettings, WeightReceipt
from megatron_apo.rollout.requests import check_prompt_ids, check_request, prompt_seed
from megatron_apo.rollout.vllm.environment import (
    default_process_group,
    prepare_environment,
    process_group_kept,
    process_kept,
    random_state_kept,
    uncompiled,
)
from megatron_apo.rollout.weight_file import weight_file

_FORBIDDEN_TOKENS = "megatron_apo.rollout.vllm.forbidden_tokens:ForbiddenTokens"
_FORBIDDEN_KEY = "megatron_apo_forbidden_token_ids"
_RECEIVER = "megatron_apo.rollout.vllm.worker.WeightReceiver"
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}  # vLLM's others: aborted or in error
_CPU_BATCH_TOKENS = 16384


class VllmEngine:
    """A ``RolloutEngine`` on vLLM. ``load_image`` opens a prompt's picture (RGB), wherever pictures may be opened.

    Building it leaves torch's generators, threads, default process group and the environment as they were. Raises
    ValueError for settings that vLLM cannot serve.
    """

    def __init__(self, settings: EngineSettings, load_image: Callable[[PromptImage], Image]) -> None:
        self._settings = settings
        self._load_image = load_image
        self._weight_version = 0
        self._llm: Any = None
        architectures = architectures_of(settings.model)
        prepare_environment()
        register_missing_operators()
        guest = default_process_group() is not None
        with process_kept(), uncompiled():
            from vllm import LLM

            inspect_models_here(architectures)
            self._llm = LLM(**_engine_arguments(settings), **self._more_arguments())
        self._own_group = None if guest else default_process_group()

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        check_request(prompts, sampling, self._settings)
        llm = self._open()
        from vllm import SamplingParams

        first = sampling.first_position
        parameters = [
            SamplingParams(
                n=sampling.group_size,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=None if sampling.temperature == 0 else prompt_seed(sampling.seed, position),
                logprobs=0,  # the sampled token's own, nothing more
                detokenize=False,
            )
            for position in range(first, first + len(prompts))
        ]
        with random_state_kept(), uncompiled():
            outputs = llm.generate([self._request(prompt) for prompt in prompts], parameters, use_tqdm=False)
        groups = []
        for prompt, output in zip(prompts, outputs, strict=True):
            check_prompt_ids(prompt, output.prompt_token_ids)
            groups.append([self._rollout(prompt, completion) for completion in output.outputs])
        return groups

    def update_weights(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> WeightReceipt:
        with weight_file(weights) as path:
            return self.update_weights_from_file(version, path)

    def update_weights_from_file(self, version: int, path: Path) -> WeightReceipt:
        """``update_weights`` from a safetensors file that every worker of this engine can read."""
        llm = self._open()
        with random_state_kept(), uncompiled(), torch.no_grad():
            answers = llm.collective_rpc("receive_weights", args=(str(path), "cpu"))
            llm.llm_engine.reset_encoder_cache()
            llm.reset_prefix_cache()
        answer = answers[0]
        complete = all(not other["missing"] and not other["unknown"] for other in answers)
        if complete:
            self._weight_version = version
        return WeightReceipt(
            version=self._weight_version,
            hashes=answer["hashes"],
            loaded=tuple(answer["loaded"]),
            missing=tuple(sorted({name for other in answers for name in other["missing"]})),
            unknown=tuple(sorted({name for other in answers for name in other["unknown"]})),
        )

    def close(self) -> None:
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        own, self._own_group = self._own_group, None
        with process_kept(), process_group_kept(own):
            llm.llm_engine.engine_core.shutdown()

    def _more_arguments(self) -> dict[str, Any]:
        """What an engine for another purpose is built with differently; vLLM can be imported by then."""
        return {"worker_extension_cls": _RECEIVER}

    def _open(self) -> Any:
        if self._llm is None:
            raise RuntimeError("this engine is closed")
        return self._llm

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt_token_ids": list(prompt.collapsed_ids)}
        if prompt.images:
            request["multi_modal_data"] = {"image": [self._load_image(image) for image in prompt.images]}
            request["multi_modal_uuids"] = {"image": [image.sha256 for image in prompt.images]}
        return request

    def _rollout(self, prompt: Prompt, completion: Any) -> Rollout:
        token_ids = tuple(completion.token_ids)
        return Rollout(
            prompt_id=prompt.id,
            index=completion.index,
            token_ids=token_ids,
            logprobs=tuple(at[token].logprob for at, token in zip(completion.logprobs, token_ids, strict=True)),
            text=self._text(token_ids),
            finish_reason=_FINISH.get(completion.finish_reason, "abort"),
            weight_version=self._weight_version,
        )

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self._llm.get_tokenizer().decode(token_ids, skip_special_tokens=True)
        return text


def inspect_models_here(architectures: Sequence[str]) -> None:
    """Gives vLLM the model's class, which it would otherwise import in a child process just to look at it.

    That child takes seconds, and knows nothing of ``register_missing_operators``.
    """
    from vllm import ModelRegistry

    for architecture in architectures:
        registered = ModelRegistry.models.get(architecture)
        if registered is None:
            raise ValueError(f"model.path: vLLM has no {architecture}; use rollout.engine: transformers")
        ModelRegistry.register_model(architecture, registered.load_model_cls())


def architectures_of(model: str) -> list[str]:
    path = Path(model) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"model.path={model}: {path.name} cannot be read ({error}); give the directory of a Hugging Face checkpoint"
        ) from error
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list) or not architectures:
        raise ValueError(f"model.path={model}: config.json names no architectures; use a complete checkpoint")
    return [str(name) for name in architectures]


def _engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    on_cpu = not torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_sequences,
        "tensor_parallel_size": settings.tensor_parallel,
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 0},
        "logprobs_mode": "processed_logprobs",
        "logits_processors": [_FORBIDDEN_TOKENS],
        "additional_config": {_FORBIDDEN_KEY: list(settings.forbidden_token_ids)},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # the checkpoint's sampling defaults (top_k, penalties) must not slip in
    }
    size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    if any(size.values()):
        arguments["mm_processor_kwargs"] = {"size": {edge: pixels for edge, pixels in size.items() if pixels}}
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(settings.memory_gib * 2**30),
            # A prompt prefilled in parts makes vLLM rewind the request's random generator, which a CPU one cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, settings.max_model_len),
            "block_size": 32,  # the smallest good one: a group shares the whole blocks of its prompt
        }
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments
