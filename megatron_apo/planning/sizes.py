"""The numbers of a model that its memory depends on: published sizes by name, any other from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_providers.qwen_vl.shape import QwenVLShape


@dataclass(frozen=True)
class ModelSize:
    """Language model and vision tower. ``v_gated``: SwiGLU and RMSNorm in the tower (Qwen2.5-VL); else one linear
    layer, quick GELU, one linear layer and LayerNorms, which have biases (Qwen2-VL)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool
    v_hidden: int = 1280
    v_layers: int = 32
    v_heads: int = 16
    v_ffn: int = 3420
    v_gated: bool = True
    v_patch_values: int = 3 * 2 * 14 * 14
    merge: int = 2
    head_size: int = 128

    @property
    def merged(self) -> int:
        """Width of merge x merge patches side by side."""
        return self.v_hidden * self.merge**2


def _qwen2_vl(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, tied: bool) -> ModelSize:
    return ModelSize(hidden, layers, heads, kv_heads, ffn, vocab, tied, v_ffn=5120, v_gated=False)


# Published config.json files: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
# intermediate_size, vocab_size, tie_word_embeddings.
KNOWN = {
    "Qwen2.5-VL-3B": ModelSize(2048, 36, 16, 2, 11008, 151936, True),
    "Qwen2.5-VL-7B": ModelSize(3584, 28, 28, 4, 18944, 152064, False),
    "Qwen2.5-VL-32B": ModelSize(5120, 64, 40, 8, 27648, 152064, False, v_ffn=3456),
    "Qwen2.5-VL-72B": ModelSize(8192, 80, 64, 8, 29568, 152064, False, v_ffn=3456),
    "Qwen2-VL-2B": _qwen2_vl(1536, 28, 12, 2, 8960, 151936, True),
    "Qwen2-VL-7B": _qwen2_vl(3584, 28, 28, 4, 18944, 152064, False),
    "Qwen2-VL-72B": _qwen2_vl(8192, 80, 64, 8, 29568, 152064, False),
}


def find_model(name: str) -> ModelSize:
    """The size of a known name (case and an ending such as -Instruct do not matter) or of a checkpoint's directory.

    Raises ValueError when ``name`` is neither, listing the known names.
    """
    if Path(name, "config.json").is_file():
        return _from_directory(Path(name))
    plain = name.rpartition("/")[2].lower().removesuffix("-instruct")
    for known, size in KNOWN.items():
        if plain == known.lower():
            return size
    raise ValueError(
        f"--model={name}: is neither a directory with a config.json nor a known size ({', '.join(KNOWN)}); give one"
    )


def _from_directory(directory: Path) -> ModelSize:
    from megatron_apo.platform.torchvision_cpu import register_missing_operators

    register_missing_operators()  # before transformers is first imported
    from model_providers.qwen_vl.shape import read_shape

    return size_of(read_shape(directory))


def size_of(shape: QwenVLShape) -> ModelSize:
    """The sizes of an architecture as the provider reads it."""
    vision = shape.vision
    return ModelSize(
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        ffn=shape.ffn,
        vocab=shape.vocab,
        tied=shape.tied,
        v_hidden=vision.hidden,
        v_layers=vision.layers,
        v_heads=vision.heads,
        v_ffn=vision.ffn,
        v_gated=vision.gated,
        v_patch_values=vision.patch_values,
        merge=vision.spatial_merge_size,
        head_size=shape.head_size,
    )
