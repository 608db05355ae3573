"""First check of a GPU host: what is installed, and whether Transformer Engine and vLLM work with this package.

    python tools/gpu_check.py [--model DIR]

Each check prints "ok", "failed" or "not measured" with its reason. Exit status 0: all ok; 1: something failed; 3:
nothing failed, but something could not be measured. On a machine without a GPU that is everything: the versions listed
there are what it has, not what a GPU host needs (Transformer Engine must not be installed without a GPU). ``--model``:
a checkpoint for vLLM to generate with; without it that check is not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.offline_wheels import listed  # noqa: E402

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements" / "gpu_host.txt"
HOSTS_OWN = ("torch", "transformers", "safetensors")  # there before the list's are installed
TOLERANCE = 3e-2  # of a tensor's norm: two bfloat16 paths that round at different places
Result = tuple[str, str]  # (ok | failed | not measured, what was found)


def packages() -> list[Requirement]:
    """What a GPU host needs: its own packages and those of the list that it was prepared from."""
    return [Requirement(line) for line in (*HOSTS_OWN, *listed(REQUIREMENTS))]


def versions() -> Result:
    """Installed versions; a missing package or another version than the list asks for fails."""
    found, wrong = [], []
    for package in packages():
        name, asked = canonicalize_name(package.name), str(package.specifier)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing" + (f" (asked for: {asked})" if asked else ""))
            continue
        found.append(f"{name} {version}")
        if not package.specifier.contains(version, prereleases=True):
            wrong.append(f"{name} is {version}, asked for is {asked}")
    return ("failed" if wrong else "ok"), "; ".join([*wrong, *found])


def gpu() -> Result:
    """The GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return "not measured", f"torch {torch.__version__} sees no GPU on this machine"
    properties = torch.cuda.get_device_properties(0)
    return "ok", f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _isolated(code: str, *arguments: str) -> Result:
    """Runs ``code`` in a Python of its own: an import that aborts, or keeps the GPU, must not end the other checks."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1])
    except subprocess.TimeoutExpired:
        return "failed", "no answer within 600 s"
    if done.returncode:
        return "failed", (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return "ok", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def transformer_engine() -> Result:
    """The import that megatron-core does."""
    return _isolated("import transformer_engine.pytorch as te; print('imports, LayerNormLinear:', te.LayerNormLinear)")


def same_numbers() -> Result:
    """Forward and backward of a tiny random model: Transformer Engine's layers against the local ones."""
    status, found = _isolated("import sys; from tools import gpu_check; gpu_check.print_differences()")
    if status != "ok":
        return status, found
    differences = json.loads(found)
    worst = max(differences, key=lambda name: differences[name])
    return (
        "ok" if all(value <= TOLERANCE for value in differences.values()) else "failed",  # NaN is not
        f"largest relative difference {differences[worst]:.1e} ({worst}), allowed {TOLERANCE:.0e}",
    )


def print_differences() -> None:
    """Prints, as JSON, the relative difference of the output and of every gradient between the two layer specs."""
    from megatron_apo.platform.host import prepare

    prepare()
    import torch

    from megatron_apo.config import ParallelConfig
    from megatron_apo.parallel.groups import initialise, shut_down

    groups = initialise(ParallelConfig(), seed=0)
    found = {spec: _run_tiny(spec, groups) for spec in ("local", "transformer_engine")}
    ours, theirs = found["local"], found["transformer_engine"]
    if ours.keys() != theirs.keys():
        raise ValueError(f"the specs differ in parameters: {sorted(ours.keys() ^ theirs.keys())}")
    differences = {}
    floor = 1e-3 * torch.stack([value.norm() for value in ours.values()]).max()
    for name, value in ours.items():
        differences[name] = float((theirs[name] - value).norm() / torch.maximum(value.norm(), floor))
    shut_down()
    print(json.dumps(differences))


