"""Multiple choice: the options of a question, and which of them an answer chooses."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from megatron_apo.rewards.reading import folded, unwrapped

MAX_OPTIONS = 26
LETTERS_ALONE = 10  # A to J, where the row lists no options

# How a question may mark its options, the most telling first.
_STYLES = [
    re.compile(r"\(([A-Z])\)\s*"),
    re.compile(r"(?:(?<=\s)|^)([A-Z])\s*[.．、:：]\s*(?=\S)", re.MULTILINE),
    re.compile(r"(?:(?<=\s)|^)([A-Z])\)\s*", re.MULTILINE),
]
_LAST_ENDS = re.compile(r"\n|(?<=[.;])\s+(?=(?:Answer|Please|Choose|Select|Give|Write)\b)")
_LABEL = r"(?:\(\s*(?P<bracketed>[A-Za-z])\s*\)|(?P<plain>[A-Za-z]))"
_ALONE = re.compile(rf"{_LABEL}\s*[.:)]?")
_LABELLED = re.compile(
    r"(?:\(\s*(?P<bracketed>[A-Za-z])\s*\)\s*[.:]?|(?P<plain>[A-Za-z])\s*(?:[.:)、]|(?=\s-\s)\s-))\s*(?P<text>\S.*)",
    re.DOTALL,
)
_INTRODUCED = re.compile(
    r"(?:the\s+)?(?:correct\s+|final\s+|right\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?:option\s+|choice\s+)?",
    re.IGNORECASE,
)


def options_of(question: str, choices: Sequence[str] = ()) -> tuple[str, ...]:
    """The texts of the options A, B, …: those of the row, else those that the question's text lists; () for none.

    A list in the text starts with A, its labels are alike ("A.", "A)" or "(A)") and follow one another; the last such
    list counts.
    """
    if choices:
        return tuple(_without_label(choice, index) for index, choice in enumerate(choices[:MAX_OPTIONS]))
    found: tuple[int, tuple[str, ...]] = (-1, ())
    for style in _STYLES:
        labels = list(style.finditer(question))
        starts = [index for index, label in enumerate(labels) if label[1] == "A"]
        for start in reversed(starts):
            run: list[re.Match[str]] = []
            for label in labels[start:]:
                if len(run) < MAX_OPTIONS and label[1] == string.ascii_uppercase[len(run)]:
                    run.append(label)
            if len(run) >= 2:
                ends = [label.start() for label in run[1:]] + [len(question)]
                texts = tuple(question[label.end() : end] for label, end in zip(run, ends, strict=True))
                last = _LAST_ENDS.split(texts[-1].strip())[0]
                found = max(found, (run[0].start(), (*(text.strip(" \t\n;,") for text in texts[:-1]), last)))
                break
    return found[1]


def gold_options(gold: str, options: Sequence[str], same: Callable[[str, str], bool]) -> frozenset[int]:
    """Which options the gold answer names, by letter ("B", "(B)", "B. bar"), letters ("ACD", "A, C") or text.

    Empty when it names none: then the row is no multiple choice. ``same``: whether two answers say the same.
    """
    chosen = _by_letter(gold, options, same)
    if chosen is not None:
        return frozenset({chosen})
    several = _several(gold, len(options) or LETTERS_ALONE)
    if several and options:
        return several
    texts = [index for index, option in enumerate(options) if folded(option) == folded(gold)]
    texts = texts or [index for index, option in enumerate(options) if same(gold, option)]
    return frozenset(texts[:1]) if len(texts) == 1 else frozenset()


def chosen_options(answer: str, options: Sequence[str], same: Callable[[str, str], bool]) -> frozenset[int]:
    """Which options an answer chooses: one letter, a letter with its own option's text, that text alone, or, for
    questions with several right options, their letters. Empty when it chooses none, or one letter and another's text.
    """
    chosen = _by_letter(_unintroduced(answer), options, same)
    if chosen is not None:
        return frozenset({chosen})
    several = _several(_unintroduced(answer), len(options) or LETTERS_ALONE)
    if several:
        return several
    wanted = folded(answer)
    texts = [index for index, option in enumerate(options) if folded(option) == wanted]
    texts = texts or [index for index, option in enumerate(options) if same(answer, option)]
    return frozenset(texts) if len(texts) == 1 else frozenset()


def _by_letter(text: str, options: Sequence[str], same: Callable[[str, str], bool]) -> int | None:
    text = _plain(text)
    alone = _ALONE.fullmatch(text)
    count = len(options) or LETTERS_ALONE
    if alone is not None:
        index = _index(alone)
        return index if index < count else None
    labelled = _LABELLED.fullmatch(text)
    if labelled is None or _index(labelled) >= count:
        return None
    index, said = _index(labelled), labelled["text"]
    if options:
        return index if folded(said) == folded(options[index]) or same(said, options[index]) else None
    # The options are not known: whatever follows the letter must not name another.
    others = re.search(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])", re.sub(r"\bA (?=[a-z])", "", said))
    return None if others or re.search(r"\b(?:or|not)\b", said) or not re.search(r"\w", said) else index


def _several(text: str, count: int) -> frozenset[int]:
    """The letters of "ACD" (in rising order), "C, A" or "A and C", each once; empty for anything else."""
    letters = re.split(r"\s*(?:,|;|\band\b|&|、)\s*", _plain(text))
    if len(letters) == 1 and list(letters[0]) == sorted(letters[0]):
        letters = list(letters[0])
    known = all(len(letter) == 1 and letter in string.ascii_uppercase[:count] for letter in letters)
    if len(letters) < 2 or len(set(letters)) < len(letters) or not known:
        return frozenset()
    return frozenset(string.ascii_uppercase.index(letter) for letter in letters)


def _index(match: re.Match[str]) -> int:
    return string.ascii_uppercase.index((match["bracketed"] or match["plain"]).upper())


def _plain(text: str) -> str:
    text = unwrapped(text)
    return unwrapped(re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text))


def _unintroduced(text: str) -> str:
    text = _plain(text)
    match = _INTRODUCED.match(text)
    return text[match.end() :] if match is not None else text


def _without_label(choice: str, index: int) -> str:
    labelled = _LABELLED.fullmatch(choice.strip())
    return labelled["text"] if labelled is not None and _index(labelled) == index else choice.strip()
