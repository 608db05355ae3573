"""The prompt builder against the processor called the ordinary way, on a processor made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_apo.config import DataConfig
from megatron_apo.data.prompts import PromptBuilder
from megatron_apo.data.readers import read_records
from megatron_apo.data.rows import Row, Turn, row_from
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import PromptImage

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def processor_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with Qwen's special tokens, and the image processor with its own defaults."""
    register_missing_operators()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    directory = tmp_path_factory.mktemp("processor")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    return directory


def picture(path: Path, width: int, height: int, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def row(*images: str, question: str = "What is it?") -> Row:
    return Row(id="r1", images=images, question=question, answer="4", demonstration="<answer>4</answer>")


def test_ids_and_pixels_equal_the_processors(processor_directory: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    paths = [picture(tmp_path / "a.png", 56, 56), picture(tmp_path / "b.png", 200, 90, seed=1)]
    data = DataConfig(system_prompt="Be brief.", instruction="Answer with a number.", max_pixels=28 * 28 * 12)
    builder = PromptBuilder(processor_directory, data)
    prompt = builder.build(row(*paths))

    processor = AutoProcessor.from_pretrained(processor_directory, local_files_only=True)
    content = [{"type": "image"}, {"type": "image"}]
    content.append({"type": "text", "text": "What is it?\nAnswer with a number."})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = processor(
        text=[text],
        images=[Image.open(path) for path in paths],
        images_kwargs={"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 12}},
        return_tensors="pt",
    )
    assert list(prompt.token_ids) == expected["input_ids"][0].tolist()
    assert [list(image.grid_thw) for image in prompt.images] == expected["image_grid_thw"].tolist()
    pixels = torch.cat([builder.pixel_values(image) for image in prompt.images])
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected["pixel_values"])
    # 56 x 56 is 4 x 4 patches, so 4 image tokens where the collapsed form has 1
    assert prompt.images[0].grid_thw == (1, 4, 4)
    collapsed = list(prompt.collapsed_ids)
    assert collapsed.count(builder.image_token_id) == 2
    first = collapsed.index(builder.image_token_id)
    assert list(prompt.token_ids[first : first + 4]) == [builder.image_token_id] * 4
    assert prompt.token_ids[first + 4] != builder.image_token_id
    assert (prompt.id, prompt.gold, prompt.demonstration) == ("r1", "4", "<answer>4</answer>")


def test_the_quickstarts_policy_and_task(tiny_policy: Path, digits_task: Path) -> None:
    """Every prompt of the digits task equals what the policy's own processor makes of it; so does the demonstration."""
    from transformers import AutoProcessor

    builder = PromptBuilder(tiny_policy, DataConfig())
    rows = [
        row_from(record.fields, default_id="", image_path=lambda name: str(digits_task / name))
        for record in read_records(digits_task / "validation.jsonl")
    ]
    prompts = [builder.build(item) for item in rows]
    processor = AutoProcessor.from_pretrained(tiny_policy, local_files_only=True)
    for item, prompt in zip(rows, prompts, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": item.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        expected = processor(text=[text], images=[Image.open(item.images[0])], return_tensors="pt")
        assert list(prompt.token_ids) == expected["input_ids"][0].tolist()
        assert torch.equal(builder.pixel_values(prompt.images[0]), expected["pixel_values"])
        ids = builder.response_ids(item.demonstration)
        assert builder.tokenizer.decode(ids[:-1]) == item.demonstration
        assert not set(ids) & set(builder.forbidden_token_ids)


def test_special_tokens_and_response_ids(processor_directory: Path) -> None:
    builder = PromptBuilder(processor_directory, DataConfig())
    tokenizer = builder.tokenizer
    names = tokenizer.convert_ids_to_tokens(list(builder.forbidden_token_ids))
    assert set(names) == {
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    }
    assert tokenizer.convert_ids_to_tokens(builder.eos_token_id) == "<|im_end|>"
    ids = builder.response_ids("ab")
    assert len(ids) == 3 and ids[-1] == builder.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "ab"
    with pytest.raises(ValueError, match="image_pad"):
        builder.response_ids("a <|image_pad|>")


def test_refusals_name_the_row(processor_directory: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 56, 56)
    builder = PromptBuilder(processor_directory, DataConfig(max_prompt_tokens=20))
    with pytest.raises(ValueError, match=r"row 'r1'.*max_prompt_tokens=20"):
        builder.build(row(path))
    builder = PromptBuilder(processor_directory, DataConfig())
    with pytest.raises(ValueError, match=r"row 'r1': its text contains <\|image_pad\|>, which the model reads"):
        builder.build(row(path, question="<|image_pad|>?"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"row 'r1'.*broken\.png"):
        builder.build(row(str(tmp_path / "broken.png")))


def test_pixels_of_a_changed_file_or_other_limits_are_refused(processor_directory: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 112, 112, seed=5)
    prompt = PromptBuilder(processor_directory, DataConfig()).build(row(path))
    smaller = PromptBuilder(processor_directory, DataConfig(max_pixels=56 * 56))
    with pytest.raises(ValueError, match=r"grid is \(1, 4, 4\), recorded was \(1, 8, 8\)"):
        smaller.pixel_values(prompt.images[0])


def test_a_video_is_not_decoded(processor_directory: Path) -> None:
    clip = PromptImage("clip.mp4", "00", (2, 4, 4), seconds_per_grid=0.5)
    with pytest.raises(ValueError, match=r"clip.mp4 is a video \(seconds_per_grid=0.5\)"):
        PromptBuilder(processor_directory, DataConfig()).pixel_values(clip)


def test_a_directory_without_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        PromptBuilder(tmp_path / "absent", DataConfig())
    with pytest.raises(ValueError, match="cannot be loaded"):
        PromptBuilder(tmp_path, DataConfig())


def test_a_prompt_is_never_cut(processor_directory: Path, tmp_path: Path) -> None:
    """One token less than the prompt has refuses it, wherever in text or image the cut would fall."""
    path = picture(tmp_path / "a.png", 112, 112)
    length = len(PromptBuilder(processor_directory, DataConfig()).build(row(path)).token_ids)
    for most in (1, 10, length - 1):
        with pytest.raises(ValueError, match=f"{length} prompt tokens exceed data.max_prompt_tokens={most}"):
            PromptBuilder(processor_directory, DataConfig(max_prompt_tokens=most)).build(row(path))
    assert len(PromptBuilder(processor_directory, DataConfig(max_prompt_tokens=length)).build(row(path)).token_ids)


def test_turns_with_images_between_the_words(processor_directory: Path, tmp_path: Path) -> None:
    paths = (picture(tmp_path / "a.png", 56, 56), picture(tmp_path / "b.png", 84, 56))
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", ("Is ", 1, " red?")),
        Turn("assistant", ("No.",)),
        Turn("user", ("And ", 0)),
    )
    asked = Row("r1", paths, "And", "no", turns=turns)
    builder = PromptBuilder(processor_directory, DataConfig(system_prompt="Be long.", instruction="Think."))
    prompt = builder.build(asked)
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert builder.tokenizer.decode(prompt.collapsed_ids) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs {shown} red?<|im_end|>\n"
        f"<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nAnd {shown}Think.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_trainer_and_engine_open_the_same_picture(processor_directory: Path, tmp_path: Path) -> None:
    """What an engine is given, run through the processor, is what the trainer gets: turned, scaled, on white."""
    from transformers import AutoProcessor

    from megatron_apo.rollout.build import open_image

    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.effect_noise((112, 56), 90)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    wide.save(tmp_path / "wide.png")
    grey.convert("RGBA").save(tmp_path / "alpha.png")
    grey.save(tmp_path / "turned.jpg", exif=exif)
    builder = PromptBuilder(processor_directory, DataConfig())
    processor = AutoProcessor.from_pretrained(processor_directory, local_files_only=True).image_processor
    for name, size in (("wide.png", (112, 56)), ("alpha.png", (112, 56)), ("turned.jpg", (56, 112))):
        image = builder.build(row(str(tmp_path / name))).images[0]
        opened = open_image(image)
        assert opened.size == size and opened.mode == "RGB"
        engine = processor(images=[opened], return_tensors="pt")
        assert engine["image_grid_thw"][0].tolist() == list(image.grid_thw)
        assert torch.equal(engine["pixel_values"], builder.pixel_values(image))
    assert np.array_equal(
        np.asarray(open_image(builder.build(row(str(tmp_path / "wide.png"))).images[0]))[..., 0], grey
    )
