"""What a training run consists of: one definition for `dynloss.train`, the command line and the run file."""

from __future__ import annotations

import operator
from dataclasses import dataclass

OPTIMIZERS = ("gd", "sgd", "momentum", "rmsprop", "adam")


@dataclass(frozen=True)
class TrainingSettings:
    """How a run is trained and what is recorded of it.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    """

    optimizer: str = "gd"
    """gd (all samples), sgd (mini-batches), momentum, rmsprop or adam (either)."""
    learning_rate: float = 1.0
    """Learning rate η."""
    n_steps: int = 10_000
    """Number of updates."""
    checkpoint_every: int = 25
    """Steps between saved checkpoints of θ."""
    eigenpairs: int = 0
    """Number k of top Hessian eigenpairs to record; 0 for none."""
    eigenpairs_every: int = 25
    """Steps between them; odd, as a two-cycle seen at every second step hides one of its states."""
    windows: tuple[tuple[int, int], ...] = ()
    """Ranges of steps, (first, one past the last), in which every step is saved, with its eigenpairs."""
    tol: float = 1e-4
    """Largest relative residual of the eigenpairs."""
    seed: int = 0
    """Seed of what is random while training: mini-batches, and the starts of the eigensolver."""
    batch_size: int | None = None
    """Samples in a mini-batch; none: all samples at once."""
    momentum: float = 0.9
    """β of momentum."""
    beta1: float = 0.9
    """β1 of adam."""
    beta2: float = 0.999
    """β2 of adam."""
    alpha: float = 0.99
    """α of rmsprop."""
    epsilon: float = 1e-8
    """ε of adam and rmsprop."""

    def __post_init__(self):
        for name in ("n_steps", "checkpoint_every", "eigenpairs", "eigenpairs_every", "seed"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", _whole("batch_size", self.batch_size))
        try:
            windows = tuple((operator.index(first), operator.index(stop)) for first, stop in self.windows)
        except (TypeError, ValueError):
            raise ValueError(f"windows must be pairs of steps (first, stop), got {self.windows!r}") from None
        object.__setattr__(self, "windows", windows)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known optimizers: {', '.join(OPTIMIZERS)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        for name in ("n_steps", "checkpoint_every", "eigenpairs_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.tol < float("inf"):
            raise ValueError(f"tol must be a positive number, got {self.tol}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.eigenpairs < 0:
            raise ValueError(f"eigenpairs must be 0 (none) or the number of pairs to record, got {self.eigenpairs}")
        if self.eigenpairs and self.eigenpairs_every % 2 == 0:
            raise ValueError(
                f"eigenpairs_every must be odd, got {self.eigenpairs_every}: where the motion alternates between two "
                "states, an even stride sees only one of them"
            )
        for name in ("momentum", "beta1", "beta2", "alpha"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be a positive number, got {self.epsilon}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for first, stop in self.windows:
            if not 0 <= first < stop:
                raise ValueError(f"a window is a range of steps (first, stop) with 0 ≤ first < stop, got {first, stop}")

    def optimizer_attrs(self) -> dict[str, float | str]:
        """The optimiser and its own settings, as `landscape.stability_threshold` reads them."""
        own = {"momentum": ("momentum",), "rmsprop": ("alpha", "epsilon"), "adam": ("beta1", "beta2", "epsilon")}
        names = ("optimizer", "learning_rate", *own.get(self.optimizer, ()))
        return {name: getattr(self, name) for name in names}

    def in_window(self, step: int) -> bool:
        """Whether every step around `step` is recorded in full."""
        return any(first <= step < stop for first, stop in self.windows)

    def saves_checkpoint(self, step: int) -> bool:
        """Whether θ is saved at `step`."""
        return step % self.checkpoint_every == 0 or step == self.n_steps or self.in_window(step)

    def saves_eigenpairs(self, step: int) -> bool:
        """Whether eigenpairs are recorded at `step`."""
        return self.eigenpairs > 0 and (step % self.eigenpairs_every == 0 or self.in_window(step))


def _whole(name: str, value) -> int:
    """`value`, of any integer type, as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
