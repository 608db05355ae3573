"""Any loss, any batch, any layout: loss, every metric and every gradient equal one unsplit computation.

    python -m tests.properties.losses --draws 500 [--first 0] [--largest-world 8] [--log FILE]

Draws what ``tests.properties.layouts`` draws, and a loss besides: reduction, estimator and coefficient of the KL,
token or sequence ratios, clipping, where the old policy's log-probabilities come from, correction of mismatch. The
responses' advantages, weights and log-probabilities of the engine are random; where they cancel so far that float32
itself is off by half a limit, they are drawn again (loss_ranks.expected_of). Exit status 1 when a draw fails.
"""

from __future__ import annotations

import sys

from tests.properties.layouts import Property, main
from tests.properties.loss_ranks import LIMITS, loss_draw

LOSSES = Property(
    "tests.properties.loss_ranks:check",
    "tests.properties.injected_losses:check_with_bug",
    LIMITS,
    lambda draw: loss_draw(draw.number).factors(draw),
)

if __name__ == "__main__":
    sys.exit(main(LOSSES, __doc__))
