"""Chunked log-probabilities against plain log_softmax: time and memory, as ratios.

    python benchmarks/logprobs.py [--tokens 4096] [--vocabulary 152064] [--hidden 2048] [--chunk 256 512 1024]
                                  [--threads 1] [--clock cpu] [--parameter torch]

Each way runs in a process of its own: forward without gradients, then forward and backward with a trainable head, each
as often as --repetitions says (the fastest counts). The head is a parameter under Megatron's DDP, as in a trainer: its
gradient ends, either way, in the float32 buffer that is there before. With --parameter torch it is one of torch alone,
with a ``.grad`` that is there before. Memory is what a way adds to the peak resident size (on a GPU: to the allocator's
peak) over inputs, gradients and buffer. --clock cpu: CPU seconds, for one thread on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
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
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--way", help="run one way, a size of chunk or plain, and print JSON")
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


def run_one(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = initialise(ParallelConfig(), seed=0).device
    like = {"dtype": getattr(torch, options.dtype), "device": device}
    hidden = torch.randn(options.tokens, options.hidden, **like).requires_grad_()
    weight = head_parameter(options, like)
    labels = torch.randint(0, options.vocabulary, (options.tokens,), device=device)
    hidden.grad = torch.zeros_like(hidden)
    gradients = [hidden.grad, weight.main_grad if options.parameter == "megatron" else weight.grad]
    with torch.no_grad():  # resident, and the libraries' own memory counted in "before"
        for gradient in gradients:
            gradient += 1
        (hidden[:8] @ weight[:64].t()).float().log_softmax(dim=-1)
    before = peak_bytes(device.type)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        if options.way == "plain":
            return plain_logprobs(hidden, weight, labels)
        return vocab_parallel_logprobs(hidden, weight, labels, chunk_tokens=int(options.way))

    def both() -> list[float]:
        logprobs, entropy = forward()
        logprobs.mean().backward()
        return [logprobs.mean().item(), entropy.mean().item(), *(each.float().norm().item() for each in gradients)]

    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    taken: dict[str, float] = {}
    for name, run in (("forward", torch.no_grad()(lambda: forward()[0].sum().item())), ("both", both)):
        times = []
        for _ in range(options.repetitions):
            for gradient in gradients:
                gradient.zero_()
            start = clock()
            checks = run()
            times.append(clock() - start)
        taken[name] = min(times)
    print(json.dumps({"seconds": taken, "bytes": peak_bytes(device.type) - before, "checks": checks}))
    shut_down()


def main() -> None:
    options = arguments()
    if options.way:
        run_one(options)
        return
    results = {}
    for way in ("plain", *map(str, options.chunk)):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
        result = results[way] = json.loads(done.stdout)
        seconds, plain = result["seconds"], results["plain"]
        ratios = {name: seconds[name] / plain["seconds"][name] for name in seconds}
        print(
            f"{way:>8}: forward {seconds['forward']:6.2f} s ({ratios['forward']:.2f} of plain)  "
            f"forward and backward {seconds['both']:6.2f} s ({ratios['both']:.2f})  "
            f"{result['bytes'] / 2**20:6.0f} MiB added ({result['bytes'] / max(1, plain['bytes']):.3f})",
            flush=True,
        )
        for ours, theirs in zip(result["checks"], plain["checks"], strict=True):
            if abs(ours - theirs) > 0.01 * abs(theirs):
                raise SystemExit(f"results differ: {result['checks']} and {plain['checks']}")


if __name__ == "__main__":
    main()
