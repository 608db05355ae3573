"""What the ranks of a draw run: the layout's outputs and gradients, held against transformers' on rank 0.

A sequence's outputs are its logits [tokens, V] or, from the trainer's head, the log-probability and the entropy of
each token of its response [response, 2].

Shape suffixes: T packed tokens of this rank, V vocabulary, R response tokens of this rank.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from megatron_apo.config import Config
from megatron_apo.parallel.groups import Groups, initialise, shut_down
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import Microbatch, PromptImage, TrainingSample
from megatron_apo.training.forward_step import HeadSettings, response_logprobs, run_model, unwrap
from megatron_apo.training.microbatches import pack_microbatch, response_places, run_schedule
from megatron_apo.training.setup import TrainingState, build_training_state
from megatron_apo.weight_sync.export import export_tensors, main_gradients
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.mrope import mrope_position_ids
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import published_name
from tests.gradients import BOUND, largest, largest_error, relative
from tests.properties.draws import END, IMAGE, START, TEXT_TOKENS, VIDEO, Draw, draw_case
from tests.unit.model_providers.reference import randomise, transformers_logits_of, transformers_model
from tests.unit.training.jobs import job_config

register_missing_operators()  # before transformers is first imported
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration  # noqa: E402, F401 - warm

Tensors = dict[str, torch.Tensor]
FORBIDDEN = (IMAGE, VIDEO, START, END)  # what the sampler never draws
LIMITS = {"outputs": 1e-4, "gradients": BOUND, "copies": BOUND}


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def samples_of(draw: Draw) -> list[TrainingSample]:
    """The draw's sequences, with the ids that follow from their place."""
    samples = []
    for place, sequence in enumerate(draw.sequences):
        ids = torch.randint(0, TEXT_TOKENS, (400,), generator=_generator(draw.number, place)).tolist()
        prompt = [ids.pop() for _ in range(sequence.text)]
        for visual in sequence.visuals:
            t, h, w = visual.grid
            prompt += [START, *[VIDEO if visual.seconds else IMAGE] * (t * h * w // 4), END]
            prompt += [ids.pop() for _ in range(sequence.text)]
        images = tuple(PromptImage(v.name, v.name, v.grid, v.seconds) for v in sequence.visuals)
        response = tuple(ids.pop() for _ in range(sequence.response))
        samples.append(TrainingSample(tuple(prompt), response, images, prompt_id=str(place)))
    return samples


def pixels_of(draw: Draw, name: str, grid: tuple[int, int, int]) -> torch.Tensor:
    """float32 [patches, values], the same for every use of a visual."""
    values = draw.vision["in_channels"] * draw.vision["temporal_patch_size"] * draw.vision["patch_size"] ** 2
    return draw.pixel_scale * torch.randn(math.prod(grid), values, generator=_generator(draw.number, name))


def loss_weights(draw: Draw, place: int, length: int) -> torch.Tensor:
    """float32 [length, V]: the loss is the sum of logits times these, every one of its own size.

    From the trainer's head, of log-probabilities times the first ones of these.
    """
    return torch.randn(length, draw.text["vocab_size"], generator=_generator(draw.number, "loss", place))


def make_checkpoint(draw: Draw, directory: Path) -> None:
    """The draw's model as a published checkpoint, with every tensor random."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(draw.number)
    model = AutoModelForImageTextToText.from_config(hf_config(draw))
    randomise(model, seed=draw.number)
    model.save_pretrained(directory)


def hf_config(draw: Draw) -> Any:
    """transformers' config of the draw's model."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        draw.family,
        text_config=draw.text | {"tie_word_embeddings": draw.tied},
        vision_config=draw.vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=draw.tied,
    )


def plain_logits(draw: Draw, directory: Path, model: Any) -> Iterator[torch.Tensor]:
    """transformers' logits [tokens, V] of each sequence by itself.

    It finds the positions by itself, but where it departs from the models' own rule (``Draw.outlasts``).
    """
    shape = read_shape(directory)
    for sample, sequence in zip(samples_of(draw), draw.sequences, strict=True):
        shown = [(pixels_of(draw, v.name, v.grid), v.grid, v.seconds) for v in sequence.visuals]
        positions = None
        if any(draw.outlasts(visual) for visual in sequence.visuals):
            grids, seconds = [v.grid for v in sequence.visuals], [v.seconds for v in sequence.visuals]
            positions = mrope_position_ids(
                sample.prompt_ids, len(sample.response_ids), grids, shape.vision_tokens, seconds
            )
        yield transformers_logits_of(model, sample.prompt_ids + sample.response_ids, shown, positions)


def reference(draw: Draw, directory: Path, dtype: torch.dtype) -> tuple[list[torch.Tensor], Tensors]:
    """transformers' outputs of each sequence, and its gradients by published name."""
    model, found = transformers_model(directory, dtype), []
    for place, (sample, logits) in enumerate(zip(samples_of(draw), plain_logits(draw, directory, model), strict=True)):
        weights = loss_weights(draw, place, len(logits)).to(dtype)
        if draw.head == "model":
            (logits * weights).sum().backward()
            found.append(logits.detach())
        else:
            response = torch.tensor(sample.response_ids)
            logprobs, entropy = plain_head(logits[-len(response) - 1 : -1], response, draw.temperature)
            (logprobs * weights[: len(response), 0]).sum().backward()
            found.append(torch.stack([logprobs.detach(), entropy], dim=1))
    gradients = {
        published_name(name): torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return found, gradients


def plain_head(
    logits_RV: torch.Tensor, response_R: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy [R] of the distribution that a sampler draws from."""
    allowed_V = torch.ones(logits_RV.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(FORBIDDEN), False)
    distribution = torch.distributions.Categorical(logits=logits_RV[:, allowed_V] / temperature)
    index_R = allowed_V.long().cumsum(0)[response_R] - 1
    return distribution.log_prob(index_R), distribution.entropy().detach()


def _places(batch: Microbatch, samples: list[TrainingSample]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(sequence, rows of this rank that are its tokens, which of its tokens they are) for each in ``batch``."""
    places_T = torch.arange(len(batch.input_ids_T)) if batch.places_T is None else batch.places_T
    for slot, index in enumerate(batch.sample_indices):
        token_T = places_T - int(batch.cu_seqlens[slot])
        rows = ((token_T >= 0) & (token_T < samples[index].length)).nonzero().squeeze(1)
        yield index, rows, token_T[rows]


def _logits_loss(
    logits: torch.Tensor, batch: Microbatch, draw: Draw, groups: Groups, samples: list[TrainingSample], kept: Tensors
) -> torch.Tensor:
    """Its part of the sum over logits times ``loss_weights``; the logits go to ``kept``."""
    logits_TV, width = logits[0], logits.shape[-1]
    first = groups.tensor_rank * width
    total = logits_TV.sum() * 0.0
    for index, rows, tokens in _places(batch, samples):
        weights = loss_weights(draw, index, samples[index].length)[tokens, first : first + width]
        real = logits_TV[rows, : weights.shape[1]]  # without the vocabulary's padding
        total = total + (real * weights).sum()
        kept[f"{index}/{first}/{groups.context_rank}"] = real.detach().contiguous()
        kept[f"{index}/{first}/{groups.context_rank}/tokens"] = tokens
    return total


def _logprobs_loss(
    logprobs_R: torch.Tensor,
    entropy_R: torch.Tensor,
    batch: Microbatch,
    draw: Draw,
    groups: Groups,
    samples: list[TrainingSample],
    kept: Tensors,
) -> torch.Tensor:
    """Its part of the sum over log-probabilities times ``loss_weights``; both outputs go to ``kept``."""
    index_R, token_R = response_places(batch, samples)
    total = logprobs_R.sum() * 0.0
    for index in batch.sample_indices:
        rows = (index_R == index).nonzero().squeeze(1)
        weights = loss_weights(draw, index, samples[index].length)[token_R[rows], 0]
        total = total + (logprobs_R[rows] * weights).sum()
        found = torch.stack([logprobs_R[rows].detach(), entropy_R[rows]], dim=1)
        kept[f"{index}/0/{groups.context_rank}"] = found
        kept[f"{index}/0/{groups.context_rank}/tokens"] = token_R[rows]
    return total


def _forward_step(
    draw: Draw, groups: Groups, samples: list[TrainingSample], kept: Tensors
) -> Callable[[Iterator[Microbatch], Any], tuple[Any, Any]]:
    """Runs a microbatch; its loss is its part of the draw's loss."""
    counts = len(draw.microbatches[0]) * groups.data_size * groups.context_size

    def loss(output: torch.Tensor, model: Any, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        if draw.head == "model":
            total = _logits_loss(output, batch, draw, groups, samples, kept)
        else:
            found = response_logprobs(output, model, batch, head_of(draw), groups)
            total = _logprobs_loss(*found, batch, draw, groups, samples, kept)
        # Megatron divides every gradient by the sum of these counts: times it, nothing is divided.
        return total * counts, torch.tensor(1, dtype=torch.int), {}

    def forward_step(iterator: Iterator[Microbatch], model: Any) -> tuple[Any, Any]:
        batch = next(iterator)
        output = run_model(model, batch, groups, output="logits" if draw.head == "model" else "hidden")
        return output, partial(loss, model=model, batch=batch)

    return forward_step


def head_of(draw: Draw) -> HeadSettings:
    """The trainer's head of the draw."""
    return HeadSettings(draw.temperature, FORBIDDEN, draw.text["vocab_size"], draw.chunk)


def config_of(draw: Draw, checkpoint: Path) -> Config:
    """Settings of the draw's layout."""
    overrides = [f"--model.vision_ffn_multiple={draw.vision_ffn_multiple}"]
    overrides += [f"--parallel.{key}={json.dumps(value)}" for key, value in vars(draw.parallel).items()]
    return job_config(checkpoint, f"--model.recompute={draw.recompute}", *overrides)


def batches_of(draw: Draw, samples: list[TrainingSample], state: TrainingState, groups: Groups) -> list[Microbatch]:
    """This data rank's microbatches of ``samples``."""
    return [
        pack_microbatch(
            samples,
            indices,
            state.shape,
            state.settings,
            groups,
            pixel_values=lambda image: pixels_of(draw, image.path, image.grid_thw),
            sequence_multiple=16 if draw.form == "padded" else 1,
        )
        for indices in draw.microbatches[groups.data_rank]
    ]


def _run_layout(draw: Draw, checkpoint: Path, groups: Groups, parts: Path) -> Tensors:
    """This layout's gradients (on rank 0), and its outputs in ``parts``, as each rank has them."""
    state = build_training_state(config_of(draw, checkpoint), groups, updates=1, reference=False)
    samples, kept = samples_of(draw), Tensors()
    batches = batches_of(draw, samples, state, groups)
    for chunk in state.model:
        chunk.train()
        chunk.zero_grad_buffer()
    run_schedule(state.model, _forward_step(draw, groups, samples, kept), batches)
    if kept:
        save_file(kept, parts / f"outputs_{groups.rank}.safetensors")
    chunks = [unwrap(chunk) for chunk in state.model]
    write_copies(chunks, groups, parts)
    return {name: tensor.clone() for name, tensor in export_tensors(chunks, groups, main_gradients)}


def write_copies(chunks: list[Any], groups: Groups, parts: Path) -> None:
    """Norm and a random projection of each of this rank's gradients, by its tensor and, if cut, the tensor rank."""
    found = {}
    for chunk in chunks:
        rows = model_rows(chunk)
        for name, parameter in global_parameters(chunk):
            gradient, row = main_gradients(parameter).double().flatten(), rows[name]
            probe = torch.randn(gradient.shape, generator=_generator("probe"), dtype=torch.float64)
            part = "" if row.cut is None else f" of tensor rank {groups.tensor_rank}"
            found[row.hf[0] + part] = [float(gradient.norm()), float(gradient @ probe)]
    (parts / f"copies_{groups.rank}.json").write_text(json.dumps(found))


def compare_copies(parts: Path) -> float:
    """Of what several ranks hold of one gradient, relative as ``largest_error``: the comparison reads one of them."""
    copies: dict[str, list[torch.Tensor]] = {}
    for file in parts.glob("copies_*.json"):
        for name, fingerprint in json.loads(file.read_text()).items():
            copies.setdefault(name, []).append(torch.tensor(fingerprint, dtype=torch.float64))
    total = math.sqrt(sum(float(found[0][0]) ** 2 for found in copies.values()))
    return largest(
        relative(float((other - found[0]).abs().max()), max(float(found[0][0]), 1e-3 * total))
        for found in copies.values()
        for other in found
    )


def _whole_outputs(like: list[torch.Tensor], parts: Path) -> list[torch.Tensor]:
    """The outputs of each sequence, put together from all ranks' parts; NaN where none has any."""
    found = [torch.full_like(outputs, torch.nan) for outputs in like]
    for file in parts.glob("outputs_*.safetensors"):
        tensors = load_file(file)
        for key, tokens in tensors.items():
            if key.endswith("/tokens"):
                index, first, _, _ = key.split("/")
                part = tensors[key.removesuffix("/tokens")]
                found[int(index)][tokens, int(first) : int(first) + part.shape[1]] = part
    return found


def compare(draw: Draw, checkpoint: Path, gradients: Tensors, parts: Path) -> dict[str, Any]:
    """Errors of the layout against transformers in float32, and the noise of float32 itself against float64."""
    outputs, expected = reference(draw, checkpoint, torch.float32)
    exact_outputs, exact = reference(draw, checkpoint, torch.float64)
    error, worst = largest_error(gradients, expected)
    triples = list(zip(_whole_outputs(outputs, parts), outputs, exact_outputs, strict=True))
    return {
        "outputs": largest([float((found - wanted).abs().max()) for found, wanted, _ in triples]),
        "outputs_noise": largest([float((wanted - true).abs().max()) for _, wanted, true in triples]),
        "gradients": error,
        "worst": worst,
        "copies": compare_copies(parts),
        "gradients_noise": largest_error(expected, exact)[0],
    }


def check(directory: Path, *, number: int, largest_world: int, attempt: int) -> None:
    """All ranks of one draw; rank 0 writes result.json."""
    torch.set_num_threads(1)
    draw = draw_case(number, largest_world=largest_world, attempt=attempt)
    groups = initialise(draw.parallel, seed=0)
    try:
        checkpoint, parts = directory / "model", directory / "parts"
        if groups.is_controller:
            parts.mkdir()
            make_checkpoint(draw, checkpoint)
        dist.barrier(group=groups.control)
        gradients = _run_layout(draw, checkpoint, groups, parts)
        dist.barrier(group=groups.control)
        if groups.is_controller:
            result = compare(draw, checkpoint, gradients, parts)
            (directory / "result.json").write_text(json.dumps(result))
    finally:
        shut_down()
