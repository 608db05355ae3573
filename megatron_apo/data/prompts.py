"""From a row to a tokenised prompt, by the checkpoint's own processor: chat template, image grid, pixels.

The processor tokenises text with one ``<|image_pad|>`` per merged patch. Here the text is tokenised with one per
image, and the ids are expanded afterwards: the same ids (a special token never merges with its neighbours), with both
forms at hand and without running the pixels through the processor just to count patches.

Shape suffixes: L patches, C values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_apo.config import DataConfig
from megatron_apo.data.images import ExaminedImage, examine_image
from megatron_apo.data.patches import patch_format
from megatron_apo.data.pixels import PixelSource
from megatron_apo.data.rows import Row, Turn
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import Prompt, PromptImage

_IMAGE_TOKEN = "<|image_pad|>"
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", _IMAGE_TOKEN, "<|video_pad|>")


class PromptBuilder:
    """Tokenises rows and cuts images as the checkpoint in ``model_dir`` expects it; reads nothing from a network.

    ``eos_token_id`` ends a response. ``forbidden_token_ids`` are the vision tokens of the vocabulary: a policy must
    not sample them, because a forward pass finds images by them. ``spatial_merge_size``: one image token stands for
    that many patches squared. Raises ValueError for a directory without a processor of either family.
    """

    def __init__(self, model_dir: str | Path, data: DataConfig) -> None:
        self.data = data
        self._processor = _load_processor(Path(model_dir))
        self._tokenizer = self._processor.tokenizer
        self._image_processor = self._processor.image_processor
        size = dict(self._image_processor.size)
        if data.min_pixels:
            size["shortest_edge"] = data.min_pixels
        if data.max_pixels:
            size["longest_edge"] = data.max_pixels
        self.min_pixels: int = size["shortest_edge"]
        self.max_pixels: int = size["longest_edge"]
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.min_pixels={self.min_pixels} is above data.max_pixels={self.max_pixels} (0 means the "
                "processor's own); lower the first or raise the second"
            )
        self.spatial_merge_size: int = self._image_processor.merge_size
        self.image_token_id: int = self._special_token(_IMAGE_TOKEN, model_dir)
        self.eos_token_id: int = self._tokenizer.eos_token_id
        known = (self._token_id(token) for token in _VISION_TOKENS)
        self.forbidden_token_ids: tuple[int, ...] = tuple(sorted(id for id in known if id is not None))
        added = self._tokenizer.added_tokens_decoder.values()
        self._special_tokens = tuple(token.content for token in added if token.special)
        self._format = patch_format(self._image_processor, model_dir)
        self._pixels = self.pixel_source()

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (transformers' PreTrainedTokenizerFast)."""
        return self._tokenizer

    def build(self, row: Row, images: Sequence[ExaminedImage] | None = None) -> Prompt:
        """The prompt of one row; ``images`` are what its image files were found to be (default: they are read now).

        Raises ValueError with the row's id for bad images, special tokens in the text, and more than
        max_prompt_tokens: a prompt is never cut.
        """
        try:
            if images is None:
                images = [examine_image(path) for path in row.images]
            found = tuple(
                PromptImage(image.path, image.sha256, self._grid(image.height, image.width)) for image in images
            )
            text = self._processor.apply_chat_template(self._messages(row), tokenize=False, add_generation_prompt=True)
            collapsed = self._ids(text)
            expanded = self._expand(collapsed, found)
            if len(expanded) > self.data.max_prompt_tokens:
                raise ValueError(
                    f"{len(expanded)} prompt tokens exceed data.max_prompt_tokens={self.data.max_prompt_tokens}; "
                    "raise it, lower data.max_pixels, or remove the row"
                )
        except ValueError as error:
            raise ValueError(f"row {row.id!r}: {error}") from error
        return Prompt(
            id=row.id,
            token_ids=tuple(expanded),
            collapsed_ids=tuple(collapsed),
            images=found,
            question=row.question,
            gold=row.answer,
            demonstration=row.demonstration,
            category=row.category,
            choices=row.choices,
        )

    def pixel_values(self, image: PromptImage) -> torch.Tensor:
        """Normalised patches float32 [L, C] of one image, on the CPU; see ``PixelSource``."""
        return self._pixels(image).flatten(1)

    def pixel_source(self, *, workers: int = 0, device: torch.device | str = "cpu") -> PixelSource:
        """The pixels of this builder's prompts, cut by ``workers`` processes ahead of need; close it."""
        return PixelSource(self._format, self._grid, workers=workers, device=device)

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a response to imitate, end-of-sequence included; ValueError if it contains a vision token."""
        ids = self._ids(text)
        forbidden = set(self.forbidden_token_ids).intersection(ids)
        if forbidden:
            names = ", ".join(self._tokenizer.convert_ids_to_tokens(sorted(forbidden)))
            raise ValueError(f"demonstration {text[:60]!r} contains {names}, which a response must not; remove it")
        return (*ids, self.eos_token_id)

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        turns = row.turns or (Turn("user", (*range(len(row.images)), row.question)),)
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [self._part(part) for part in turn.parts]} for turn in turns
        ]
        if self.data.instruction:
            content = messages[-1]["content"]
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += f"\n{self.data.instruction}"
            else:
                content.append({"type": "text", "text": self.data.instruction})
        for message in messages:
            if message["role"] != "user":  # templates expect plain text there
                message["content"] = "".join(part["text"] for part in message["content"])
        if self.data.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.data.system_prompt})
        return messages

    def _part(self, part: str | int) -> dict[str, str]:
        if isinstance(part, int):
            return {"type": "image"}
        special = next((token for token in self._special_tokens if token in part), None)
        if special is not None:
            raise ValueError(f"its text contains {special}, which the model reads as a mark of its own; remove it")
        return {"type": "text", "text": part}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def _grid(self, height: int, width: int) -> tuple[int, int, int]:
        """Patches (time, height, width) of a picture of that many pixels: the processor's own rounding."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        patch = self._image_processor.patch_size
        resized_height, resized_width = smart_resize(
            height,
            width,
            factor=patch * self.spatial_merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return (1, resized_height // patch, resized_width // patch)

    def _expand(self, collapsed: list[int], images: Sequence[PromptImage]) -> list[int]:
        found = collapsed.count(self.image_token_id)
        if found != len(images):
            raise ValueError(
                f"the prompt has {found} {_IMAGE_TOKEN} for {len(images)} image(s); remove special tokens from the "
                "question, or use a chat template that places one per image"
            )
        expanded: list[int] = []
        remaining = iter(images)
        for token in collapsed:
            if token == self.image_token_id:
                time, height, width = next(remaining).grid_thw
                expanded.extend([token] * (time * height * width // self.spatial_merge_size**2))
            else:
                expanded.append(token)
        return expanded

    def _token_id(self, token: str) -> int | None:
        found = self._tokenizer.convert_tokens_to_ids(token)
        return None if found is None or found == self._tokenizer.unk_token_id else int(found)

    def _special_token(self, token: str, model_dir: str | Path) -> int:
        found = self._token_id(token)
        if found is None:
            raise ValueError(
                f"model.path={model_dir}: its tokenizer has no {token}; use a Qwen2.5-VL or Qwen2-VL checkpoint"
            )
        return found


def _load_processor(directory: Path) -> Any:
    if not directory.is_dir():
        raise ValueError(f"model.path={directory}: no such directory; give a local Hugging Face checkpoint")
    register_missing_operators()
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model.path={directory}: its processor cannot be loaded ({error}); a Qwen2.5-VL checkpoint holds "
            "preprocessor_config.json, tokenizer.json, tokenizer_config.json and a chat template"
        ) from error
    image_processor = getattr(processor, "image_processor", None)
    if getattr(image_processor, "merge_size", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ValueError(
            f"model.path={directory}: {type(processor).__name__} is not a Qwen2.5-VL or Qwen2-VL processor; use a "
            "checkpoint of one of them"
        )
    if not processor.chat_template:
        raise ValueError(f"model.path={directory}: has no chat template; add chat_template.jinja to the checkpoint")
    return processor
