"""Floquet multipliers of periodic orbits of the descent map: the eigenvalues by which small displacements grow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

DENSE = 32
"""Up to this size the matrix is built column by column."""


def fixed_point_multiplier(sharpness: float, threshold: float, attrs: Mapping) -> float:
    """Real part of the smallest multiplier of a fixed point: −1 where `sharpness` reaches `threshold`.

    A rule with momentum β multiplies a displacement along an eigenvector by the roots of μ² − (1 + β − x)μ + β, with
    x = 2(1 + β) · sharpness/threshold; without momentum that is μ = 1 − ηλ. For Adam β is β1. NaN for mini-batches.
    """
    if attrs["optimizer"] == "sgd":
        return math.nan
    beta = float((attrs.get("beta1", 0.9) if attrs["optimizer"] == "adam" else attrs.get("momentum")) or 0.0)
    b = 1 + beta - 2 * (1 + beta) * sharpness / threshold
    if beta == 0:  # the other root, 0, is of a state that does not exist
        return b
    discriminant = b * b - 4 * beta
    return (b - math.sqrt(discriminant)) / 2 if discriminant > 0 else b / 2


def orbit_multiplier(objective, states: xr.Dataset, attrs: Mapping) -> float:
    """Smallest real part of the multipliers of the orbit through consecutive `states`, by gd or momentum; else NaN."""
    if attrs["optimizer"] not in ("gd", "momentum"):
        return math.nan
    rate, beta = attrs["learning_rate"], float(attrs.get("momentum") or 0.0)
    products = [
        objective.linearize(params, step)
        for params, step in zip(states.params.values, states.step.values.tolist(), strict=True)
    ]
    n = objective.n_params

    def around(vector: np.ndarray) -> np.ndarray:
        """A displacement of θ, with momentum also that of the state before it, after one period."""
        moved = objective.as_vectors(vector.reshape(-1, n))
        now, before = moved[0], moved[-1]
        for product in products:
            now, before = now + beta * (now - before) - rate * product(now), now
        return (now if beta == 0 else torch.cat([now, before])).cpu().numpy().astype(float)

    size = n if beta == 0 else 2 * n
    if size <= DENSE:
        return float(np.linalg.eigvals(np.stack([around(column) for column in np.eye(size)], axis=1)).real.min())
    start = np.random.default_rng(0).standard_normal(size)
    operator = LinearOperator((size, size), matvec=around, dtype=float)
    try:
        return float(eigs(operator, 1, which="SR", v0=start, tol=1e-6, return_eigenvectors=False)[0].real)
    except ArpackNoConvergence:
        warnings.warn(f"the Floquet multiplier at step {int(states.step[0])} did not converge; it is NaN", stacklevel=4)
        return math.nan
