"""Who may know whom (docs/architecture.md), read from the imports of every file, nested ones included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("megatron_apo", "model_providers", "examples", "tools", "benchmarks")
PURE = (
    "megatron_apo/objective/",
    "megatron_apo/rewards/",
    "megatron_apo/records.py",
    "megatron_apo/config.py",
    "megatron_apo/config_checks.py",
    "megatron_apo/config_loading.py",
)


@dataclass(frozen=True)
class Wall:
    """``names`` (modules, with all below them) are imported only by files under ``only``, or not under ``never``."""

    names: tuple[str, ...]
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def refuses(self, name: str, file: str) -> bool:
        if not any(name == known or name.startswith(f"{known}.") for known in self.names):
            return False
        if self.only:
            return not file.startswith(self.only)
        return file.startswith(self.never)


WALLS = (
    Wall(("megatron", "vllm", "transformer_engine", "transformers", "model_providers", "torch.cuda"), never=PURE),
    Wall(
        tuple(
            f"megatron_apo.{room}"
            for room in ("parallel", "platform", "rollout", "weight_sync", "training", "loop", "sft", "evaluation")
        ),
        never=PURE,
    ),
    Wall(("torch", "numpy"), never=("megatron_apo/config", "megatron_apo/objective/presets.py")),
    Wall(("vllm",), only=("megatron_apo/rollout/vllm/",)),
    Wall(
        ("megatron.core.parallel_state", "megatron.core.mpu"),
        only=("megatron_apo/parallel/", "examples/megatron_script/", "examples/own_model/"),  # trainers of their own
    ),
    Wall(
        tuple(f"megatron_apo.{room}" for room in ("parallel", "training", "loop", "sft", "config", "records")),
        never=("examples/megatron_script/",),
    ),
    Wall(
        ("PIL.Image.open", "cv2", "torchvision"),
        only=("megatron_apo/data/", "megatron_apo/platform/", "benchmarks/images.py"),  # the last: the libraries beside
    ),
    Wall(
        tuple(
            f"megatron_apo.{room}"
            for room in ("objective", "rewards", "data", "rollout", "weight_sync", "training", "evaluation", "loop")
        ),
        never=("model_providers/",),
    ),
    Wall(("vllm", "megatron", "transformer_engine"), never=("megatron_apo/weight_sync/", "megatron_apo/loop.py")),
    Wall(("tests", "tools", "examples"), only=("tests/", "tools/", "examples/", "benchmarks/")),
    # Megatron's own checkpoint metadata is a pickle: one file reads it, by a list of what it may hold.
    Wall(("pickle",), only=("megatron_apo/conversion/metadata_file.py",)),
    Wall(("cloudpickle", "dill", "marshal", "shelve"), only=("nowhere",)),
)
UNSAFE_CALLS = ("eval", "exec")


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported or used as ``a.b``; ``from a import b`` gives a.b, maybe a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            yield node.lineno, f"{'PIL.Image' if owner == 'Image' else owner}.{node.attr}"


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(p for tree in TREES for p in (root / tree).rglob("*.py")):
        file = path.relative_to(root).as_posix()
        package = ".".join(path.relative_to(root).parent.parts)
        syntax = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for line, name in imported_names(syntax, package):
            found += [f"{file}:{line} knows {name}" for wall in WALLS if wall.refuses(name, file)]
        for node in ast.walk(syntax):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(f"{file}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "weights_only" and _is_false(node.value):
                found.append(f"{file}:{node.value.lineno} loads with weights_only=False")
    return list(dict.fromkeys(found))


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_the_walls_stand() -> None:
    assert sum(1 for tree in TREES for _ in (ROOT / tree).rglob("*.py")) > 20
    assert not violations(ROOT)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("megatron_apo/objective/kl.py", "from megatron.core import tensor_parallel"),
        ("megatron_apo/objective/kl.py", "import torch\nx = torch.cuda.current_device()"),
        ("megatron_apo/rewards/format.py", "def f():\n    import vllm"),
        ("megatron_apo/records.py", "from .parallel import groups"),
        ("megatron_apo/config.py", "import torch"),
        ("megatron_apo/loop.py", "from vllm import LLM"),
        ("megatron_apo/training/setup.py", "from megatron.core import parallel_state as mpu"),
        ("megatron_apo/training/setup.py", "import megatron.core.parallel_state"),
        ("megatron_apo/observability/report.py", "from PIL import Image\nImage.open(path)"),
        ("model_providers/qwen_vl/model.py", "from megatron_apo.objective.kl import kl_divergence"),
        ("megatron_apo/weight_sync/push.py", "from megatron_apo.rollout.vllm import engine\nimport vllm.config"),
        ("megatron_apo/parallel/scatter.py", "import pickle"),
        ("megatron_apo/training/checkpoint.py", "state = load(path, weights_only=False)"),
        ("megatron_apo/data/rows.py", "row = eval(line)"),
        ("megatron_apo/cli.py", "from tests.unit import test_cli"),
    ],
)
def test_each_wall_is_felt(file: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert len(violations(tmp_path)) >= 1


def test_what_is_allowed_is_not_refused(tmp_path: Path) -> None:
    allowed = {
        "megatron_apo/rollout/vllm/engine.py": "import vllm",
        "megatron_apo/parallel/groups.py": "from megatron.core import parallel_state",
        "megatron_apo/data/images.py": "from PIL import Image",
        "megatron_apo/objective/kl.py": "import torch\nfrom megatron_apo.records import Score",
        "model_providers/qwen_vl/model.py": "from megatron.core.models.gpt import GPTModel\nimport torch",
        "megatron_apo/rollout/fleet.py": "import vllm_elsewhere\nfrom PIL import Image",
    }
    for file, text in allowed.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path) == []
