"""The soft overlong punishment: a reward part for responses that come near the cap (DAPO, arXiv:2503.14476, eq. 13)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_apo.config import Config


@dataclass(frozen=True)
class OverlongPunishment:
    """``weight`` times a part that falls from 0 to -1 over the last ``buffer`` (a share) of ``max_tokens`` tokens."""

    max_tokens: int
    buffer: float
    weight: float

    def part(self, tokens: int) -> float:
        """With the buffer's C tokens before the cap M: 0 up to M - C, ((M - C) - tokens) / C up to M, -1 beyond it.

        ``tokens`` of the response, the end token included.
        """
        room = self.buffer * self.max_tokens
        return max(-1.0, min(0.0, (self.max_tokens - room - tokens) / room))


def overlong_punishment(config: Config) -> OverlongPunishment | None:
    """What ``objective.overlong`` asks for; None unless its policy is to punish."""
    overlong = config.objective.overlong
    if overlong.policy != "punish":
        return None
    return OverlongPunishment(config.sampling.max_tokens, overlong.buffer, overlong.weight)
