"""The spiral classification task: arms of points in the plane that only a nonlinear model separates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class ClassificationData(NamedTuple):
    """Samples and their classes."""

    inputs: torch.Tensor  # (P, n_inputs), float64
    targets: torch.Tensor  # (P,), int64


def spiral(n_per_class: int = 100, n_classes: int = 3, *, noise: float = 0.2, seed: int = 0) -> ClassificationData:
    """Points on `n_classes` spiral arms with noisy angles (the Swiss roll of Ruiz-Garcia et al. 2021).

    Arm j has radius r = linspace(0, 1, N) and angle linspace(2πj/C, 2πj/C + 4π, N) + noise · randn(N); its points are
    (r cos, r sin) with class j.

    Parameters
    ----------
    n_per_class : int
        Points N on each arm.
    n_classes : int
        Number of arms C.
    noise : float
        Standard deviation of the angles, in radians.
    seed : int
        Seed of the noise; another seed gives a validation set of the same task.

    Returns
    -------
    ClassificationData
        ``inputs`` (N·C, 2), float64, and ``targets`` (N·C,), int64, arm after arm.

    Examples
    --------
    >>> data = spiral(n_per_class=100, n_classes=3, seed=0)
    >>> data.inputs.shape, data.targets.bincount()
    (torch.Size([300, 2]), tensor([100, 100, 100]))
    """
    if n_per_class < 1 or n_classes < 2:
        raise ValueError(f"spiral needs n_per_class ≥ 1 and n_classes ≥ 2, got {n_per_class} and {n_classes}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a finite number of at least 0, got {noise}")
    rng = np.random.default_rng(seed)
    radius = np.linspace(0, 1, n_per_class)
    start = 2 * np.pi * np.arange(n_classes)[:, None] / n_classes
    angle = start + np.linspace(0, 4 * np.pi, n_per_class) + noise * rng.standard_normal((n_classes, n_per_class))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    targets = torch.arange(n_classes).repeat_interleave(n_per_class)
    return ClassificationData(torch.from_numpy(points.reshape(-1, 2)), targets)
