"""Megatron-Core on a machine without a GPU.

Megatron-Core asks ``torch.cuda`` for its device, allocates with ``device="cuda"`` and compares tensor types with
``torch.cuda.*``. ``install()`` gives the modules of ``megatron.core`` (and nobody else) a stand-in for the global name
``torch`` whose CUDA questions are answered for the CPU. The real ``torch`` stays as it is: it says everywhere that no
CUDA is available, and vLLM, transformers and user code see no change.

Call ``install()`` before the first ``megatron`` import. It does nothing where a GPU is present.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch

_PREFIX = "megatron.core"
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "eye", "linspace")
_LIKE_FACTORIES = ("empty_like", "zeros_like", "ones_like", "full_like")


class _CudaOnCpu(types.ModuleType):
    """Answers the part of ``torch.cuda`` that Megatron-Core uses; the rest is torch's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def set_device(device: Any) -> None:
        return None

    @staticmethod
    def synchronize(device: Any = None) -> None:
        return None

    @staticmethod
    def empty_cache() -> None:
        return None

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _on_cpu(factory: Any) -> Any:
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


class _TorchOnCpu(types.ModuleType):
    """The name ``torch`` as Megatron-Core's modules see it."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = _CudaOnCpu("torch.cuda")
        for name in _FACTORIES + _LIKE_FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _get_rng_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


def _after_import(module: types.ModuleType, stand_in: _TorchOnCpu) -> None:
    if module.__dict__.get("torch") is torch:
        module.__dict__["torch"] = stand_in
    if module.__name__ == "megatron.core.jit":
        # The fuser is torch.compile, applied while later modules are imported; on a CPU it costs seconds at first use.
        module.__dict__["disable_jit_fuser"]()
    elif module.__name__ == "megatron.core.tensor_parallel.random":
        # The originals queue the change until CUDA is initialised, which never happens here: it would be lost.
        module.__dict__["_get_cuda_rng_state"] = _get_rng_state
        module.__dict__["_set_cuda_rng_state"] = _set_rng_state
        _make_fp8_flag_boolean(module.__dict__["CheckpointWithoutOutput"])


def _make_fp8_flag_boolean(checkpoint_class: Any) -> None:
    """``CheckpointWithoutOutput`` reads its default ``fp8=False`` as True and then needs Transformer Engine."""
    original = checkpoint_class.__init__

    def initialise(self: Any, fp8: Any = False) -> None:
        original(self, fp8)
        self.fp8 = bool(fp8)

    checkpoint_class.__init__ = initialise


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, stand_in: _TorchOnCpu) -> None:
        self._loader = loader
        self._stand_in = stand_in

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        _after_import(module, self._stand_in)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of every ``megatron.core`` module, those imported lazily included."""

    def __init__(self) -> None:
        self._stand_in = _TorchOnCpu()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _PREFIX and not fullname.startswith(_PREFIX + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._stand_in)
        return spec


def _called_by_megatron() -> bool:
    name = sys._getframe(2).f_globals.get("__name__", "")
    return isinstance(name, str) and name.startswith(_PREFIX)


def _answer_tensor_methods() -> None:
    """``Tensor.type()`` and ``Tensor.cuda()``, for callers inside megatron.core only."""
    original_type, original_cuda = torch.Tensor.type, torch.Tensor.cuda

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original_type(self, *args, **kwargs)
        if isinstance(answer, str) and _called_by_megatron():
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if _called_by_megatron() else original_cuda(self, *args, **kwargs)

    torch.Tensor.type = type_  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = cuda  # type: ignore[method-assign,assignment]


def install() -> None:
    """Makes ``megatron.core`` usable without a GPU; idempotent.

    Raises RuntimeError when ``megatron.core`` was imported before.
    """
    if torch.cuda.is_available() or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if _PREFIX in sys.modules:
        raise RuntimeError(
            "megatron.core was imported before megatron_apo.platform.megatron_on_cpu.install(): "
            "call install() first, it must see each of its modules being imported"
        )
    sys.meta_path.insert(0, _Finder())
    _answer_tensor_methods()
