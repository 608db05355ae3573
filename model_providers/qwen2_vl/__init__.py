"""Qwen2-VL, built of the classes in ``model_providers.qwen_vl``."""
