"""Chunked log-probabilities against plain log_softmax: time and memory, as ratios.

    python benchmarks/logprobs.py [--tokens 4096] [--vocabulary 152064] [--hidden 2048] [--chunk 256 512 1024]
                                  [--threads 1] [--clock cpu] [--parameter torch]

Time: forward without gradients, then forward and backward with a trainable head. All ways run in one process, round
after round (--rounds, the order turned each time, one more before them not counted), and a ratio is the median of the
rounds' own ratios, so that a machine that changes its speed changes both sides. Memory: each way in a process of its
own, what it adds to the peak resident size (on a GPU: to the allocator's peak) over inputs, gradients and buffer.

The head is a parameter under Megatron's DDP, as in a trainer: its gradient ends, either way, in the float32 buffer that
is there before. With --parameter torch it is one of torch alone, with a ``.grad`` that is there before. --clock cpu:
CPU seconds, for one thread on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_apo.platform.host import prepare  # noqa: E402

prepare()

import torch  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

from megatron_apo.config import ParallelConfig  # noqa: E402
from megatron_apo.parallel.groups import initialise, shut_down  # noqa: E402
from megatron_apo.parallel.logprobs import vocab_parallel_logprobs  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--chunk", type=int, nargs="+", default=[512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--parameter", choices=("megatron", "torch"), default="megatron")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="run these, sizes of chunks or plain, in this process; print JSON")
    return parser.parse_args()


def plain_logprobs(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits at once; the entropy without a gradient, as the chunked way."""
    log_p_TV = (hidden_TH @ weight_VH.t()).float().log_softmax(dim=-1)
    with torch.no_grad():
        entropy_T = -(log_p_TV.exp() * log_p_TV).sum(dim=-1)
    return log_p_TV.gather(1, labels_T[:, None])[:, 0], entropy_T


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def head_parameter(options: argparse.Namespace, like: dict[str, Any]) -> torch.nn.Parameter:
    """A weight [V, H] with all that a gradient needs: ``main_grad`` in DDP's buffer, or ``.grad``."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(
        torch.randn(options.vocabulary, options.hidden, **like) * options.hidden**-0.5  # hidden states are N(0, 1)
    )
    if options.parameter == "megatron":
        config = TransformerConfig(num_layers=1, hidden_size=options.hidden, num_attention_heads=1)
        DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), module)
    else:
        module.weight.grad = torch.zeros_like(module.weight)
    return module.weight


class Head:
    """Hidden states, a trainable weight and their gradients, all resident, and the ways to log-probabilities."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        like = {"dtype": getattr(torch, options.dtype), "device": device}
        self.hidden = torch.randn(options.tokens, options.hidden, **like).requires_grad_()
        self.weight = head_parameter(options, like)
        self.labels = torch.randint(0, options.vocabulary, (options.tokens,), device=device)
        self.hidden.grad = torch.zeros_like(self.hidden)
        self.gradients = [
            self.hidden.grad,
            self.weight.main_grad if options.parameter == "megatron" else self.weight.grad,
        ]
        self.clock = time.process_time if options.clock == "cpu" else time.perf_counter
        with torch.no_grad():  # resident, and the libraries' own memory counted in "before"
            for gradient in self.gradients:
                gradient += 1
            (self.hidden[:8] @ self.weight[:64].t()).float().log_softmax(dim=-1)

    def forward(self, way: str) -> tuple[torch.Tensor, torch.Tensor]:
        if way == "plain":
            return plain_logprobs(self.hidden, self.weight, self.labels)
        return vocab_parallel_logprobs(self.hidden, self.weight, self.labels, chunk_tokens=int(way))

    @torch.no_grad()
    def forward_alone(self, way: str) -> list[float]:
        return [self.forward(way)[0].sum().item()]

    def both(self, way: str) -> list[float]:
        logprobs, entropy = self.forward(way)
        logprobs.mean().backward()
        norms = [each.float().norm().item() for each in self.gradients]
        return [logprobs.mean().item(), entropy.mean().item(), *norms]

    def seconds(self, way: str, name: str) -> tuple[float, list[float]]:
        """Seconds of one pass, ``forward`` or ``both``, and what it computed."""
        run = {"forward": self.forward_alone, "both": self.both}[name]
        for gradient in self.gradients:
            gradient.zero_()
        start = self.clock()
        checks = run(way)
        return self.clock() - start, checks


def run_here(options: argparse.Namespace) -> None:
    """The ways in this process: their seconds in each round, the bytes added to the peak, what they computed."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = initialise(ParallelConfig(), seed=0).device
    head = Head(options, device)
    before = peak_bytes(device.type)
    seconds: dict[str, dict[str, list[float]]] = {way: {"forward": [], "both": []} for way in options.ways}
    checks: dict[str, list[float]] = {}
    for turn in range(options.rounds + 1):
        start = turn % len(options.ways)
        for way in options.ways[start:] + options.ways[:start]:
            for name in ("forward", "both"):
                taken, checks[way] = head.seconds(way, name)
                if turn > 0:
                    seconds[way][name].append(taken)
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes(device.type) - before, "checks": checks}))
    shut_down()


def run_apart(ways: list[str], rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--rounds", str(rounds), "--ways", *ways]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=7200)
    return json.loads(done.stdout)


def compare(ours: list[float], theirs: list[float]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if abs(one - other) > 0.01 * abs(other):
            raise SystemExit(f"results differ: {ours} and {theirs}")


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median of the rounds' ratios, and the least and greatest."""
    each = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    return f"{median(each):.2f} of plain, {each[0]:.2f} to {each[-1]:.2f}"


def main() -> None:
    options = arguments()
    if options.ways:
        run_here(options)
        return
    ways = ["plain", *map(str, options.chunk)]
    bytes_added = {way: run_apart([way], rounds=0)["bytes"] for way in ways}
    print("Memory added to the peak:", flush=True)
    for way in ways:
        share = bytes_added[way] / max(1, bytes_added["plain"])
        print(f"{way:>8}: {bytes_added[way] / 2**20:6.0f} MiB ({share:.3f} of plain)", flush=True)
    timed = run_apart(ways, options.rounds)
    print(f"Time, medians of {options.rounds} rounds, {options.threads} threads:")
    plain = timed["seconds"]["plain"]
    for way in ways:
        compare(timed["checks"][way], timed["checks"]["plain"])
        line = [f"{way:>8}:"]
        for name, label in (("forward", "forward"), ("both", "forward and backward")):
            seconds = timed["seconds"][way][name]
            line.append(f"{label} {median(seconds):6.2f} s ({ratio(seconds, plain[name])})")
        print("  ".join(line))


if __name__ == "__main__":
    main()
