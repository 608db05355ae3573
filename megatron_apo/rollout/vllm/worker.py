"""What we add to vLLM's worker: named methods that take a whole set of weights, or refuse it whole.

vLLM mixes this class into its worker (``worker_extension_cls``) and calls the methods by name in every worker process,
so their arguments and results are plain values. The weights come through a safetensors file in shared memory.

A worker cannot hash what it holds: linear weights are repacked, fused or sharded as they are loaded. It hashes what it
receives, and checks that what it received covers every parameter of its model before it loads anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from safetensors import safe_open

from megatron_apo.weight_sync.verify import tensor_hash

# It warns at every update of layers that have no weights of their own (tied, or without any); what is really missing
# is found below, before anything is loaded.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


class WeightReceiver:
    """Mixed into vLLM's worker, which supplies ``model_runner`` and ``reload_weights``."""

    model_runner: Any
    reload_weights: Any

    def receive_weights(self, path: str, device: str) -> dict[str, Any]:
        """Loads the safetensors file ``path`` (Hugging Face names) into the running model.

        Returns ``hashes`` (of every tensor received, by name), ``loaded`` (the model's parameters that were written)
        and ``missing`` (those that the tensors do not fully cover). Unless ``missing`` and ``unknown`` (names that
        belong to no parameter) are empty, nothing is loaded: the model keeps its old weights, whole.
        """
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
        covered, unknown = self.covered_parameters(tensors)
        parameters = {name for name, _ in self.model_runner.get_model().named_parameters()}
        missing = parameters - covered
        if not missing and not unknown:
            self.reload_weights(weights_iterator=iter(tensors.items()))
            _repack_tied_layers(self.model_runner.get_model())
        return {
            "hashes": hashes,
            "loaded": sorted(covered) if not missing and not unknown else [],
            "missing": sorted(missing),
            "unknown": sorted(unknown),
        }

    def covered_parameters(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """(the model's parameters that ``names`` cover completely, the names that belong to no parameter).

        A fused parameter (query, key and value in one; gate and up in one) is covered when all its parts are there.
        """
        model = self.model_runner.get_model()
        parameters = {name for name, _ in model.named_parameters()}
        packed = {part: (whole, set(parts)) for whole, parts in _packed(model).items() for part in parts}
        parts_seen: dict[str, set[str]] = {}
        covered, unknown = set(), set()
        for name in names:
            own = model.hf_to_vllm_mapper.map_name(name)
            if own in parameters:
                covered.add(own)
                continue
            module, _, kind = (own or "").rpartition(".")
            parent, _, part = module.rpartition(".")
            if part not in packed:
                unknown.add(name)
                continue
            whole, parts = packed[part]
            fused = f"{parent}.{whole}.{kind}"
            if fused not in parameters:
                unknown.add(name)
                continue
            parts_seen.setdefault(fused, set()).add(part)
            if parts_seen[fused] == parts:
                covered.add(fused)
        return covered, unknown


def _repack_tied_layers(model: Any) -> None:
    """Lets layers that share their weight take it over anew.

    On a CPU vLLM computes with a packed copy. A reload repacks the layer that the checkpoint names (the embedding), not
    the one tied to it (the output layer), which would go on computing with the old copy.
    """
    sharing: dict[int, list[Any]] = {}
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None:
            sharing.setdefault(id(weight), []).append(layer)
    for layers in sharing.values():
        if len(layers) > 1:
            for layer in layers:
                layer.quant_method.process_weights_after_loading(layer)


def _packed(model: Any) -> dict[str, list[str]]:
    """vLLM's table of fused modules: the fused one's name -> the checkpoint's names of its parts.

    Qwen2-VL's has none of its own: its language model's says it.
    """
    tables = (getattr(part, "packed_modules_mapping", None) for part in (model.language_model, model))
    return {fused: parts for table in tables if table for fused, parts in table.items()}
