"""Checkpoints between Hugging Face's safetensors and Megatron's ``torch_dist``, and what compares them."""
