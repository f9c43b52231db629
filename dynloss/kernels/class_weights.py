"""Class weights at single steps, evaluated for a block of steps at a time: one by one they cost as much as a step."""

from __future__ import annotations

import numpy as np

from dynloss.losses import ClassWeightedLoss
from dynloss.schedules import SCHEDULES

BLOCK = 64


class ClassWeights:
    """Γ of `loss` at one step. Losses and schedules of one's own are asked at that step only, and each time anew."""

    def __init__(self, loss, dtype: np.dtype):
        self.loss, self.dtype = loss, dtype
        self._kept = (None, None, None)  # number of the block, its schedule and weights; replaced as one, for threads

    def at(self, step: int) -> np.ndarray:
        """Γ(step), shape (1, class)."""
        if not _is_known(self.loss):
            return np.asarray(self.loss.class_weights(step), dtype=self.dtype)[None]
        number, schedule, weights = self._kept
        if number != step // BLOCK or schedule is not self.loss.schedule:
            number, schedule = step // BLOCK, self.loss.schedule
            steps = np.arange(BLOCK * number, BLOCK * (number + 1))
            weights = self.loss.class_weights(steps).numpy().astype(self.dtype)
            self._kept = number, schedule, weights
        row = step - BLOCK * number
        return weights[row : row + 1]


def _is_known(loss) -> bool:
    """Whether the weights are given by the step alone, and at every step."""
    schedule = getattr(loss, "schedule", None)
    while hasattr(schedule, "schedule"):
        schedule = schedule.schedule
    known = schedule is None or SCHEDULES.get(schedule.name) is type(schedule)
    own = getattr(loss.class_weights, "__func__", None)
    return known and own is ClassWeightedLoss.class_weights
