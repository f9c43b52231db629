"""Class weights Γ_i(t): how the emphasis on the classes changes while training goes on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import torch


class Schedule:
    """Raw class weights over the steps, normalised so that Σ_i Γ_i = C: Γ_i = C · raw_i / Σ_j raw_j.

    Subclasses define `raw`. Called with a step, an int or an array-like of ints (…), a schedule gives Γ (…, class),
    float64. All Γ_i = 1 is the static loss.

    Attributes
    ----------
    n_classes : int
        Number of classes C.
    period, amplitude : int, float or None
        Steps for which one class is emphasised, and its largest raw weight, where the schedule has them.
    """

    name: ClassVar[str]
    n_classes: int
    period: int | None = None
    amplitude: float | None = None

    def raw(self, step: np.ndarray) -> np.ndarray:
        """Raw weights (…, class), positive, at the steps (…), float64."""
        raise NotImplementedError

    def __call__(self, step) -> torch.Tensor:
        """Γ at `step`, an int or an array-like of ints (…); shape (…, class), float64."""
        # In numpy, as a call for one step stands in every training loop and torch would take ten times as long.
        raw = self.raw(np.asarray(step, dtype=np.float64))
        return torch.from_numpy(self.n_classes * raw / raw.sum(-1, keepdims=True))

    def config(self) -> dict:
        """What is needed to build this schedule again, as JSON-ready values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class _PeriodicSchedule(Schedule):
    """One class after the other is emphasised for a period; its raw weight is 1 + (A − 1) · wave, the others' 1."""

    n_classes: int
    amplitude: float = field()  # without a default, though Schedule has None for both
    period: int = field()
    order: str = "cyclic"
    seed: int = 0

    def __post_init__(self):
        _check_classes(self.n_classes)
        if not 1 <= self.amplitude < float("inf"):
            raise ValueError(
                f"amplitude must be a finite number of at least 1 (1 is the static loss), got {self.amplitude}"
            )
        if self.period < 2:
            raise ValueError(f"period must be at least 2 steps, got {self.period}")
        if self.period != int(self.period):
            raise ValueError(f"period must be a whole number of steps, got {self.period}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.order not in ("cyclic", "random"):
            raise ValueError(f'order must be "cyclic" or "random", got {self.order!r}')

    def wave(self, position: np.ndarray) -> np.ndarray:
        """Height between 0 and 1 at `position` steps after the beginning of a period."""
        raise NotImplementedError

    def emphasised(self, step: np.ndarray) -> np.ndarray:
        """The class that is emphasised at each step."""
        number = step // self.period
        place = number % self.n_classes
        if self.order == "cyclic":
            return place
        cycles, inverse = np.unique(number // self.n_classes, return_inverse=True)
        orders = [np.random.default_rng([self.seed, int(cycle)]).permutation(self.n_classes) for cycle in cycles]
        return np.stack(orders)[inverse.reshape(step.shape), place.astype(int)]

    def raw(self, step: np.ndarray) -> np.ndarray:
        """Raw weights (…, class) at the steps (…)."""
        peak = 1 + (self.amplitude - 1) * self.wave(step % self.period)
        is_it = self.emphasised(step)[..., None] == np.arange(self.n_classes)
        return np.where(is_it, peak[..., None], 1.0)


class TriangleSchedule(_PeriodicSchedule):
    """Class weights that rise and fall linearly, one class after the other.

    In period p (steps pT … (p+1)T − 1, p from 0) class p mod C is emphasised: its raw weight rises linearly from 1
    to A in the first half period and falls back to 1 in the second; the other classes keep raw weight 1. All
    Γ_i = 1 at every border between periods (Ruiz-Garcia et al. 2021, arXiv 2102.03793).

    Parameters
    ----------
    n_classes : int
        Number of classes C ≥ 2.
    amplitude : float
        Largest raw weight A ≥ 1; A = 1 is the static loss.
    period : int
        Length T ≥ 2 of one period in steps; a whole cycle over the classes lasts C·T steps.
    order : {"cyclic", "random"}
        Classes in turn, or in a new random order in each cycle, in which every class has one period.
    seed : int
        Seed of the random order.

    Examples
    --------
    >>> schedule = TriangleSchedule(n_classes=3, amplitude=70, period=5000)
    >>> schedule(2500)
    tensor([2.9167, 0.0417, 0.0417], dtype=torch.float64)
    >>> schedule([0, 5000, 7500]).shape
    torch.Size([3, 3])
    """

    name = "triangle"

    def wave(self, position: np.ndarray) -> np.ndarray:
        """Height between 0 and 1 at `position` steps after the beginning of a period."""
        return (2 / self.period) * np.minimum(position, self.period - position)


class SineSchedule(_PeriodicSchedule):
    """As `TriangleSchedule`, with the smooth wave sin²(πt/T): 1 at the borders, A in the middle of a period."""

    name = "sine"

    def wave(self, position: np.ndarray) -> np.ndarray:
        """Height between 0 and 1 at `position` steps after the beginning of a period."""
        return np.sin(np.pi * position / self.period) ** 2


class SquareSchedule(_PeriodicSchedule):
    """As `TriangleSchedule`, with a jump to A for the middle half of each period, and 1 in its outer quarters."""

    name = "square"

    def wave(self, position: np.ndarray) -> np.ndarray:
        """Height between 0 and 1 at `position` steps after the beginning of a period."""
        return ((4 * position >= self.period) & (4 * position < 3 * self.period)).astype(float)


@dataclass(frozen=True)
class _Changed(Schedule):
    """Another schedule with its raw weights changed."""

    schedule: Schedule

    @property
    def n_classes(self) -> int:
        """Number of classes of the schedule that is changed."""
        return self.schedule.n_classes

    @property
    def period(self) -> int | None:
        """Period of the schedule that is changed."""
        return self.schedule.period

    @property
    def amplitude(self) -> float | None:
        """Amplitude of the schedule that is changed."""
        return self.schedule.amplitude

    def config(self) -> dict:
        """What is needed to build this schedule again, as JSON-ready values."""
        return super().config() | {"schedule": self.schedule.config()}


@dataclass(frozen=True)
class StaticTail(_Changed):
    """A schedule that ends: from step `start` on all Γ_i = 1.

    Examples
    --------
    >>> schedule = StaticTail(TriangleSchedule(3, amplitude=70, period=10), start=20)
    >>> schedule([15, 20, 25])[:, 1]
    tensor([2.9167, 1.0000, 1.0000], dtype=torch.float64)
    """

    name = "static_tail"
    start: int

    def __post_init__(self):
        if self.start < 0:
            raise ValueError(f"start must be a step of at least 0, got {self.start}")

    def raw(self, step: np.ndarray) -> np.ndarray:
        """Raw weights (…, class) at the steps (…)."""
        return np.where((step < self.start)[..., None], self.schedule.raw(step), 1.0)


@dataclass(frozen=True)
class DecayingAmplitude(_Changed):
    """A schedule whose excess over 1 decays: raw weights 1 + (raw − 1) · exp(−t / time)."""

    name = "decaying_amplitude"
    time: float

    def __post_init__(self):
        if not 0 < self.time < math.inf:
            raise ValueError(f"time must be a positive number of steps, got {self.time}")

    def raw(self, step: np.ndarray) -> np.ndarray:
        """Raw weights (…, class) at the steps (…)."""
        return 1 + (self.schedule.raw(step) - 1) * np.exp(-step / self.time)[..., None]


class FunctionSchedule(Schedule):
    """A schedule of one's own: `function` of the steps (…), float64, gives positive raw weights (…, class).

    Examples
    --------
    >>> schedule = FunctionSchedule(lambda step: np.stack([1 + step, 1 + 0 * step], axis=-1), n_classes=2)
    >>> schedule(2)
    tensor([1.5000, 0.5000], dtype=torch.float64)
    """

    name = "function"

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], n_classes: int, *, period: int | None = None):
        _check_classes(n_classes)
        self.function, self.n_classes, self.period = function, n_classes, period

    def raw(self, step: np.ndarray) -> np.ndarray:
        """Raw weights (…, class) at the steps (…)."""
        raw = np.asarray(self.function(step), dtype=np.float64)
        if raw.shape != (*step.shape, self.n_classes):
            raise ValueError(f"function must give weights {(*step.shape, self.n_classes)}, got shape {raw.shape}")
        if not (np.isfinite(raw).all() and (raw > 0).all()):
            raise ValueError("function must give weights that are positive and finite")
        return raw

    def config(self) -> dict:
        """The name alone: a function cannot be stored, and must be given again."""
        return {"name": self.name, "n_classes": self.n_classes, "period": self.period}


SCHEDULES = {cls.name: cls for cls in (TriangleSchedule, SineSchedule, SquareSchedule, StaticTail, DecayingAmplitude)}


def schedule_from_config(config: dict) -> Schedule:
    """The schedule that `Schedule.config` described.

    Raises
    ------
    ValueError
        If there is no such schedule, it was a function, or its options are others.
    """
    if config.get("name") == FunctionSchedule.name:
        raise ValueError("the schedule was a function, which a file cannot hold; give the loss again: loss=…")
    return build("schedule", "schedules", SCHEDULES, config)


def build(kind: str, plural: str, classes: dict[str, type], config: dict):
    """The object of one of `classes`, by name, that `config` describes; a schedule among its options is built, too.

    Raises
    ------
    ValueError
        If there is no such name, or the options are others; `kind` and `plural` say of what.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name not in classes:
        raise ValueError(f"unknown {kind} {name!r}; known {plural}: {', '.join(classes)}")
    if "schedule" in options:
        options["schedule"] = schedule_from_config(options["schedule"])
    try:
        inspect.signature(classes[name]).bind(**options)
    except TypeError as error:
        raise ValueError(f"{kind} {name}: {error}") from None
    return classes[name](**options)


def _check_classes(n_classes: int) -> None:
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}")
