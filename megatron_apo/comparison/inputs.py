"""The sequences that every backend scores: prompts with images, and given responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.reading import read_data
from megatron_apo.records import Prompt
from megatron_apo.rollout.record_files import read_step, recorded_steps


@dataclass(frozen=True)
class Scored:
    """A prompt and the response whose tokens are scored; ``id`` names it in every output."""

    id: str
    prompt: Prompt
    response_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt.token_ids) + len(self.response_ids)


def read_samples(source: Path, builder: PromptBuilder, *, image_root: str, limit: int, vocab: int) -> list[Scored]:
    """The first ``limit`` samples of a data file (``from_rows``) or a rollouts directory (``from_rollouts``).

    ValueError when there are none, and for a response that not every backend can score: one with a token outside the
    model's ``vocab``, or a vision token (transformers and vLLM would look for its image).
    """
    if limit < 1:
        raise ValueError(f"--samples {limit}: must be at least 1")
    found = from_rollouts(source, limit) if source.is_dir() else from_rows(source, builder, image_root, limit)
    forbidden = frozenset(builder.forbidden_token_ids)
    for sample in found:
        if any(image.seconds_per_grid for image in sample.prompt.images):
            raise ValueError(f"{source}: sample {sample.id!r} shows a video; only images are compared: leave it out")
        for position, token in enumerate(sample.response_ids):
            if token in forbidden or not 0 <= token < vocab:
                what = "is a vision token" if token in forbidden else f"lies outside the vocabulary of {vocab}"
                raise ValueError(
                    f"{source}: sample {sample.id!r}, response token {position}: id {token} {what}; leave the sample "
                    "out, or give the model that drew it"
                )
    return found


def from_rows(path: Path, builder: PromptBuilder, image_root: str, limit: int) -> list[Scored]:
    """Good rows of a data file; the response is the row's demonstration, or its answer where it has none."""
    prompts = read_data(
        builder, [str(path)], setting="data", check_gold=lambda *_: None, image_root=image_root, limit=limit
    )
    return [Scored(prompt.id, prompt, builder.response_ids(prompt.demonstration or prompt.gold)) for prompt in prompts]


def from_rollouts(directory: Path, limit: int) -> list[Scored]:
    """Recorded responses, the newest step's first: those are the nearest to the model that the run ended with.

    Aborted responses without a token are left out.
    """
    found: list[Scored] = []
    for step in reversed(recorded_steps(directory)):
        for group in read_step(directory, step):
            found += [
                Scored(f"step{step}/{group.prompt.id}#{rollout.index}", group.prompt, rollout.token_ids)
                for rollout in group.rollouts
                if rollout.token_ids
            ]
        if len(found) >= limit:
            break
    if not found:
        raise ValueError(f"{directory}: no recorded responses there; give a run's rollouts/ directory, or a data file")
    return found[:limit]


def token_places(samples: Sequence[Scored]) -> list[tuple[int, int]]:
    """(sample, position in its response) of every scored token, in the order of all results."""
    return [(index, position) for index, sample in enumerate(samples) for position in range(len(sample.response_ids))]
