"""Makes the quickstart's policy: a tiny Qwen2.5-VL with random weights, as a proper Hugging Face checkpoint.

    python examples/digits/make_policy.py DIRECTORY --seed 0 [--family qwen2_vl]

The directory holds what a published Qwen2.5-VL checkpoint holds (config, weights in safetensors, tokenizer, chat
template, processor, generation config), so transformers, vLLM and megatron_apo load it like any other. Its sizes are
its own: three million parameters, and a byte-level vocabulary whose merges are learned from the digits task's texts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
# Qwen2.5-VL's control tokens, in the order of its ids.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Its other added tokens: plain text when decoded. The last four are this policy's own, so that each tag of a response
# is one token.
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
SYSTEM_PROMPT = "You are a helpful assistant."

# What Qwen2.5-VL's template produces: the default system message unless the chat brings its own, then every message as
# <|im_start|>role, text and images in their order, <|im_end|>.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class PolicySize:
    """The shape of the policy. Head size 32 of the language model is the smallest that vLLM has attention for."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    vision_hidden: int = 256
    vision_layers: int = 2
    vision_heads: int = 8
    vision_feed_forward: int = 512
    window: int = 28  # pixels; one merged patch, so that a 28 x 56 image has two windows
    initializer_range: float = 0.1  # at 0.02 so small a policy does not learn to see in 400 updates


FAMILIES = ("qwen2_5_vl", "qwen2_vl")


def make_policy(
    directory: str | Path, *, seed: int, size: PolicySize | None = None, family: str = "qwen2_5_vl"
) -> Path:
    """Writes the checkpoint; the same seed, size and family give the same weights.

    Raises ValueError for a directory that exists and is not empty; nothing is overwritten.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"directory={directory}: exists and is not empty; choose another one, or remove it")

    import torch

    from megatron_apo.platform.torchvision_cpu import register_missing_operators

    register_missing_operators()
    from transformers import AutoModelForImageTextToText, GenerationConfig

    tokenizer = _tokenizer()
    config = _config(size or PolicySize(), tokenizer, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    _processor(tokenizer, family).save_pretrained(directory)
    return directory


def _tokenizer() -> Any:
    """Qwen2's tokenizer class over a small byte-level vocabulary: 256 bytes, the task's words, the added tokens."""
    from tokenizers import AddedToken, Tokenizer, models, trainers
    from transformers import Qwen2TokenizerFast

    from megatron_apo.data.tasks.digits import draw_row, question_about

    untrained = Qwen2TokenizerFast()
    trainable = Tokenizer(models.BPE())
    trainable.normalizer = untrained.backend_tokenizer.normalizer
    trainable.pre_tokenizer = untrained.backend_tokenizer.pre_tokenizer
    roles = ["system\n", "user\n", "assistant\n", "\n"]
    texts = roles + [SYSTEM_PROMPT, question_about(2)]
    texts += [_bare(draw_row("train", n, seed=0).demonstration()) for n in range(100)]
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=_byte_alphabet(), show_progress=False)
    trainable.train_from_iterator(texts, trainer=trainer)

    state = _json_model(trainable)
    tokenizer = Qwen2TokenizerFast(
        vocab={**state["vocab"], END_OF_TEXT: len(state["vocab"])},
        merges=[tuple(merge) for merge in state["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _bare(demonstration: str) -> str:
    """A demonstration without its tags, which are tokens of their own."""
    for tag in PLAIN_TOKENS[-4:]:
        demonstration = demonstration.replace(tag, " ")
    return demonstration


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _json_model(tokenizer: Any) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _vision(size: PolicySize, family: str) -> dict[str, Any]:
    common = {
        "depth": size.vision_layers,
        "num_heads": size.vision_heads,
        "initializer_range": size.initializer_range,
    }
    if family == "qwen2_vl":
        ratio = size.vision_feed_forward // size.vision_hidden
        return {**common, "embed_dim": size.vision_hidden, "mlp_ratio": ratio, "hidden_size": size.hidden}
    return {
        **common,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_feed_forward,
        "out_hidden_size": size.hidden,
        "tokens_per_second": 2,
        "window_size": size.window,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }


def _config(size: PolicySize, tokenizer: Any, family: str) -> Any:
    from transformers import AutoConfig

    head = size.hidden // size.heads
    section = [head // 8, head // 16 * 3, head // 2 - head // 8 - head // 16 * 3]  # Qwen's 16 : 24 : 24
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    end_of_text, end_of_turn = (tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TEXT, END_OF_TURN))
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": size.hidden,
        "intermediate_size": size.feed_forward,
        "num_hidden_layers": size.layers,
        "max_window_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": section},
        "initializer_range": size.initializer_range,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
        "tie_word_embeddings": True,
    }
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=_vision(size, family),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
        dtype="float32",
    )


def _processor(tokenizer: Any, family: str) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
    return (Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a tiny Qwen2.5-VL checkpoint with random weights.")
    parser.add_argument("directory", help="where to write it; must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        directory = make_policy(options.directory, seed=options.seed, family=options.family)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {directory}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
