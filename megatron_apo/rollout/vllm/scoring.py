"""vLLM's log-probabilities of given responses, by the prefill that its ``prompt_logprobs`` come from.

vLLM cuts the images itself. That it computed with the very pixel values that the others see is checked: its worker
keeps a hash of what its vision tower was given.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from PIL.Image import Image

from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import Prompt, PromptImage
from megatron_apo.rollout.engine import EngineSettings
from megatron_apo.rollout.requests import check_prompt_ids
from megatron_apo.rollout.vllm.engine import VllmEngine
from megatron_apo.rollout.vllm.environment import random_state_kept, uncompiled
from megatron_apo.weight_sync.verify import tensor_hash

_RECORDER = "megatron_apo.rollout.vllm.scoring.PixelRecorder"
# Newer versions of vLLM hand the vision tower bytes, and it normalises them itself: other pixel values, by a rounding.
_NORMALISE_LATER = "mm_device_do_normalize"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PixelRecorder:
    """Mixed into vLLM's worker, which supplies ``model_runner``."""

    model_runner: Any
    _seen: set[str]

    def record_pixels(self) -> None:
        """From now on remembers a hash of each image's pixel values as the vision tower gets them."""
        self._seen = set()
        tower = self.model_runner.get_model().visual

        def remember(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            pixels = arguments[0] if arguments else keywords["x"]
            grids = torch.as_tensor(keywords["grid_thw"] if "grid_thw" in keywords else arguments[1])
            for image in pixels.split(grids.prod(dim=-1).tolist()):
                self._seen.add(tensor_hash(image))

        tower.register_forward_pre_hook(remember, with_kwargs=True)

    def recorded_pixels(self) -> list[str]:
        """The hashes so far."""
        return sorted(self._seen)


class VllmScorer(VllmEngine):
    """A vLLM engine that scores instead of generating. ``pixel_values`` gives an image's patches, as all others get.

    Raises ValueError when vLLM is not installed, and for settings that it cannot serve.
    """

    def __init__(
        self,
        settings: EngineSettings,
        load_image: Callable[[PromptImage], Image],
        pixel_values: Callable[[PromptImage], torch.Tensor],
    ) -> None:
        super().__init__(settings, load_image)
        self._pixel_values = pixel_values
        self._open().collective_rpc("record_pixels")

    def _more_arguments(self) -> dict[str, Any]:
        from vllm import EngineArgs

        arguments: dict[str, Any] = {"worker_extension_cls": _RECORDER}
        if any(field.name == _NORMALISE_LATER for field in dataclasses.fields(EngineArgs)):
            arguments[_NORMALISE_LATER] = False
        return arguments

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability of each token of ``responses`` after its prompt, in order: float64 [tokens].

        The plain softmax: no temperature, no forbidden tokens. ValueError when vLLM expanded a prompt to other ids, or
        cut an image to other pixel values.
        """
        llm = self._open()
        from vllm import SamplingParams

        requests = []
        for prompt, response in zip(prompts, responses, strict=True):
            request = self._request(prompt)
            requests.append(request | {"prompt_token_ids": [*request["prompt_token_ids"], *response]})
        # One token must be drawn after the prefill; nobody looks at it.
        parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        with random_state_kept(), uncompiled():
            outputs = llm.generate(requests, parameters, use_tqdm=sys.stderr.isatty())
        found = []
        for prompt, response, output in zip(prompts, responses, outputs, strict=True):
            start = len(output.prompt_token_ids) - len(response)
            check_prompt_ids(prompt, output.prompt_token_ids[:start])
            assert tuple(output.prompt_token_ids[start:]) == tuple(response), prompt.id
            for token, at in zip(response, output.prompt_logprobs[start:], strict=True):
                found.append(at[token].logprob)
        seen = {digest for worker in llm.collective_rpc("recorded_pixels") for digest in worker}
        check_pixels(prompts, self._pixel_values, _DTYPES[self._settings.dtype], seen)
        return torch.tensor(found, dtype=torch.float64)


def check_pixels(
    prompts: Sequence[Prompt],
    pixel_values: Callable[[PromptImage], torch.Tensor],
    dtype: torch.dtype,
    seen: Collection[str],
) -> None:
    """ValueError unless the hash of every image's pixel values, in ``dtype``, is among those ``seen`` by vLLM."""
    for image in {image.sha256: image for prompt in prompts for image in prompt.images}.values():
        if tensor_hash(pixel_values(image).to(dtype)) not in seen:
            raise ValueError(
                f"image {image.path}: vLLM's vision tower did not get the pixel values that the other backends get; "
                "use the pinned versions of transformers and vLLM, and the pixel limits of the run"
            )


def score_with_vllm(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    settings: EngineSettings,
    *,
    load_image: Callable[[PromptImage], Image],
    pixel_values: Callable[[PromptImage], torch.Tensor],
) -> torch.Tensor:
    """``VllmScorer.score`` of an engine started for it and closed again."""
    register_missing_operators()
    scorer = VllmScorer(settings, load_image, pixel_values)
    try:
        return scorer.score(prompts, responses)
    finally:
        scorer.close()
