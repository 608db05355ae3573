"""The quickstart's policy is a Qwen2.5-VL checkpoint that transformers loads like a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from examples.digits import make_policy as example
from megatron_apo.data.tasks import digits


@pytest.fixture(scope="module")
def processor(tiny_policy: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_policy)


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_policy)


def render_chat(processor: Any, messages: list[dict[str, Any]], *, generate: bool = True) -> str:
    text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return text


def test_chat_template_as_qwen_writes_it(processor: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Q?"}]
    assert render_chat(processor, [{"role": "user", "content": content}]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q?<|im_end|>\n<|im_start|>assistant\n"
    )
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
    ]
    assert render_chat(processor, turns, generate=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    )


def test_special_tokens_are_single_and_vanish_in_text_while_tags_stay(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for token in (*example.SPECIAL_TOKENS, *example.PLAIN_TOKENS):
        assert len(tokenizer(token).input_ids) == 1, token
    ids = tokenizer("<think>5+8=13</think><answer>13</answer><|im_end|>").input_ids
    assert len(ids) == 13
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>5+8=13</think><answer>13</answer>"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("text", ["naïve 数学 🙂", "a  b\n\n c\t", "<b>x</b> {1} 007"])
def test_any_text_survives_the_byte_level_vocabulary(processor: Any, text: str) -> None:
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


def test_every_token_has_an_embedding(processor: Any, model: Any) -> None:
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size
    ids = {name: getattr(model.config, f"{name}_token_id") for name in ("image", "video", "vision_start", "vision_end")}
    tokens = processor.tokenizer.convert_ids_to_tokens(list(ids.values()))
    assert tokens == ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert processor.tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|im_end|>"


def test_image_keeps_its_size_and_the_model_sees_it(processor: Any, model: Any) -> None:
    text = render_chat(processor, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]}])
    logits = []
    for number in (0, 1):
        image: Image.Image = digits.render(digits.draw_row("train", number, seed=0)).convert("RGB")
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        rows, columns = digits.IMAGE_HEIGHT // 14, 2 * digits.WIDTH_OF_DIGIT // 14
        assert inputs["image_grid_thw"].tolist() == [[1, rows, columns]]
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == rows * columns // 4
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert torch.isfinite(logits[0]).all() and not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_both_kinds_of_vision_attention_occur(model: Any) -> None:
    vision = model.config.vision_config
    assert set(vision.fullatt_block_indexes) < set(range(vision.depth)) and vision.fullatt_block_indexes
    assert vision.window_size < 2 * digits.WIDTH_OF_DIGIT  # a window is less than an image


def test_same_seed_same_weights_and_the_callers_generator_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        example.make_policy(tmp_path / name, seed=seed)
    assert torch.equal(torch.rand(1), expected)
    first, second, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second and first != other
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_directory_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert example.main([str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
