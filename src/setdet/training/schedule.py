"""The learning rate as a pure function of the step, so that a resumed run needs nothing but the step."""

import math
from typing import Literal

PAPER_WARMUP_STEPS = 2000
WARMUP_SHARE = 0.05


def warmup_steps_for(total_steps: int) -> int:
    """The published warm-up, but never more than 5 % of the run (at least one step)."""
    return max(1, min(PAPER_WARMUP_STEPS, round(WARMUP_SHARE * total_steps)))


def rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["cosine", "flat-cosine", "constant"],
    final_rate: float = 0.0,
    warmup: Literal["linear", "quadratic"] = "linear",
    plain_steps: int = 0,
) -> float:
    """What the peak rate is multiplied by at `step` (0 is the first).

    Args:
        step: optimiser steps taken before.
        total_steps: of the whole run.
        warmup_steps: steps of rise to 1.
        schedule: what follows the warm-up.
        final_rate: where a cosine ends, as a share of the peak.
        warmup: how the rate rises: with the step, or with its square.
        plain_steps: last steps, at which a flat cosine has ended.
    """
    if step < warmup_steps:
        return ((step + 1) / warmup_steps) ** (2 if warmup == "quadratic" else 1)
    if schedule == "constant":
        return 1.0
    start, end = warmup_steps, total_steps
    if schedule == "flat-cosine":
        start, end = max(warmup_steps, total_steps // 2), total_steps - plain_steps
    if step < start:
        return 1.0
    done = min(1.0, (step - start) / max(1, end - start))
    return final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * done))
