"""Chunked log-probabilities against plain log_softmax: time and memory, as ratios.

python benchmarks/logprobs.py [--tokens 4096] [--vocabulary 152064] [--hidden 2048] [--chunk 1024] [--threads 1]

Each way runs in a process of its own: forward without gradients, then forward and backward with a trainable head, each
as often as --repetitions says (the fastest counts). Memory is what it adds to the peak resident size (on a GPU: to the
allocator's peak) over the inputs and the gradients, which both ways need.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from megatron_apo.parallel.logprobs import vocab_parallel_logprobs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--way", choices=("chunked", "plain"), help="run one way and print JSON")
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


def run_one(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    like = {"dtype": getattr(torch, options.dtype), "device": options.device}
    hidden = torch.randn(options.tokens, options.hidden, **like).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.hidden, **like) * options.hidden**-0.5).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.tokens,), device=options.device)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    with torch.no_grad():  # resident, and the libraries' own memory counted in "before"
        hidden.grad += 0
        weight.grad += 0
        (hidden[:8] @ weight[:64].t()).float().log_softmax(dim=-1)
    before = peak_bytes(options.device)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        if options.way == "chunked":
            return vocab_parallel_logprobs(hidden, weight, labels, chunk_tokens=options.chunk)
        return plain_logprobs(hidden, weight, labels)

    def both() -> list[float]:
        logprobs, entropy = forward()
        logprobs.mean().backward()
        return [logprobs.mean().item(), entropy.mean().item(), hidden.grad.float().norm().item()]

    taken: dict[str, float] = {}
    for name, run in (("forward", torch.no_grad()(lambda: forward()[0].sum().item())), ("both", both)):
        times = []
        for _ in range(options.repetitions):
            hidden.grad.zero_(), weight.grad.zero_()
            start = time.perf_counter()
            checks = run()
            times.append(time.perf_counter() - start)
        taken[name] = min(times)
    print(json.dumps({"seconds": taken, "bytes": peak_bytes(options.device) - before, "checks": checks}))


def main() -> None:
    options = arguments()
    if options.way:
        run_one(options)
        return
    results = {}
    for way in ("chunked", "plain"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
        results[way] = json.loads(done.stdout)
        seconds = results[way]["seconds"]
        print(
            f"{way:8} forward {seconds['forward']:7.2f} s  forward and backward {seconds['both']:7.2f} s  "
            f"{results[way]['bytes'] / 2**20:9.0f} MiB added",
            flush=True,
        )
    for ours, theirs in zip(results["chunked"]["checks"], results["plain"]["checks"], strict=True):
        if abs(ours - theirs) > 0.01 * abs(theirs):
            raise SystemExit(f"results differ: {results['chunked']['checks']} and {results['plain']['checks']}")
    ratios = {
        name: results["chunked"]["seconds"][name] / results["plain"]["seconds"][name] for name in ("forward", "both")
    }
    memory_ratio = results["chunked"]["bytes"] / max(1, results["plain"]["bytes"])
    print(
        f"chunked / plain: forward {ratios['forward']:.2f}, forward and backward {ratios['both']:.2f}, "
        f"added peak memory {memory_ratio:.3f}"
    )


if __name__ == "__main__":
    main()
