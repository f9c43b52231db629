"""Class weights Γ_i(t): how the emphasis on the classes oscillates while training goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class TriangleSchedule:
    """Class weights that rise and fall linearly, one class after the other.

    In period p (steps pT … (p+1)T − 1, p from 0) class p mod C is emphasised: its raw weight rises linearly from 1
    to A in the first half period and falls back to 1 in the second; the other classes keep raw weight 1. Then
    Γ_i = C · raw_i / Σ_j raw_j, so that Σ_i Γ_i = C, and all Γ_i = 1 at every border between periods
    (Ruiz-Garcia et al. 2021, arXiv 2102.03793).

    Parameters
    ----------
    n_classes : int
        Number of classes C ≥ 2.
    amplitude : float
        Largest raw weight A ≥ 1; A = 1 is the static loss.
    period : int
        Length T ≥ 2 of one period in steps; a whole cycle over the classes lasts C·T steps.

    Examples
    --------
    >>> schedule = TriangleSchedule(n_classes=3, amplitude=70, period=5000)
    >>> schedule(2500)
    tensor([2.9167, 0.0417, 0.0417], dtype=torch.float64)
    >>> schedule([0, 5000, 7500]).shape
    torch.Size([3, 3])
    """

    n_classes: int
    amplitude: float
    period: int

    def __post_init__(self):
        if self.n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {self.n_classes}")
        if not 1 <= self.amplitude < float("inf"):
            raise ValueError(
                f"amplitude must be a finite number of at least 1 (1 is the static loss), got {self.amplitude}"
            )
        if self.period < 2:
            raise ValueError(f"period must be at least 2 steps, got {self.period}")

    def __call__(self, step) -> torch.Tensor:
        """Γ at `step`, an int or an array-like of ints (…); shape (…, class), float64."""
        # In numpy, as a call for one step stands in every training loop and torch would take ten times as long.
        step = np.asarray(step, dtype=np.float64)
        position = step % self.period
        peak = 1 + (self.amplitude - 1) * (2 / self.period) * np.minimum(position, self.period - position)
        emphasised = (step // self.period) % self.n_classes
        raw = np.where(emphasised[..., None] == np.arange(self.n_classes), peak[..., None], 1.0)
        return torch.from_numpy(self.n_classes * raw / raw.sum(-1, keepdims=True))
