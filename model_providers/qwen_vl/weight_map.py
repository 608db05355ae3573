"""One map between Hugging Face's names and Megatron's, as data: for loading, weight sync, conversion and tests alike.

A row is (Megatron name, Hugging Face names, layout, how tensor parallelism cuts it). Megatron names count layers
globally; a pipeline stage renames its own through ``global_name``. Hugging Face names are those of the published
files; ``published_name`` reads the other generations.

Layouts: "plain" (one tensor), "qkv" (q, k, v -> per key-value group its queries, key, value), "fused_qkv" (one
[q; k; v] tensor -> per head q, k, v), "gate_up" (gate, up -> one tensor, each tensor rank holding its part of both),
"flatten" (a convolution over non-overlapping patches -> its matrix).

Key-value heads fewer than tensor ranks need nothing of their own: Megatron-Core cuts the grouped rows of "qkv" anywhere
and gathers the projection's output instead of holding a key-value head twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE, padded_width
from model_providers.qwen_vl.shape import QwenVLShape

Layout = Literal["plain", "qkv", "fused_qkv", "gate_up", "flatten"]


@dataclass(frozen=True)
class WeightRow:
    """``cut`` is the dimension tensor parallelism cuts, None when every rank holds the whole tensor.

    ``shapes`` are those of the Hugging Face tensors, in the order of ``hf``.
    """

    megatron: str
    hf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    layout: Layout = "plain"
    cut: int | None = None
    groups: int = 1  # attention: key-value groups ("qkv") or heads ("fused_qkv")
    vocabulary: bool = False  # rows are padded to a multiple of the tensor ranks
    padded_to: int | None = None  # the cut dimension of each part is padded to a multiple of this
    exported: bool = True  # False: a second copy of a tied weight


def published_name(name: str) -> str:
    """The published spelling of a tensor name of any generation (in-memory names carry ``language_model``)."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    return re.sub(r"^model\.visual\.", "visual.", name)


