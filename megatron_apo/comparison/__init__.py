"""Per-token log-probabilities of transformers, Megatron and vLLM on the same inputs, side by side."""
