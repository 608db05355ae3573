"""APO in a Megatron-Core training script of one's own, with a model of its own.

    python examples/own_model/train.py
    torchrun --nproc-per-node 2 examples/own_model/train.py
    torchrun --nproc-per-node 2 examples/own_model/train.py --tensor 2 --objective.name=grpo

Process groups, model, DDP, optimizer and schedule are set up as any Megatron script does it (``policy.py`` holds the
model). From megatron_apo come the steps between a scored response and a loss:

    shape_step       advantages, STCR, DADS and each token's weight in the batch, before it is cut
    distribute       the samples over data ranks and microbatches
    build_microbatch packed tensors of one microbatch
    objective_loss   inside Megatron's loss function: the adapter

Task: say the prompt's digit first (1), and come to an end (0.5): a reward of 1.5 at best.
Any ``--objective.key=value`` of docs/objective.md may follow, but a KL in the reward and ``old_logprobs=trainer``: what
they need before the updates is left to the reader, as the gates and the skipped updates of megatron_apo's own trainer.

Shape suffixes: T packed tokens, H hidden, V vocabulary, S responses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from megatron_apo.platform.host import prepare  # noqa: E402

prepare()  # answers for a missing GPU; nothing where there is one

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402

from examples.own_model.policy import Policy, model_provider, packed_mask  # noqa: E402
from megatron_apo.config import Config  # noqa: E402
from megatron_apo.config_loading import load_config  # noqa: E402
from megatron_apo.data.distribution import distribute  # noqa: E402
from megatron_apo.data.packing import build_microbatch  # noqa: E402
from megatron_apo.objective.objective import kl_coefficient, needs_reference  # noqa: E402
from megatron_apo.objective.samples import shape_step  # noqa: E402
from megatron_apo.parallel.logprobs import vocab_parallel_logprobs  # noqa: E402
from megatron_apo.records import Microbatch, Prompt, ReplicaWork, Rollout, RolloutGroup, Score  # noqa: E402
from megatron_apo.rewards.overlong import OverlongPunishment, overlong_punishment  # noqa: E402
from megatron_apo.training.forward_step import LossSettings, objective_loss  # noqa: E402

DIGITS, END, ASK = 8, 8, 9  # ids below DIGITS are digits
VOCAB, MOST_TOKENS, GROUP, UPDATES = 10, 6, 8, 2
SHOWN = ("loss/total", "kl/raw", "policy/entropy", "policy/clip_fraction")


def logprobs_of(model: Policy, batch: Microbatch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the response tokens, from the last stage's hidden states [T, 1, H]."""
    rows = batch.response_mask_T
    group = parallel_state.get_tensor_model_parallel_group()
    return vocab_parallel_logprobs(hidden[:, 0][rows], model.output_weight(), batch.labels_T[rows], tp_group=group)


def run(model: Any, batch: Microbatch) -> torch.Tensor:
    """Hidden states [T, 1, H]."""
    return model(batch.input_ids_T[None], batch.position_ids_3T[:1], packed_mask(batch.cu_seqlens))


