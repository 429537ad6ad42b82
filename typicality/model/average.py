"""The moving average of weights that is kept beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Average:
    """Exponential moving average of parameters, warmed up so that the start is forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the current weights; twice restores both."""
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)
