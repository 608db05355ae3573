"""Hugging Face's tensors from a torch_dist checkpoint of any layout, by the weight map; no model is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_apo.conversion.megatron_files import check_names
from megatron_apo.conversion.raw_files import Origin
from megatron_apo.conversion.stored_tensors import StoredTensors
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import WeightRow, stored_rows, to_hf

_NAMED = 8  # tensors spelled out in a message
_LANGUAGE_LAYER = re.compile(r"^(language_model\.decoder\.layers)\.(\d+)\.")


class FromMegatron:
    """The Hugging Face tensors that the torch_dist checkpoint in ``directory`` holds of the model of ``files``.

    ``files`` is a directory with that model's config.json. ValueError when the checkpoint is not whole, or holds other
    tensors than such a model.
    """

    def __init__(self, directory: Path, files: Path) -> None:
        self._stored, self._config, self._shape = StoredTensors(directory), files / "config.json", read_shape(files)
        check_names(directory, self._stored.shapes)
        every = list(stored_rows(self._shape).values())
        rows = [row for row in every if row.exported]
        self.entries = [entry for row in rows for entry in zip(row.hf, row.shapes, strict=True)]
        self._row_of = {name: row for row in rows for name in row.hf}
        for row in rows:
            self._check(row)
        self._check_none_is_left({self._place(row)[0] for row in every})
        for row in every:
            if not row.exported and row.megatron in self._stored.shapes:
                self._check_tied(row)

    def _place(self, row: WeightRow) -> tuple[str, tuple[int, ...]]:
        """The stored name and the leading offsets: Megatron stacks the language model's layers into one tensor."""
        found = _LANGUAGE_LAYER.match(row.megatron)
        if found is None or row.megatron in self._stored.shapes:
            return row.megatron, ()
        return f"{found[1]}.{row.megatron[found.end() :]}", (int(found[2]),)

    def _check(self, row: WeightRow) -> None:
        name, lead = self._place(row)
        if name not in self._stored.shapes:
            raise self._not_this_model(f"{row.hf[0]} ({name}) is missing")
        layers, size = self._stored.shapes[name][: len(lead)], self._stored.shapes[name][len(lead) :]
        needed = _megatron_shape(row)
        fits = len(size) == len(needed) and all(
            have >= need if axis == row.cut and (row.vocabulary or row.padded_to) else have == need
            for axis, (have, need) in enumerate(zip(size, needed, strict=False))
        )
        if not fits or layers != (self._shape.layers,) * len(lead):
            expected = (self._shape.layers,) * len(lead) + needed
            raise self._not_this_model(f"{name} is {(*layers, *size)}, expected {expected}")

    def _check_none_is_left(self, known: set[str]) -> None:
        extra = sorted(set(self._stored.shapes) - known)
        if extra:
            more = f" and {len(extra) - _NAMED} more" if len(extra) > _NAMED else ""
            raise self._not_this_model(f"it has no {', '.join(extra[:_NAMED])}{more}")

    def _check_tied(self, row: WeightRow) -> None:
        """A tied model's own copy of the embedding, which is not exported, may not say anything else."""
        self._check(row)
        name = row.hf[0]
        (table,) = (found for hf, found in self._read(self._row_of[name]) if hf == name)
        (copy,) = (found for _, found in self._read(row))
        if not torch.equal(table, copy):
            raise ValueError(
                f"{self._stored.directory}: {self._config} ties the output to the embedding (tie_word_embeddings: "
                f"true), but {row.megatron} differs from {self._row_of[name].megatron}; give the config it was saved "
                "with"
            )

    def _not_this_model(self, why: str) -> ValueError:
        return ValueError(
            f"{self._stored.directory}: does not hold the model that {self._config} describes: {why}; give the config "
            "it was saved with"
        )

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of published names, contiguous; mapped memory where the file has the numbers in one piece.

        What had to be put together is in memory one row of the map at a time, if ``names`` are in the map's order.
        """
        row: WeightRow | None = None
        found: dict[str, torch.Tensor] = {}
        for name in names:
            if self._row_of[name] is not row:
                row = self._row_of[name]
                found = {}
                found = dict(self._read(row))
            yield name, found[name]

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        """Where ``tensor`` lies in a file of the checkpoint; None if it had to be put together."""
        return self._stored.origin(tensor)

    def _read(self, row: WeightRow) -> list[tuple[str, torch.Tensor]]:
        name, lead = self._place(row)
        size = self._stored.shapes[name][len(lead) :]
        if row.layout == "gate_up":  # the two halves, each padded by itself
            half = size[0] // 2
            pairs = zip(row.hf, row.shapes, strict=True)
            return [
                (hf, self._at(name, lead, (part * half, *(0 for _ in shape[1:])), shape))
                for part, (hf, shape) in enumerate(pairs)
            ]
        return to_hf(row, [self._at(name, lead, tuple(0 for _ in size), size)])

    def _at(self, name: str, lead: tuple[int, ...], offsets: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
        return self._stored.read(name, (*lead, *offsets), (*(1 for _ in lead), *size)).view(size)


def _megatron_shape(row: WeightRow) -> tuple[int, ...]:
    """Shape of the whole tensor of Megatron's that ``row`` makes, without padding."""
    first = row.shapes[0]
    if row.layout == "flatten":
        return first[0], torch.Size(first[1:]).numel()
    return sum(shape[0] for shape in row.shapes), *first[1:]
