"""Tokens that a policy must not sample, masked inside vLLM before the sampler looks at the logits.

The mask is applied where greedy decoding sees it too, and before the processed log-probabilities are computed: the
distribution sampled from and the one reported are the same.
"""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

CONFIG_KEY = "megatron_apo_forbidden_token_ids"  # in vLLM's additional_config


class ForbiddenTokens(LogitsProcessor):
    """Sets the logits of the configured token ids to -inf for every request: one masked write for the whole batch."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        token_ids = list(vllm_config.additional_config.get(CONFIG_KEY, ()))
        vocabulary = vllm_config.model_config.get_vocab_size()
        outside = [token for token in token_ids if not 0 <= token < vocabulary]
        if outside:
            raise ValueError(
                f"forbidden_token_ids={outside}: outside the model's vocabulary of {vocabulary}; take the ids of the "
                "checkpoint's own tokenizer"
            )
        self._token_ids = torch.tensor(token_ids, dtype=torch.int64, device=device)

    def is_argmax_invariant(self) -> bool:
        """False: the highest logit may be forbidden, so greedy decoding must see the mask."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing is kept per request."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [requests, vocabulary], changed in place."""
        if self._token_ids.numel():
            logits.index_fill_(1, self._token_ids, float("-inf"))
        return logits
