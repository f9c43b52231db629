"""Losses that are sums of class terms, F(θ, t) = Σ_i Γ_i(t) F_i(θ), with static or oscillating class weights."""

from __future__ import annotations

import torch

from dynloss.schedules import TriangleSchedule


class ClassWeightedLoss:
    """A loss linear in its class weights: called as ``loss(outputs, targets, step)`` it gives Σ_i Γ_i(step) F_i.

    Subclasses define `terms`. `period` and `amplitude` are None for static losses.
    """

    name: str
    n_classes: int | None = None
    amplitude: float | None = None
    period: int | None = None

    def class_weights(self, step) -> torch.Tensor:
        """Γ(step), shape (class,), float64; an array of steps (…) gives (…, class)."""
        raise NotImplementedError

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
        return {"name": self.name, "n_classes": self.n_classes, "amplitude": self.amplitude, "period": self.period}


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

    def __init__(self, n_classes: int):
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        self.n_classes = n_classes

    def class_weights(self, step) -> torch.Tensor:
        """Ones: every class counts alike at every step."""
        return torch.ones(*torch.as_tensor(step).shape, self.n_classes, dtype=torch.float64)

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Class losses F_i = −(1/P) Σ_{j: y_j = i} log softmax(z_j)_i, shape (class,)."""
        check_shapes(outputs, targets, self.n_classes)
        log_p = torch.log_softmax(outputs, dim=-1)
        one_hot = torch.nn.functional.one_hot(targets.long(), self.n_classes).to(log_p)
        return -(one_hot * log_p).sum(0) / len(targets)


class DynamicalCrossEntropy(CrossEntropy):
    """Cross entropy whose class weights oscillate, F = −(1/P) Σ_j Γ_{y_j}(t) log softmax(z_j)_{y_j}.

    See `dynloss.schedules.TriangleSchedule` for Γ; the loss is that of Ruiz-Garcia et al. 2021 (arXiv 2102.03793).

    Parameters
    ----------
    n_classes : int
        Number of classes C.
    amplitude : float
        Largest raw class weight A ≥ 1; with A = 1 this is `CrossEntropy`.
    period : int
        Steps T ≥ 2 during which one class is emphasised.

    Examples
    --------
    >>> loss = DynamicalCrossEntropy(n_classes=3, amplitude=70, period=5000)
    >>> loss.class_weights(5000)
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    name = "dynamical_cross_entropy"

    def __init__(self, n_classes: int, amplitude: float, period: int):
        super().__init__(n_classes)
        self.amplitude, self.period = amplitude, period
        self.schedule = TriangleSchedule(n_classes, amplitude, period)

    def class_weights(self, step) -> torch.Tensor:
        """Γ(step), shape (class,), float64; an array of steps (…) gives (…, class)."""
        return self.schedule(step)


LOSSES = {cls.name: cls for cls in (CrossEntropy, DynamicalCrossEntropy)}


def loss_from_config(config: dict) -> ClassWeightedLoss:
    """The loss that `ClassWeightedLoss.config` described."""
    options = {key: value for key, value in config.items() if key != "name" and value is not None}
    if config.get("name") not in LOSSES:
        raise ValueError(f"unknown loss {config.get('name')!r}; known losses: {', '.join(LOSSES)}")
    return LOSSES[config["name"]](**options)


def check_shapes(outputs: torch.Tensor, targets: torch.Tensor, n_classes: int) -> None:
    """Raise ValueError unless outputs are (P, n_classes) and targets integers (P,)."""
    if outputs.ndim != 2 or outputs.shape[1] != n_classes:
        raise ValueError(f"outputs must have shape (n_samples, {n_classes}), got {tuple(outputs.shape)}")
    if targets.shape != outputs.shape[:1]:
        raise ValueError(f"targets must have shape ({outputs.shape[0]},), got {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"targets must be class numbers of an integer type, got {targets.dtype}")
