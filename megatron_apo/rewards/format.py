"""The format reward: thinking, then one answer (View-R1's rule, arXiv:2506.21655)."""

from __future__ import annotations

import re
import unicodedata

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_BLOCKS = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)


def format_reward(response_text: str) -> bool:
    """True for exactly one ``<think>…</think>`` directly followed by exactly one ``<answer>…</answer>``.

    White space between the two blocks and any text before and after them are allowed; both blocks must hold something
    that is visible. Only the model's own response is looked at: the prompt's tags never count.
    """
    if any(response_text.count(tag) != 1 for tag in TAGS):
        return False
    blocks = _BLOCKS.search(response_text)
    return blocks is not None and all(visible_text(block) for block in blocks.groups())


def visible_text(text: str) -> str:
    """``text`` without invisible format characters (zero-width space and joiners, byte-order mark) and outer spaces.

    They are removed because a reader does not see them: "1\\u200b3" reads 13, and a block of them reads empty.
    """
    return "".join(character for character in text if unicodedata.category(character) != "Cf").strip()
