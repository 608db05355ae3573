"""Qwen2-VL: the classes of ``model_providers.qwen2_5_vl``, whose shape says what differs (see ``shape.py`` there)."""
