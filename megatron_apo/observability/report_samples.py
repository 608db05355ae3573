"""Sampled responses beside their images, for ``report.html``."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_IMAGE_BYTES = 4 * 2**20
SMALL_IMAGE_BYTES = 16 * 1024  # tiny pictures are enlarged without blurring

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}
_STEP = re.compile(r"step_(\d+)\.jsonl$")


@dataclass(frozen=True)
class SampledGroup:
    """One group of a step as its rollout file holds it: plain JSON values, ``shaping`` per response."""

    step: int
    prompt: dict[str, Any]
    rollouts: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    shaping: list[dict[str, Any]]


def sample_sections(run_dir: Path, responses: int) -> str:
    """About ``responses`` responses from an early, a middle and a late step, as HTML; empty without rollout files."""
    files = sorted(
        (
            (int(match[1]), path)
            for path in (run_dir / "rollouts").glob("*.jsonl")
            if (match := _STEP.search(path.name))
        ),
    )
    if not files or responses < 1:
        return ""
    chosen = {"Early": files[0], "Middle": files[len(files) // 2], "Late": files[-1]}
    if len(files) < 3:
        chosen = {"Early": files[0], "Late": files[-1]} if len(files) == 2 else {"The only step": files[0]}
    per_step = max(1, -(-responses // (2 * len(chosen))))
    parts = []
    for name, (step, path) in chosen.items():
        groups = telling_groups(read_groups(path, step), per_step)
        parts.append(f"<h3>{name} · step {step}</h3>" + "".join(_group_html(group) for group in groups))
    return "".join(parts)


def read_groups(path: Path, step: int) -> list[SampledGroup]:
    """The groups of one rollout file; ValueError with file and line for one that is none."""
    groups = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a response may hold other separators
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); restore the file") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            if "prompt" not in entry:
                continue  # the header
            groups.append(
                SampledGroup(
                    step,
                    entry["prompt"],
                    list(entry["rollouts"]),
                    list(entry.get("scores") or []),
                    list(entry.get("shaping") or []),
                )
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: not a recorded group ({error!r}); remove the file") from error
    return groups


def telling_groups(groups: Sequence[SampledGroup], count: int) -> list[SampledGroup]:
    """The ``count`` groups nearest to half correct, in the file's order: they show what the objective does."""

    def distance(group: SampledGroup) -> float:
        correct = sum(score.get("outcome") == "correct" for score in group.scores)
        return abs(correct / max(1, len(group.scores)) - 0.5)

    nearest = sorted(range(len(groups)), key=lambda index: (distance(groups[index]), index))[:count]
    return [groups[index] for index in sorted(nearest)]


def _group_html(group: SampledGroup) -> str:
    prompt = group.prompt
    pictures = "".join(picture(image) for image in prompt.get("images", ()))
    indices = range(len(group.rollouts))
    if group.shaping:
        order = sorted(indices, key=lambda index: _number(group.shaping[index], "advantage"))
        shown = sorted({order[-1], order[0]}, key=lambda index: -_number(group.shaping[index], "advantage"))
    else:
        shown = list(indices)[:2]
    correct = sum(score.get("outcome") == "correct" for score in group.scores)
    return (
        f'<article class="sample"><div class="pictures">{pictures}</div><div>'
        f'<div class="question">{html.escape(str(prompt.get("question", "")))}</div>'
        f'<div class="soft">gold answer <b>{html.escape(str(prompt.get("gold", "")))}</b> · '
        f"{correct} of {len(group.rollouts)} responses correct</div>"
        + "".join(_response_html(group, index) for index in shown)
        + "</div></article>"
    )


def _response_html(group: SampledGroup, index: int) -> str:
    rollout = group.rollouts[index]
    chips = []
    if group.scores:
        score = group.scores[index]
        outcome = str(score.get("outcome", ""))
        known = outcome if outcome in ("correct", "wrong", "no_answer", "grader_error") else ""
        chips.append(f'<span class="chip {known}">{html.escape(outcome.replace("_", " "))}</span>')
        parts = ", ".join(f"{name} {value:g}" for name, value in dict(score.get("parts", {})).items())
        chips.append(_chip("reward", f"{_number(score, 'total'):.2f}", parts))
    if group.shaping:
        shaping = group.shaping[index]
        raw, final = _number(shaping, "raw_advantage"), _number(shaping, "advantage")
        chips.append(_chip("advantage", f"{final:+.3f}", f"before STCR {raw:+.3f}" if raw != final else ""))
        chips.append(_chip("STCR ×", f"{_number(shaping, 'stcr'):.3f}"))
        chips.append(_chip("DADS ×", f"{_number(shaping, 'kl_weight'):.3f}"))
    chips.append(_chip("tokens", str(len(rollout.get("token_ids", ())))))
    if rollout.get("finish_reason") == "length":
        chips.append(_chip("", "cut at the limit"))
    text = html.escape(str(rollout.get("text", "")))
    text = re.sub(r"&lt;/?(?:think|answer)&gt;", lambda match: f'<span class="tag">{match[0]}</span>', text)
    return f'<div class="response"><div class="chips">{"".join(chips)}</div><pre>{text}</pre></div>'


def _chip(label: str, value: str, more: str = "") -> str:
    more = f' <span class="soft">({html.escape(more)})</span>' if more else ""
    return f'<span class="chip">{html.escape(label)} <b>{html.escape(value)}</b>{more}</span>'


def _number(entry: dict[str, Any], key: str) -> float:
    value = entry.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def picture(image: dict[str, Any]) -> str:
    """The file as an ``<img>`` with its bytes in it (never decoded here), or a box that says why there is none."""
    path = Path(str(image.get("path", "")))
    name = html.escape(path.name)
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_IMAGE_BYTES else b""
    except OSError:
        return f'<div class="missing">{name}: no longer there</div>'
    if not data:
        return f'<div class="missing">{name}: too large to show</div>'
    recorded = image.get("sha256")
    if recorded and hashlib.sha256(data).hexdigest() != recorded:
        return f'<div class="missing">{name}: changed since the run</div>'
    media_type = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    if media_type is None:
        return f'<div class="missing">{name}: a format browsers do not show</div>'
    size = ' class="small"' if len(data) <= SMALL_IMAGE_BYTES else ""
    return f'<img{size} alt="{name}" src="data:{media_type};base64,{base64.b64encode(data).decode()}">'
