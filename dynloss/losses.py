"""Losses that are sums of class terms, F(θ, t) = Σ_i Γ_i(t) F_i(θ), with static or oscillating class weights."""

from __future__ import annotations

import torch

from dynloss.schedules import Schedule, TriangleSchedule, build


class ClassWeightedLoss:
    """A loss linear in its class weights: called as ``loss(outputs, targets, step)`` it gives Σ_i Γ_i(step) F_i.

    Subclasses define `terms`. Static losses have no `schedule`: all Γ_i = 1.
    """

    name: str
    schedule: Schedule | None = None

    def __init__(self, n_classes: int):
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        self.n_classes = n_classes

    @property
    def amplitude(self) -> float | None:
        """Largest raw class weight A; None for a static loss."""
        return self.schedule and self.schedule.amplitude

    @property
    def period(self) -> int | None:
        """Steps T during which one class is emphasised; None for a static loss."""
        return self.schedule and self.schedule.period

    def class_weights(self, step) -> torch.Tensor:
        """Γ(step), shape (class,), float64; an array of steps (…) gives (…, class)."""
        if self.schedule is None:
            return torch.ones(*torch.as_tensor(step).shape, self.n_classes, dtype=torch.float64)
        return self.schedule(step)

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Class losses F_i, shape (class,): outputs (P, class), integer targets (P,)."""
        raise NotImplementedError

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
        """The loss at `step`, a scalar."""
        terms = self.terms(outputs, targets)
        return self.class_weights(step).to(terms) @ terms

    def config(self) -> dict:
        """What is needed to build this loss again, as JSON-ready values; a name alone for subclasses of others."""
        if LOSSES.get(self.name) is not type(self):
            return {"name": type(self).__name__}
        schedule = {} if self.schedule is None else {"schedule": self.schedule.config()}
        return {"name": self.name, "n_classes": self.n_classes, **schedule}

    def _oscillate(self, amplitude: float | None, period: int | None, schedule: Schedule | None) -> None:
        if schedule is None:
            if amplitude is None or period is None:
                raise ValueError("a dynamical loss needs an amplitude and a period, or a schedule")
            schedule = TriangleSchedule(self.n_classes, amplitude, period)
        elif amplitude is not None or period is not None:
            raise ValueError("give a dynamical loss either an amplitude and a period, or a schedule")
        if not isinstance(schedule, Schedule):
            raise ValueError(
                "schedule must be a Schedule; dynloss.FunctionSchedule(function, n_classes) makes one of a function"
            )
        if schedule.n_classes != self.n_classes:
            raise ValueError(f"the schedule is of {schedule.n_classes} classes, the loss of {self.n_classes}")
        self.schedule = schedule


class CrossEntropy(ClassWeightedLoss):
    """Static cross entropy, F = −(1/P) Σ_j log softmax(z_j)_{y_j}.

    Parameters
    ----------
    n_classes : int
        Number of classes, 3 where the outputs are (P, 3).

    Examples
    --------
    >>> loss = CrossEntropy(n_classes=3)
    >>> loss(torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), step=0)
    tensor(1.0986)
    """

    name = "cross_entropy"

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Class losses F_i = −(1/P) Σ_{j: y_j = i} log softmax(z_j)_i, shape (class,)."""
        check_shapes(outputs, targets, self.n_classes)
        log_p = torch.log_softmax(outputs, dim=-1)
        return -(one_hot(targets, log_p) * log_p).sum(0) / len(targets)


class DynamicalCrossEntropy(CrossEntropy):
    """Cross entropy whose class weights oscillate, F = −(1/P) Σ_j Γ_{y_j}(t) log softmax(z_j)_{y_j}.

    The loss of Ruiz-Garcia et al. 2021 (arXiv 2102.03793).

    Parameters
    ----------
    n_classes : int
        Number of classes C.
    amplitude : float
        Largest raw class weight A ≥ 1; with A = 1 this is `CrossEntropy`.
    period : int
        Steps T ≥ 2 during which one class is emphasised.
    schedule : Schedule, optional
        Γ(t) instead of `dynloss.schedules.TriangleSchedule` of that amplitude and period.

    Examples
    --------
    >>> loss = DynamicalCrossEntropy(n_classes=3, amplitude=70, period=5000)
    >>> loss.class_weights(5000)
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    name = "dynamical_cross_entropy"

    def __init__(
        self,
        n_classes: int,
        amplitude: float | None = None,
        period: int | None = None,
        *,
        schedule: Schedule | None = None,
    ):
        super().__init__(n_classes)
        self._oscillate(amplitude, period, schedule)


class SquaredError(ClassWeightedLoss):
    """Static squared error of the outputs against one-hot targets, F = (1/P) Σ_j ‖z_j − e_j‖².

    Parameters
    ----------
    n_classes : int
        Number of classes, 3 where the outputs are (P, 3).
    weighting : {"sample", "component"}
        What the class terms F_i are: the samples of class i, or the output i of all samples. The loss is the same.

    Examples
    --------
    >>> SquaredError(n_classes=2)(torch.tensor([[0.5, 0.5]]), torch.tensor([1]), step=0)
    tensor(0.5000)
    """

    name = "squared_error"

    def __init__(self, n_classes: int, *, weighting: str = "sample"):
        super().__init__(n_classes)
        if weighting not in ("sample", "component"):
            raise ValueError(f'weighting must be "sample" or "component", got {weighting!r}')
        self.weighting = weighting

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Class losses F_i, shape (class,): (1/P) Σ_{j: y_j = i} ‖z_j − e_j‖², or (1/P) Σ_j (z_ji − e_ji)²."""
        check_shapes(outputs, targets, self.n_classes)
        classes = one_hot(targets, outputs)
        squares = (outputs - classes) ** 2
        by_class = squares.sum(1) @ classes if self.weighting == "sample" else squares.sum(0)
        return by_class / len(targets)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
        """The loss at `step`, a scalar."""
        check_shapes(outputs, targets, self.n_classes)
        squares = (outputs - one_hot(targets, outputs)) ** 2
        # Each entry is weighted on its own, so that weights of 1 give the same bits for both weightings.
        weights = self.class_weights(step).to(outputs)
        weights = weights[targets.long(), None] if self.weighting == "sample" else weights
        return (weights * squares).sum() / len(targets)

    def config(self) -> dict:
        """What is needed to build this loss again, as JSON-ready values."""
        return super().config() | {"weighting": self.weighting}


