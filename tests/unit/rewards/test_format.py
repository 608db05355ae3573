"""The format reward, case by case."""

from __future__ import annotations

import pytest

from megatron_apo.rewards.format import format_reward

GOOD = "<think>7 and 6</think><answer>13</answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "<think>7 and 6</think>\n \t<answer>13</answer>",
        "Well: " + GOOD + " is it.",
        "<think>two\nlines</think><answer>\n13\n</answer>",
    ],
)
def test_pays_for_thinking_then_one_answer(text: str) -> None:
    assert format_reward(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "13",
        "<answer>13</answer>",
        "<answer>13</answer><think>7 and 6</think>",
        "<think>7 and 6</think> so <answer>13</answer>",
        "<think></think><answer>13</answer>",
        "<think>7 and 6</think><answer> \n</answer>",
        "<think>7 and 6</think><answer>\u200b\ufeff</answer>",
        "<think>\u200b</think><answer>13</answer>",
        GOOD + "<answer>14</answer>",
        GOOD + GOOD,
        "<think>a</think>" + GOOD,
        "<think>or <answer>12</answer></think><answer>13</answer>",
        "<think>a<answer>13</answer></think>",
        "<think>7 and 6</think>\u200b<answer>13</answer>",
        "<think>7 and 6</think><answer>13",
        "<THINK>7 and 6</THINK><ANSWER>13</ANSWER>",
        GOOD + "</answer>",
    ],
)
def test_pays_nothing_else(text: str) -> None:
    assert not format_reward(text)
