"""The rollout engine on transformers alone: slower than vLLM, and there wherever torch is.

One prompt of a group is prefilled once and its key-value cache repeated for the group. The vision tower runs once per
image of a call. Rotary positions are computed here for every forward pass: the model would otherwise remember those
of the last call.

Shape suffixes: P prompts, R responses (P times the group size), S prompt positions (left-padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file

from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import FinishReason, Prompt, PromptImage, Rollout
from megatron_apo.rollout.engine import EngineSettings, SamplingSettings, WeightReceipt
from megatron_apo.rollout.requests import check_prompt_ids, check_request, prompt_seed
from megatron_apo.weight_sync.verify import tensor_hash

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TransformersEngine:
    """A ``RolloutEngine`` on transformers. ``load_image`` opens a prompt's picture (RGB).

    Raises ValueError for a directory without a checkpoint that transformers loads as an image-text model.
    """

    def __init__(self, settings: EngineSettings, load_image: Callable[[PromptImage], Image]) -> None:
        if settings.dtype not in _DTYPES:
            raise ValueError(f"model.dtype={settings.dtype}: must be one of {', '.join(_DTYPES)}")
        register_missing_operators()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._settings = settings
        self._load_image = load_image
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._weight_version = 0
        try:
            self._processor: Any = AutoProcessor.from_pretrained(settings.model, local_files_only=True)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                settings.model, dtype=_DTYPES[settings.dtype], local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"model.path={settings.model}: transformers cannot load it ({error})") from error
        self._model.to(self._device).eval().requires_grad_(False)
        self._eos: int = self._processor.tokenizer.eos_token_id
        self._image_token: int = self._model.config.image_token_id
        self._forbidden = torch.tensor(settings.forbidden_token_ids, dtype=torch.int64, device=self._device)

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        check_request(prompts, sampling, self._settings)
        self._open()
        at_once = max(1, self._settings.max_num_sequences // sampling.group_size)
        groups: list[list[Rollout]] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), at_once):
                groups += self._generate(prompts[start : start + at_once], start, sampling)
        return groups

    def update_weights(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> WeightReceipt:
        model = self._open()
        tensors = dict(weights)
        parameters = dict(model.named_parameters())
        own = {name: _in_memory_name(name) for name in tensors}
        missing = parameters.keys() - own.values()
        unknown = {name for name in tensors if own[name] not in parameters}
        hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
        if missing or unknown:
            return WeightReceipt(
                self._weight_version, hashes, missing=tuple(sorted(missing)), unknown=tuple(sorted(unknown))
            )
        for name, tensor in tensors.items():
            if tensor.shape != parameters[own[name]].shape:
                raise ValueError(
                    f"weight {name!r} has shape {tuple(tensor.shape)}, the model's is "
                    f"{tuple(parameters[own[name]].shape)}; export it from the same configuration"
                )
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[own[name]].copy_(tensor)
        self._weight_version = version
        return WeightReceipt(version, hashes, loaded=tuple(sorted(own.values())))

    def update_weights_from_file(self, version: int, path: Path) -> WeightReceipt:
        """``update_weights`` from a safetensors file."""
        return self.update_weights(version, load_file(path).items())

    def close(self) -> None:
        self._model = None

    def _open(self) -> Any:
        if self._model is None:
            raise RuntimeError("this engine is closed")
        return self._model

    def _generate(self, prompts: Sequence[Prompt], first: int, sampling: SamplingSettings) -> list[list[Rollout]]:
        """Rollouts of prompts ``first``, ``first + 1``, … of the call, all in one batch."""
        group, device = sampling.group_size, self._device
        length = max(len(prompt.token_ids) for prompt in prompts)
        input_PS = torch.full((len(prompts), length), self._eos)
        mask_PS = torch.zeros((len(prompts), length), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            input_PS[row, length - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask_PS[row, length - len(prompt.token_ids) :] = 1
        input_PS, mask_PS = input_PS.to(device), mask_PS.to(device)
        vision = self._vision_inputs(prompts)
        positions_3PS = self._positions(input_PS, mask_PS, vision.get("image_grid_thw"))

        output = self._model(
            input_ids=input_PS,
            attention_mask=mask_PS,
            position_ids=positions_3PS,
            use_cache=True,
            logits_to_keep=1,
            **vision,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(group)
        logits_RV = output.logits[:, -1].repeat_interleave(group, dim=0)
        mask = mask_PS.repeat_interleave(group, dim=0)
        next_3R1 = positions_3PS.amax(dim=(0, 2)).repeat_interleave(group)[None, :, None].expand(3, -1, 1)

        draws = self._uniforms(len(prompts), first, sampling)
        tokens: list[torch.Tensor] = []
        logprobs: list[torch.Tensor] = []
        finished = torch.zeros(len(logits_RV), dtype=torch.bool, device=device)
        for step in range(sampling.max_tokens):
            logprobs_RV = self._logprobs(logits_RV, sampling)
            greedy = sampling.temperature == 0
            chosen_R = logprobs_RV.argmax(dim=-1) if greedy else sample(logprobs_RV, draws[:, step])
            tokens.append(chosen_R)
            logprobs.append(logprobs_RV.gather(1, chosen_R[:, None])[:, 0])
            finished |= chosen_R == self._eos
            if step + 1 == sampling.max_tokens or bool(finished.all()):
                break
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            next_3R1 = next_3R1 + 1
            output = self._model(
                input_ids=chosen_R[:, None],
                attention_mask=mask,
                position_ids=next_3R1,
                past_key_values=cache,
                use_cache=True,
            )
            logits_RV = output.logits[:, -1]
        return self._rollouts(prompts, group, torch.stack(tokens, dim=1).tolist(), torch.stack(logprobs, 1).tolist())

    def _vision_inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """``pixel_values`` and ``image_grid_thw`` of all the images; ValueError when a prompt's ids do not fit them."""
        pictures = [self._load_image(image) for prompt in prompts for image in prompt.images]
        cut: dict[str, Any] = {}
        if pictures:
            processor = self._processor.image_processor
            size = dict(processor.size)
            if self._settings.min_pixels:
                size["shortest_edge"] = self._settings.min_pixels
            if self._settings.max_pixels:
                size["longest_edge"] = self._settings.max_pixels
            cut = processor(images=pictures, size=size, return_tensors="pt")
        merged = self._processor.image_processor.merge_size**2
        counts = [grid.prod().item() // merged for grid in cut.get("image_grid_thw", ())]
        for prompt in prompts:
            own, counts = counts[: len(prompt.images)], counts[len(prompt.images) :]
            expanded: list[int] = []
            for token in prompt.collapsed_ids:
                expanded += [token] * (own.pop(0) if token == self._image_token and own else 1)
            check_prompt_ids(prompt, expanded)
        if not pictures:
            return {}
        dtype = _DTYPES[self._settings.dtype]
        return {
            "pixel_values": cut["pixel_values"].to(self._device, dtype),
            "image_grid_thw": cut["image_grid_thw"].to(self._device),
        }

    def _positions(self, input_PS: torch.Tensor, mask_PS: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
        """Rotary positions [3, P, S] of left-padded prompts."""
        if grids is None:
            return (mask_PS.cumsum(-1) - 1).clamp_min(0)[None].expand(3, -1, -1)
        types_PS = (input_PS == self._image_token).to(torch.int32)
        positions, _ = self._model.model.get_rope_index(
            input_PS, mm_token_type_ids=types_PS, image_grid_thw=grids, attention_mask=mask_PS
        )
        return torch.where(mask_PS[None] == 1, positions, 0)

    def _logprobs(self, logits_RV: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
        """Log-probabilities float32 of the distribution that is sampled: forbidden tokens, temperature, top_p."""
        logits_RV = logits_RV.float()
        logits_RV[:, self._forbidden] = float("-inf")
        if sampling.temperature > 0:
            logits_RV = logits_RV / sampling.temperature
        logprobs_RV = logits_RV.log_softmax(dim=-1)
        if sampling.top_p >= 1:
            return logprobs_RV
        ordered, order = logprobs_RV.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()  # probability of the tokens that are likelier
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        return logprobs_RV.masked_fill(outside, float("-inf")).log_softmax(dim=-1)

    def _uniforms(self, prompts: int, first: int, sampling: SamplingSettings) -> torch.Tensor:
        """One float64 draw in [0, 1) per response and step [R, max_tokens], each response with its own seed."""
        rows = []
        for position in range(sampling.first_position + first, sampling.first_position + first + prompts):
            base = prompt_seed(sampling.seed, position)
            for index in range(sampling.group_size):
                generator = torch.Generator().manual_seed(base + index)
                rows.append(torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64))
        return torch.stack(rows).to(self._device)

    def _rollouts(
        self, prompts: Sequence[Prompt], group: int, tokens: list[list[int]], logprobs: list[list[float]]
    ) -> list[list[Rollout]]:
        groups = []
        for row, prompt in enumerate(prompts):
            rollouts = []
            for index in range(group):
                ids, values = tokens[row * group + index], logprobs[row * group + index]
                ended: FinishReason = "stop" if self._eos in ids else "length"
                count = ids.index(self._eos) + 1 if ended == "stop" else len(ids)
                text = self._processor.tokenizer.decode(ids[:count], skip_special_tokens=True)
                rollouts.append(
                    Rollout(
                        prompt.id, index, tuple(ids[:count]), tuple(values[:count]), text, ended, self._weight_version
                    )
                )
            groups.append(rollouts)
        return groups


def sample(logprobs_RV: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """Draws a token per row by inverting the distribution function at ``uniforms_R`` in [0, 1); [R] int64.

    In float64, and never a token of probability 0: the first whose cumulative probability exceeds the draw.
    """
    cumulative_RV = logprobs_RV.double().exp().cumsum(dim=-1)
    total_R1 = cumulative_RV[:, -1:].clone()
    chosen = torch.searchsorted(cumulative_RV, uniforms_R[:, None] * total_R1, right=True)
    last = torch.searchsorted(cumulative_RV, total_R1)  # the last token of positive probability
    return torch.minimum(chosen, last)[:, 0]


def _in_memory_name(name: str) -> str:
    """transformers' name of a parameter in memory, from the one in published files (either is understood)."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
