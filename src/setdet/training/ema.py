"""The running average of a model's weights, which is the model that is evaluated and saved."""

import copy
import math

import torch
from torch import nn

PAPER_DECAY = 0.9999
HORIZON_SHARE = 0.02  # published: 10,000 of 527,000 steps
WARMUP_SHARE = 0.2  # published: a time constant of 2000 steps for an average over 10,000


def decay_for(total_steps: int) -> float:
    """A decay that averages over 2 % of the run's steps: the published one over a run of the published length."""
    horizon = max(10.0, HORIZON_SHARE * total_steps)
    return min(PAPER_DECAY, 1 - 1 / horizon)


def warmup_for(decay: float) -> int:
    """The time constant in steps that goes with a decay, in the published proportion."""
    return max(1, round(WARMUP_SHARE / (1 - decay)))


class Ema:
    """Weights averaged by decay·(1 − e^(−t/τ)): early on the average follows the model, and so forgets its start.

    Attributes:
        module: the averaged model, in evaluation mode. Buffers (statistics of norms) are averaged too;
            whole numbers are copied.
    """

    def __init__(self, *, model: nn.Module, decay: float, warmup_steps: int) -> None:
        """`model` is the one that trains, in its place on its device."""
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        # Gathered once: a state_dict takes longer than the arithmetic.
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.decay = decay
        self.warmup_steps = warmup_steps

    def decay_at(self, step: int) -> float:
        """The decay of the update after `step` optimiser steps."""
        return self.decay * (1 - math.exp(-step / self.warmup_steps))

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Moves the average towards the model, which has taken `step` steps."""
        averages, values = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, values, 1 - self.decay_at(step))
        for copied, value in self._copied:
            copied.copy_(value)