class DynamicalSquaredError(SquaredError):
    """Squared error whose class weights oscillate.

    F = (1/P) Σ_j Γ_{y_j}(t) ‖z_j − e_j‖² with weighting "sample" (DMSE1), and (1/P) Σ_j Σ_i Γ_i(t) (z_ji − e_ji)² with
    "component" (DMSE2); both of Lavin Pallero and Ruiz-Garcia 2025 (arXiv 2410.10690).

    Parameters
    ----------
    n_classes : int
        Number of classes C.
    amplitude : float
        Largest raw class weight A ≥ 1; with A = 1 this is `SquaredError`.
    period : int
        Steps T ≥ 2 during which one class is emphasised.
    weighting : {"sample", "component"}
        Whether Γ weighs the samples by their class, or the outputs.
    schedule : Schedule, optional
        Γ(t) instead of `dynloss.schedules.TriangleSchedule` of that amplitude and period.
    """

    name = "dynamical_squared_error"

    def __init__(
        self,
        n_classes: int,
        amplitude: float | None = None,
        period: int | None = None,
        *,
        weighting: str = "sample",
        schedule: Schedule | None = None,
    ):
        super().__init__(n_classes, weighting=weighting)
        self._oscillate(amplitude, period, schedule)


LOSSES = {cls.name: cls for cls in (CrossEntropy, DynamicalCrossEntropy, SquaredError, DynamicalSquaredError)}


def loss_from_config(config: dict) -> ClassWeightedLoss:
    """The loss that `ClassWeightedLoss.config` described; a triangle may also be given by amplitude and period.

    Raises
    ------
    ValueError
        If there is no such loss or schedule, or options do not fit.
    """
    return build("loss", "losses", LOSSES, config)


def named_loss(
    name: str,
    n_classes: int,
    *,
    weighting: str = "sample",
    schedule: str = "triangle",
    amplitude: float,
    period: int,
    order: str = "cyclic",
    static_from: int | None = None,
) -> ClassWeightedLoss:
    """The loss of that name from settings of which those that do not matter for it are left out.

    Parameters
    ----------
    name : str
        One of `LOSSES`.
    n_classes : int
        Number of classes.
    weighting : str
        Of squared errors.
    schedule, amplitude, period, order
        Of dynamical losses.
    static_from : int, optional
        Step from which on a dynamical loss is static.

    Raises
    ------
    ValueError
        As `loss_from_config`.
    """
    config: dict = {"name": name, "n_classes": n_classes}
    if name.endswith("squared_error"):
        config["weighting"] = weighting
    if name.startswith("dynamical"):
        options = {"amplitude": amplitude, "period": period, "order": order}
        config["schedule"] = {"name": schedule, "n_classes": n_classes, **options}
        if static_from is not None:
            config["schedule"] = {"name": "static_tail", "start": static_from, "schedule": config["schedule"]}
    return loss_from_config(config)


def one_hot(targets: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Targets (P,) as rows of 0 and 1, of the shape and type of `like` (P, class)."""
    n_classes = like.shape[-1]
    try:
        return torch.nn.functional.one_hot(targets.long(), n_classes).to(like)
    except RuntimeError:
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest >= 0 and highest < n_classes:
            raise
        raise ValueError(f"targets must be classes 0 … {n_classes - 1}, got {lowest} to {highest}") from None


def check_shapes(outputs: torch.Tensor, targets: torch.Tensor, n_classes: int) -> None:
    """Raise ValueError unless outputs are (P, n_classes) and targets integers (P,)."""
    if outputs.ndim != 2 or outputs.shape[1] != n_classes:
        raise ValueError(f"outputs must have shape (n_samples, {n_classes}), got {tuple(outputs.shape)}")
    if targets.shape != outputs.shape[:1]:
        raise ValueError(f"targets must have shape ({outputs.shape[0]},), got {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"targets must be class numbers of an integer type, got {targets.dtype}")