def loss_function(
    model: Policy, batch: Microbatch, settings: LossSettings, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Megatron's ``loss_func``: the objective's part of this microbatch, its tokens, and sums for the metrics."""
    logprobs, entropy = logprobs_of(model, batch, hidden)
    return objective_loss(logprobs, entropy, batch, settings)


def forward_step(
    settings: LossSettings, batches: Iterator[Microbatch], model: Any
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """Megatron's ``forward_step_func``."""
    batch = next(batches)
    return run(model, batch), partial(loss_function, model.module, batch, settings)


@torch.no_grad()
def draw_responses(
    model: Policy, prompts: Sequence[tuple[int, ...]], generator: torch.Generator
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(tokens, log-probabilities) of one response to each prompt, by Gumbel noise that no layout changes."""
    group = parallel_state.get_tensor_model_parallel_group()
    ids = [list(prompt) for prompt in prompts]
    told: list[list[float]] = [[] for _ in prompts]
    for _ in range(MOST_TOKENS):
        noise_SV = -torch.empty(len(ids), VOCAB).exponential_(generator=generator).log()
        lengths = torch.tensor([len(one) for one in ids])
        ends = lengths.cumsum(0)
        boundaries = torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(torch.int32)
        positions = torch.cat([torch.arange(int(length)) for length in lengths])[None]
        row = torch.tensor([token for one in ids for token in one])[None]
        device = model.output_weight().device
        hidden = model(row.to(device), positions.to(device), packed_mask(boundaries.to(device)))[:, 0][ends - 1]
        part = hidden @ model.output_weight().T
        parts = [torch.empty_like(part) for _ in range(group.size())]
        dist.all_gather(parts, part, group=group)
        logprobs_SV = torch.cat(parts, dim=1).log_softmax(dim=1).cpu()
        chosen = (logprobs_SV + noise_SV).argmax(dim=1).tolist()
        for place, token in enumerate(chosen):
            if not told[place] or ids[place][-1] != END:
                ids[place].append(token)
                told[place].append(float(logprobs_SV[place, token]))
    return [
        (tuple(one[len(prompt) :]), tuple(logprobs)) for prompt, one, logprobs in zip(prompts, ids, told, strict=True)
    ]


def judge(digit: int, tokens: tuple[int, ...], overlong: OverlongPunishment | None) -> Score:
    """1 for the digit first, 0.5 for an end after at least one token; less what ``overlong`` takes off."""
    right, ended = tokens[0] == digit, tokens[-1] == END and len(tokens) > 1
    parts = {"accuracy": float(right), "format": float(ended)}
    total = right + 0.5 * ended
    if overlong is not None:
        parts["overlong"] = overlong.part(len(tokens))
        total += overlong.weight * parts["overlong"]
    return Score(total, parts, "correct" if right else "wrong")


def draw_groups(
    model: Policy, step: int, generator: torch.Generator, overlong: OverlongPunishment | None
) -> list[RolloutGroup]:
    """Scored groups: GROUP responses to every digit. All ranks draw all of them, alike."""
    asked = [(digit, ASK) for digit in range(DIGITS)]
    drawn = iter(draw_responses(model, [prompt for prompt in asked for _ in range(GROUP)], generator))
    groups = []
    for prompt in asked:
        name = f"digit {prompt[0]}"
        rollouts = tuple(
            Rollout(name, index, tokens, logprobs, "", "stop" if tokens[-1] == END else "length", step)
            for index, (tokens, logprobs) in zip(range(GROUP), drawn, strict=False)
        )
        scores = tuple(judge(prompt[0], rollout.token_ids, overlong) for rollout in rollouts)
        groups.append(RolloutGroup(Prompt(name, prompt, prompt, (), "", str(prompt[0])), rollouts, scores))
    return groups


def pack(work: ReplicaWork, update: int, device: torch.device) -> list[Microbatch]:
    """This data rank's microbatches of one update."""
    return [
        build_microbatch(
            work.samples,
            indices,
            position_ids=lambda sample: torch.arange(sample.length).expand(3, -1),
            pixel_values=lambda image: torch.zeros(0),  # no images in this task
            vision_token_ids=(),
            spatial_merge_size=1,
            device=device,
        )
        for indices in work.updates[update]
    ]


@torch.no_grad()
def with_reference(batch: Microbatch, reference: Policy) -> Microbatch:
    """``batch`` with the reference's log-probabilities of the response tokens."""
    logprobs_T = torch.zeros_like(batch.policy_weights_T)
    logprobs_T[batch.response_mask_T] = logprobs_of(reference, batch, run(reference, batch))[0]
    return replace(batch, ref_logprobs_T=logprobs_T)


@dataclass(frozen=True)
class Training:
    """What a step works on."""

    model: DistributedDataParallel
    reference: Policy | None
    optimizer: Any
    device: torch.device


def build(options: argparse.Namespace, config: Config, device: torch.device) -> Training:
    """Policy under Megatron's DDP, the reference (the same weights, where a KL is asked for) and the optimizer."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    models = []
    for _ in range(2 if needs_reference(config.objective) else 1):
        tensor_parallel.model_parallel_cuda_manual_seed(config.run.seed)
        torch.manual_seed(config.run.seed)
        models.append(model_provider(VOCAB, options.tensor, groups).to(device))
    model, *references = models
    model.config.finalize_model_grads_func = finalize_model_grads
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model, pg_collection=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron warns that apex is missing; torch's Adam takes its place
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=options.learning_rate), [wrapped])
    return Training(wrapped, references[0] if references else None, optimizer, device)


def train_step(training: Training, config: Config, work: ReplicaWork, step: int) -> list[dict[str, float]]:
    """The updates of rollout ``step``, from 1; the metrics of each that has samples, the same on every rank."""
    found = []
    for update in range(UPDATES):
        batches = pack(work, update, training.device)
        if not batches:  # on every rank: too few groups had contrast (objective.drop_zero_variance)
            continue
        if training.reference is not None:
            batches = [with_reference(batch, training.reference) for batch in batches]
        settings = LossSettings(
            objective=config.objective,
            kl_coefficient=kl_coefficient(config.objective, step, config.run.steps),
            total_tokens=int(work.scalars[f"total_tokens/{update}"]),
            old_logprobs="engine",  # the sampler is the policy itself
        )
        training.model.zero_grad_buffer()
        training.optimizer.zero_grad()
        collected = get_forward_backward_func()(
            forward_step_func=partial(forward_step, settings),
            data_iterator=iter(batches),
            model=[training.model],
            num_microbatches=len(batches),
            seq_length=max(len(batch.labels_T) for batch in batches),
            micro_batch_size=1,
            forward_only=False,
        )
        updated, gradient_norm, _ = training.optimizer.step()
        assert updated, "the optimizer refused the step"
        # Every metric is a sum already divided by what the whole batch has: adding is all there is to do.
        names = [name for name in SHOWN if name in collected[0]]
        sums = torch.stack([torch.stack([one[name].double() for name in names]) for one in collected]).sum(0)
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        more = {"kl/coefficient": settings.kl_coefficient, "gradient norm": float(gradient_norm)}
        found.append(dict(zip(names, sums.tolist(), strict=True)) | more)
    return found


def train(options: argparse.Namespace, config: Config, device: torch.device) -> list[dict[str, float]]:
    """Trains for ``run.steps`` steps; the metrics of each update, with the reward of its step."""
    training, history = build(options, config, device), []
    generator, overlong = torch.Generator().manual_seed(config.run.seed), overlong_punishment(config)
    for step in range(1, config.run.steps + 1):
        groups = draw_groups(training.model.module, step, generator, overlong)
        shaped = shape_step(groups, config.objective, max_tokens=config.sampling.max_tokens, updates=UPDATES)
        works = distribute(
            shaped.samples,
            shaped.updates,
            tokens_per_microbatch=64,
            data_parallel=parallel_state.get_data_parallel_world_size(),
            scalars={},
        )
        work = works[parallel_state.get_data_parallel_rank()]
        scores = [score for group in groups for score in group.scores]
        reward = sum(score.total for score in scores) / len(scores)
        made = train_step(training, config, work, step)
        history += [{"reward": reward} | metrics for metrics in made]
        if dist.get_rank() == 0 and made:
            print(f"step {step} " + " ".join(f"{key} {value:.6f}" for key, value in history[-1].items()), flush=True)
    return history


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Starts the groups, trains, and ends them; returns ``train``'s metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(default: %(default)s)")
    parser.add_argument("--metrics", type=Path, help="write each update's metrics there, as JSON")
    options, settings = parser.parse_known_args(arguments)
    chosen = ["--objective.name=apo", "--objective.stcr.base=1.05", "--objective.old_logprobs=engine"]
    sizes = [f"--sampling.group_size={GROUP}", f"--sampling.max_tokens={MOST_TOKENS}", f"--run.steps={options.steps}"]
    config = load_config(None, [*chosen, *sizes, *settings])
    if config.objective.old_logprobs != "engine":
        parser.error("objective.old_logprobs=trainer: must be engine here, where the sampler is the policy itself")
    if config.objective.kl.placement == "reward":
        parser.error("objective.kl.placement=reward: must be loss here; shape_step's penalties are left to the reader")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    else:
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if cuda:
            torch.cuda.set_device(device)
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=options.tensor)
        history = train(options, config, device)
        if options.metrics and dist.get_rank() == 0:
            options.metrics.write_text(json.dumps(history), encoding="utf-8")
        return history
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
