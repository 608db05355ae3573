"""A small language model of Megatron-Core's parts, which knows nothing of megatron_apo.

Shape suffixes: T packed tokens, H hidden, V vocabulary (this tensor rank's part of it).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

HIDDEN, HEADS, LAYERS, LONGEST = 48, 4, 2, 16


class Policy(MegatronModule):
    """Embedding, decoder and a tied output projection; ``forward`` ends before the projection."""

    def __init__(self, config: TransformerConfig, vocab: int, groups: ProcessGroupCollection) -> None:
        super().__init__(config=config)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = self.post_process = self.share_embeddings_and_output_weights = True
        self.embedding = LanguageModelEmbedding(config, vocab, LONGEST, tp_group=groups.tp)
        self.decoder = TransformerBlock(config, get_gpt_layer_local_spec(), pg_collection=groups)

    def set_input_tensor(self, tensor: Any) -> None:
        """Megatron's schedule calls it on every stage; there is only this one."""

    def output_weight(self) -> torch.Tensor:
        """[V, H]."""
        return self.embedding.word_embeddings.weight

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, hidden_from: torch.Tensor) -> torch.Tensor:
        """Hidden states [T, 1, H] of ``ids`` [1, T]; ``hidden_from`` [1, 1, T, T] is True where no attention goes."""
        return self.decoder(self.embedding(ids, positions), hidden_from)


def packed_mask(boundaries: torch.Tensor) -> torch.Tensor:
    """True between tokens of different sequences and towards later ones: [1, 1, T, T], of int32 boundaries [N + 1].

    For a few tokens. An attention that takes boundaries itself, as Transformer Engine's does, needs no mask.
    """
    places = torch.arange(int(boundaries[-1]), device=boundaries.device)
    sequence = torch.searchsorted(boundaries, places, right=True)
    return ((sequence[:, None] != sequence) | (places > places[:, None]))[None, None]


def model_provider(vocab: int, tensor: int, groups: ProcessGroupCollection) -> Policy:
    """A policy with random weights, the same whatever the layout."""
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor,
        pipeline_dtype=torch.float32,
        calculate_per_token_loss=True,  # what the adapter's scaling is derived for
        use_cpu_initialization=True,  # whole matrices are drawn and cut: as many ranks, the same numbers
    )
    return Policy(config, vocab, groups)
