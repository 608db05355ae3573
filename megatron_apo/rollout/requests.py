"""What every engine does alike with a request: the check of the prompt's ids, the seeds, the bounds of sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from megatron_apo.records import Prompt
from megatron_apo.rollout.engine import EngineSettings, SamplingSettings


def check_request(prompts: Sequence[Prompt], sampling: SamplingSettings, settings: EngineSettings) -> None:
    """ValueError for sampling that makes no sense, for a prompt without room for its response, for a video."""
    if sampling.group_size < 1 or sampling.max_tokens < 1:
        raise ValueError(
            f"sampling.group_size={sampling.group_size}, sampling.max_tokens={sampling.max_tokens}: both must be at "
            "least 1"
        )
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError(
            f"sampling.temperature={sampling.temperature:g}, sampling.top_p={sampling.top_p:g}: the temperature must "
            "not be negative (0 is greedy), top_p must lie in (0, 1]"
        )
    if sampling.temperature == 0 and sampling.group_size != 1:
        raise ValueError(
            f"sampling.group_size={sampling.group_size} with temperature 0: greedy responses are all the same; use a "
            "group size of 1, or a temperature above 0"
        )
    for prompt in prompts:
        if len(prompt.token_ids) + sampling.max_tokens > settings.max_model_len:
            raise ValueError(
                f"prompt {prompt.id!r}: {len(prompt.token_ids)} tokens and sampling.max_tokens={sampling.max_tokens} "
                f"exceed the engine's max_model_len={settings.max_model_len}; lower sampling.max_tokens or "
                "data.max_prompt_tokens, or build the engine for longer sequences"
            )
        for image in prompt.images:
            if image.seconds_per_grid:
                raise ValueError(
                    f"prompt {prompt.id!r}: {image.path} is a video (seconds_per_grid={image.seconds_per_grid:g}); the "
                    "engines are given images only: leave the prompt out"
                )


def check_prompt_ids(prompt: Prompt, engine_ids: Sequence[int]) -> None:
    """ValueError unless the ids that the engine expanded are the trainer's, naming the first position that differs."""
    if tuple(engine_ids) == prompt.token_ids:
        return
    pairs = enumerate(zip(engine_ids, prompt.token_ids, strict=False))
    shorter = min(len(engine_ids), len(prompt.token_ids))
    position = next((at for at, (engine_id, own_id) in pairs if engine_id != own_id), shorter)
    raise ValueError(
        f"prompt {prompt.id!r}: the engine's {len(engine_ids)} prompt tokens and the trainer's "
        f"{len(prompt.token_ids)} differ first at position {position}; engine and trainer must cut images alike: give "
        "both the same checkpoint, data.min_pixels and data.max_pixels"
    )


def prompt_seed(seed: int, position: int) -> int:
    """Base seed of the prompt at ``position``, ``first_position`` counted: response i draws with this + i. 62 bits."""
    digest = hashlib.sha256(f"{seed}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2