def _run_tiny(spec: str, groups: object) -> dict:  # type: ignore[type-arg]
    """Hidden states and gradients by Hugging Face name, float32 on the CPU, of the tiny model under ``spec``."""
    import torch

    from model_providers.qwen_vl.layers import packed_layout
    from model_providers.qwen_vl.megatron_config import BuildSettings
    from model_providers.qwen_vl.model import QwenVLModel
    from model_providers.qwen_vl.weight_map import to_hf, to_megatron, weight_map

    shape = _tiny_shape()
    settings = BuildSettings(dtype=torch.bfloat16, layer_spec=spec)
    model = QwenVLModel(shape, settings, pg_collection=groups.collection).to(groups.device)  # type: ignore[attr-defined]
    rows = {row.megatron: row for row in weight_map(shape, transformer_engine=spec == "transformer_engine")}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensors = []
            for hf, size in zip(rows[name].hf, rows[name].shapes, strict=True):
                generator = torch.Generator().manual_seed(sum(map(ord, hf)))
                norm = len(size) == 1 and hf.endswith("weight")
                tensors.append(norm + 0.05 * torch.randn(size, generator=generator))
            parameter.copy_(to_megatron(rows[name], tensors, 0, 1))
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([0, 19, 60, 96])
    device = groups.device  # type: ignore[attr-defined]
    ids = torch.randint(0, 280, (1, 96), generator=generator).to(device)
    pixels = torch.randn(64, shape.vision.patch_values, generator=generator).to(device)
    out = model(
        ids,
        torch.arange(96, device=device).expand(3, 1, 96),
        packed_layout(lengths.to(torch.int32).to(device), 41),
        pixel_values_LC=pixels,
        image_grids=[(1, 8, 8)],
        image_positions_K=torch.arange(2, 18, device=device),
        image_features_K=torch.arange(16, device=device),
        output="logits",
    )
    out.float().square().mean().backward()
    result = {"logits": out.detach().float().cpu()}
    for name, parameter in model.named_parameters():
        parts = to_hf(rows[name], [parameter.grad.float().cpu()])
        result |= {f"gradient of {hf}": part for hf, part in parts}
    return result


def _tiny_shape():  # type: ignore[no-untyped-def]
    from model_providers.qwen_vl.shape import QwenVLShape, VisionShape

    vision = VisionShape(64, 3, 2, 96, 14, 2, 2, 56, (1,), 3, 128, 2)
    return QwenVLShape(
        128, 2, 4, 2, 32, 192, 304, False, 1e-6, 1e6, (4, 6, 6), 2048, 290, 291, 292, vision
    )  # fmt: skip


_GENERATE = """
import os, sys
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # its kernels are not among the packages
from vllm import LLM, SamplingParams
engine = LLM(model=sys.argv[1], enforce_eager=True, max_model_len=512, gpu_memory_utilization=0.4)
answer = engine.generate("Count to five: one, two,", SamplingParams(max_tokens=8, temperature=0.0))
tokens = list(answer[0].outputs[0].token_ids)
assert tokens, "no token came out"
print("generated", len(tokens), "tokens:", tokens)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the checks; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="checkpoint that vLLM generates with")
    options = parser.parse_args(arguments)
    results = {"versions": versions(), "GPU": gpu()}
    if results["GPU"][0] == "not measured":
        results["versions"] = "not measured", f"these are a GPU host's, this is none: {results['versions'][1]}"
    needing: dict[str, Callable[[], Result]] = {
        "Transformer Engine imports": transformer_engine,
        "Transformer Engine equals local": same_numbers,
        "vLLM generates": lambda: _isolated(_GENERATE, options.model),
    }
    for name, check in needing.items():
        if results["GPU"][0] != "ok":
            results[name] = "not measured", "needs a GPU"
        elif name.startswith("vLLM") and not options.model:
            results[name] = "not measured", "give --model DIR"
        else:
            results[name] = check()
    for name, (status, found) in results.items():
        print(f"{status:12}  {name}: {found}")
    states = {status for status, _ in results.values()}
    return 1 if "failed" in states else 3 if "not measured" in states else 0


if __name__ == "__main__":
    sys.exit(main())