def _language_rows(shape: QwenVLShape, layer: int, transformer_engine: bool) -> list[WeightRow]:
    megatron, hf = f"language_model.decoder.layers.{layer}", f"model.layers.{layer}"
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    attention_norm, mlp_norm = (f"{name}weight" for name in _norm_names(transformer_engine))
    qkv = tuple(f"{hf}.self_attn.{part}_proj" for part in "qkv")
    return [
        WeightRow(f"{megatron}.{attention_norm}", (f"{hf}.input_layernorm.weight",), ((shape.hidden,),)),
        WeightRow(
            f"{megatron}.self_attention.linear_qkv.weight",
            tuple(f"{name}.weight" for name in qkv),
            ((queries, shape.hidden), (keys, shape.hidden), (keys, shape.hidden)),
            "qkv",
            0,
            shape.kv_heads,
        ),
        WeightRow(
            f"{megatron}.self_attention.linear_qkv.bias",
            tuple(f"{name}.bias" for name in qkv),
            ((queries,), (keys,), (keys,)),
            "qkv",
            0,
            shape.kv_heads,
        ),
        WeightRow(
            f"{megatron}.self_attention.linear_proj.weight",
            (f"{hf}.self_attn.o_proj.weight",),
            ((shape.hidden, queries),),
            cut=1,
        ),
        WeightRow(f"{megatron}.{mlp_norm}", (f"{hf}.post_attention_layernorm.weight",), ((shape.hidden,),)),
        WeightRow(
            f"{megatron}.mlp.linear_fc1.weight",
            (f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight"),
            ((shape.ffn, shape.hidden),) * 2,
            "gate_up",
            0,
        ),
        WeightRow(
            f"{megatron}.mlp.linear_fc2.weight", (f"{hf}.mlp.down_proj.weight",), ((shape.hidden, shape.ffn),), cut=1
        ),
    ]


# Names of the layers' norms in Megatron's checkpoints: Transformer Engine's, in which either spec reads the other's.
STORED_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def _norm_names(transformer_engine: bool) -> tuple[str, str]:
    """What comes before "weight" and "bias": Transformer Engine fuses each norm into the linear layer after it."""
    attention, mlp = STORED_NORMS.values() if transformer_engine else STORED_NORMS
    return attention, mlp


def _vision_norm_rows(shape: QwenVLShape, megatron: str, hf: str) -> list[WeightRow]:
    kinds = ("weight", "bias") if shape.vision.norm == "LayerNorm" else ("weight",)
    return [WeightRow(f"{megatron}{kind}", (f"{hf}.{kind}",), ((shape.vision.hidden,),)) for kind in kinds]


def _vision_rows(shape: QwenVLShape, layer: int, transformer_engine: bool, ffn_multiple: int) -> list[WeightRow]:
    vision = shape.vision
    megatron, hf = f"vision_model.layers.{layer}", f"visual.blocks.{layer}"
    width = vision.hidden
    attention_norm, mlp_norm = _norm_names(transformer_engine)
    inputs, output = (("gate_proj", "up_proj"), "down_proj") if vision.gated else (("fc1",), "fc2")
    fc1 = tuple(f"{hf}.mlp.{name}" for name in inputs)
    rows = [
        *_vision_norm_rows(shape, f"{megatron}.{attention_norm}", f"{hf}.norm1"),
        *_vision_norm_rows(shape, f"{megatron}.{mlp_norm}", f"{hf}.norm2"),
    ]
    for kind, inner in (("weight", (width,)), ("bias", ())):
        rows += [
            WeightRow(
                f"{megatron}.self_attention.linear_qkv.{kind}",
                (f"{hf}.attn.qkv.{kind}",),
                ((3 * width, *inner),),
                "fused_qkv",
                0,
                vision.heads,
            ),
            WeightRow(
                f"{megatron}.mlp.linear_fc1.{kind}",
                tuple(f"{name}.{kind}" for name in fc1),
                ((vision.ffn, *inner),) * len(fc1),
                "gate_up" if vision.gated else "plain",
                0,
                padded_to=ffn_multiple,
            ),
        ]
    for module, name, columns, padded in (
        ("self_attention.linear_proj", "attn.proj", width, None),
        ("mlp.linear_fc2", f"mlp.{output}", vision.ffn, ffn_multiple),
    ):
        shapes = ((width, columns),)
        rows.append(WeightRow(f"{megatron}.{module}.weight", (f"{hf}.{name}.weight",), shapes, cut=1, padded_to=padded))
        rows.append(WeightRow(f"{megatron}.{module}.bias", (f"{hf}.{name}.bias",), ((width,),)))
    return rows


def _merger_rows(shape: QwenVLShape) -> list[WeightRow]:
    vision = shape.vision
    merged = vision.hidden * vision.spatial_merge_size**2
    names = {
        "linear_fc1": ("visual.merger.mlp.0", merged, 0),
        "linear_fc2": ("visual.merger.mlp.2", vision.out_hidden, 1),
    }
    rows = _vision_norm_rows(shape, "vision_model.merger.norm.", "visual.merger.ln_q")
    for module, (hf, outputs, cut) in names.items():
        rows.append(WeightRow(f"vision_model.merger.{module}.weight", (f"{hf}.weight",), ((outputs, merged),), cut=cut))
        rows.append(
            WeightRow(f"vision_model.merger.{module}.bias", (f"{hf}.bias",), ((outputs,),), cut=0 if cut == 0 else None)
        )
    return rows


def weight_map(
    shape: QwenVLShape, *, transformer_engine: bool = False, vision_ffn_multiple: int = VISION_FFN_MULTIPLE
) -> list[WeightRow]:
    """All rows of a model, in the order in which they are exported.

    ``vision_ffn_multiple``: see ``BuildSettings``; it changes the shapes on Megatron's side alone.
    """
    vision = shape.vision
    table = ((shape.vocab, shape.hidden),)
    kernel = (vision.hidden, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    rows = [WeightRow("vision_model.patch_embed.weight", ("visual.patch_embed.proj.weight",), (kernel,), "flatten")]
    for layer in range(vision.layers):
        rows += _vision_rows(shape, layer, transformer_engine, vision_ffn_multiple)
    rows += _merger_rows(shape)
    rows.append(
        WeightRow(
            "language_model.embedding.word_embeddings.weight",
            ("model.embed_tokens.weight",),
            table,
            cut=0,
            vocabulary=True,
        )
    )
    for layer in range(shape.layers):
        rows += _language_rows(shape, layer, transformer_engine)
    rows.append(WeightRow("language_model.decoder.final_layernorm.weight", ("model.norm.weight",), ((shape.hidden,),)))
    rows.append(
        WeightRow(
            "language_model.output_layer.weight",
            ("model.embed_tokens.weight",) if shape.tied else ("lm_head.weight",),
            table,
            cut=0,
            vocabulary=True,
            exported=not shape.tied,
        )
    )
    return rows


def stored_rows(shape: QwenVLShape, *, vision_ffn_multiple: int = VISION_FFN_MULTIPLE) -> dict[str, WeightRow]:
    """The rows by their names in Megatron's checkpoints, whichever layer spec wrote them (see ``STORED_NORMS``).

    There, all of the language model's layers are one tensor, whose name has no number.
    """
    return {
        row.megatron: row for row in weight_map(shape, transformer_engine=True, vision_ffn_multiple=vision_ffn_multiple)
    }


def padded_cut(row: WeightRow) -> int:
    """The size of the cut dimension of each part of ``row`` with its padding."""
    assert row.cut is not None and row.padded_to is not None, row.megatron
    return padded_width(row.shapes[0][row.cut], row.padded_to)


def hf_names(shape: QwenVLShape) -> list[str]:
    """Every tensor name of the published checkpoint, in export order."""
    return [name for row in weight_map(shape) if row.exported for name in row.hf]


def _interleave_qkv(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    grouped = [part.reshape(groups, part.shape[0] // groups, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _separate_qkv(whole: torch.Tensor, groups: int, lengths: Sequence[int]) -> list[torch.Tensor]:
    grouped = whole.reshape(groups, whole.shape[0] // groups, *whole.shape[1:])
    parts = grouped.split([length // groups for length in lengths], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _padded(row: WeightRow, tensor: torch.Tensor, tensor_size: int) -> torch.Tensor:
    """``tensor`` with zeros at the end of its cut dimension, as far as ``row`` asks for them."""
    if row.cut is None or not (row.vocabulary or row.padded_to):
        return tensor
    width = tensor.shape[row.cut]
    missing = padded_width(width, tensor_size if row.vocabulary else row.padded_to or 1) - width
    after = [0, 0] * (tensor.ndim - 1 - row.cut) + [0, missing]  # from the last dimension to the cut one
    return torch.nn.functional.pad(tensor, after) if missing else tensor


def to_megatron(row: WeightRow, tensors: Sequence[torch.Tensor], tensor_rank: int, tensor_size: int) -> torch.Tensor:
    """The part of ``row`` that tensor rank ``tensor_rank`` of ``tensor_size`` holds, from its Hugging Face tensors.

    Raises ValueError when a tensor has another shape than the config says.
    """
    for name, tensor, expected in zip(row.hf, tensors, row.shapes, strict=True):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {expected} from the model's config.json")
    tensors = [_padded(row, tensor, tensor_size) for tensor in tensors]
    if row.layout == "gate_up":
        return torch.cat([part.chunk(tensor_size, dim=0)[tensor_rank] for part in tensors]).contiguous()
    if row.layout == "qkv":
        whole = _interleave_qkv(tensors, row.groups)
    elif row.layout == "fused_qkv":
        whole = _interleave_qkv(tensors[0].chunk(3, dim=0), row.groups)
    elif row.layout == "flatten":
        whole = tensors[0].flatten(1)
    else:
        whole = tensors[0]
    if row.cut is None:
        return whole.contiguous()
    return whole.chunk(tensor_size, dim=row.cut)[tensor_rank].contiguous()


def to_hf(row: WeightRow, shards: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """The Hugging Face tensors of ``row``, from the shards of all tensor ranks in order: ``to_megatron`` undone."""
    if row.layout == "gate_up":
        halves = [shard.chunk(2, dim=0) for shard in shards]
        parts = [torch.cat([half[index] for half in halves]) for index in range(2)]
        return [(row.hf[index], part[: row.shapes[index][0]].contiguous()) for index, part in enumerate(parts)]
    whole = shards[0] if row.cut is None or len(shards) == 1 else torch.cat(list(shards), dim=row.cut)
    if row.layout == "qkv":
        parts = _separate_qkv(whole, row.groups, [shape[0] for shape in row.shapes])
        return [(name, part.contiguous()) for name, part in zip(row.hf, parts, strict=True)]
    if row.layout == "fused_qkv":
        rows = row.shapes[0][0] // 3
        return [(row.hf[0], torch.cat(_separate_qkv(whole, row.groups, [rows] * 3)))]
    if row.cut is not None:
        whole = whole.narrow(row.cut, 0, row.shapes[0][row.cut])  # less what was padded
    return [(row.hf[0], whole.reshape(row.shapes[0]).contiguous())]
