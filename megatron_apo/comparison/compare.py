"""One comparison from its options: Megatron on all processes first, then the other backends on rank 0 alone."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_apo.comparison.inputs import Scored, read_samples
from megatron_apo.comparison.megatron_scores import score_with_megatron
from megatron_apo.comparison.results import (
    PICTURE,
    SUMMARY,
    TOKENS,
    Comparison,
    table,
    write_summary,
    write_tokens,
)
from megatron_apo.comparison.transformers_scores import score_with_transformers
from megatron_apo.config import Config, DataConfig
from megatron_apo.config_loading import load_config
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.observability.console import say
from megatron_apo.parallel.groups import initialise, launched_processes, shut_down
from megatron_apo.parallel.status import phase
from megatron_apo.rollout.build import open_image
from megatron_apo.rollout.engine import EngineSettings
from megatron_apo.rollout.process import of_launcher
from megatron_apo.training.setup import DTYPES, check_model_layout
from model_providers.qwen_vl.shape import read_shape


def compare(options: argparse.Namespace, backends: Sequence[str]) -> int:
    """Scores with ``backends``, prints the table and writes the files; 1 when ``options.limit`` is exceeded, else 0.

    On ranks beside the first it takes part in Megatron's pass and returns 0. ValueError for what the user can mend.
    """
    inputs = _Inputs(options)
    about = _about(options, backends)
    scores: dict[str, torch.Tensor] = {}
    if "megatron" in backends:
        config = _config(options)
        check_model_layout(config)
        groups = initialise(config.parallel, seed=0)
        try:
            with phase(groups, "read samples"):
                inputs.read()
            if groups.is_controller:
                say(f"{about['megatron']}: {len(inputs.samples)} samples")
            weights: Path = options.megatron_weights or options.model
            pixel_values = inputs.builder.pixel_values
            scores["megatron"] = score_with_megatron(inputs.samples, weights, config, groups, pixel_values=pixel_values)
        finally:
            shut_down()
        if not groups.is_controller:
            return 0
        _free_memory()
    elif launched_processes() > 1:
        raise ValueError(
            f"{launched_processes()} processes run, but only Megatron uses more than one; add megatron to --backends, "
            "or start without torchrun"
        )
    inputs.read()
    if "transformers" in backends:
        say(f"transformers: {len(inputs.samples)} samples")
        dtype = DTYPES[options.dtype]
        scores["transformers"] = score_with_transformers(
            inputs.samples, options.model, dtype, pixel_values=inputs.builder.pixel_values
        )
        _free_memory()
    if "vllm" in backends:
        say(f"vllm: {len(inputs.samples)} samples")
        scores["vllm"] = _vllm(inputs, options)
    tokenizer = inputs.builder.tokenizer
    comparison = Comparison(
        inputs.samples,
        {name: scores[name].double() for name in backends},
        lambda token: str(tokenizer.decode([token])),
        about,
    )
    return _tell(comparison, options)


class _Inputs:
    """Prompts and responses, read when first asked for: by then a rank can tell the others of a failure."""

    builder: PromptBuilder
    samples: list[Scored]

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._read = False
        self.shape = read_shape(options.model)

    def read(self) -> None:
        if self._read:
            return
        options = self._options
        data = DataConfig(
            min_pixels=options.min_pixels, max_pixels=options.max_pixels, max_prompt_tokens=self.shape.max_positions
        )
        self.builder = PromptBuilder(options.model, data)
        self.samples = read_samples(
            options.data,
            self.builder,
            image_root=options.image_root,
            limit=options.samples,
            vocab=self.shape.vocab,
        )
        self._read = True


def _config(options: argparse.Namespace) -> Config:
    return load_config(
        None,
        [
            f"--model.path={options.model}",
            f"--model.dtype={options.dtype}",
            f"--model.layer_spec={options.layer_spec}",
            "--data.train=unused",
            f"--parallel.tensor={options.tensor}",
            f"--parallel.sequence={str(options.sequence).lower()}",
            f"--parallel.pipeline={options.pipeline}",
            f"--parallel.virtual_pipeline={options.virtual_pipeline}",
            f"--parallel.context={options.context}",
            f"--training.tokens_per_microbatch={options.tokens_per_microbatch}",
        ],
    )


def _about(options: argparse.Namespace, backends: Sequence[str]) -> dict[str, str]:
    """What is compared, in words."""
    about = {
        "model": "/".join(options.model.resolve().parts[-2:]),
        "data": options.data.name,
        "dtype": options.dtype,
    }
    if "megatron" in backends:
        sizes = {"tensor": options.tensor, "pipeline": options.pipeline, "context": options.context}
        data = launched_processes() // max(1, options.tensor * options.pipeline * options.context)
        layout = " x ".join(f"{name} {size}" for name, size in {**sizes, "data": data}.items())
        weights = f", weights {options.megatron_weights.name}" if options.megatron_weights else ""
        about["megatron"] = f"megatron ({layout}{weights})"
    return about


def _vllm(inputs: _Inputs, options: argparse.Namespace) -> torch.Tensor:
    from megatron_apo.rollout.vllm.scoring import score_with_vllm

    for name in [name for name in os.environ if of_launcher(name)]:
        del os.environ[name]  # vLLM's own process group is not torchrun's
    samples = inputs.samples
    settings = EngineSettings(
        model=str(options.model),
        dtype=options.dtype,
        forbidden_token_ids=(),
        max_model_len=max(sample.length for sample in samples) + 1,
        max_images=max(1, *(len(sample.prompt.images) for sample in samples)),
        memory_gib=options.kv_cache_gib,
        gpu_memory_utilization=options.gpu_memory_utilization,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    return score_with_vllm(
        [sample.prompt for sample in samples],
        [sample.response_ids for sample in samples],
        settings,
        load_image=open_image,
        pixel_values=inputs.builder.pixel_values,
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell(comparison: Comparison, options: argparse.Namespace) -> int:
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    write_tokens(comparison, output / TOKENS)
    write_summary(comparison, output / SUMMARY, options.limit)
    written = [TOKENS, SUMMARY]
    if not options.no_plot:
        from megatron_apo.comparison.picture import write_picture

        write_picture(comparison, output / PICTURE, limit=options.limit)
        written.append(PICTURE)
    print(table(comparison, options.limit))
    say(f"written to {output}: {', '.join(written)}")
    exceeded = options.limit is not None and not all(pair.within(options.limit) for pair in comparison.pairs())
    return int(exceeded)
