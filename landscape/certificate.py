"""The certificate that no eigenvalue above the k found is missing, copies of repeated ones included.

With an orthonormal basis V, T = VᵀAV, R = AV − VT, and μ ≥ the largest eigenvalue of A on the complement of V, the
number of eigenvalues of A above τ > μ is at most that of T + RᵀR/(τ − μ) (Schur complement and inertia). The bound μ
comes from a *probe*: Lanczos on the complement from a fresh Gaussian vector r. An eigenvector u of the complement with
an eigenvalue ≥ μ, above the probe's Ritz values, obeys |⟨r, u⟩|/‖r‖ ≤ κ(μ) = (Σ_j π_j(μ)²)^(−1/2) with the probe's
orthonormal polynomials π_j, which for a random direction in n dimensions has probability at most √(2n/π)·κ(μ).
"""

from __future__ import annotations

import numpy as np

BELOW = np.concatenate([np.linspace(1, 0.05, 20), [0.03, 0.01, 3e-3, 1e-3]])
"""Candidates μ below θ_k, as fractions of the spread of the Ritz values: the lower μ, the weaker what R must obey."""

INSIDE = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
"""Candidates from θ_k to the value at which a copy is missing, as fractions of the accuracy."""


class Probe:
    """What the coefficients of a Lanczos process on the complement of a basis say about the spectrum there.

    Parameters
    ----------
    values : numpy.ndarray
        Ritz values of the basis, largest first.
    k : int
        How many of them are to be certified.
    width : float
        A copy is missing where the complement has an eigenvalue ≥ θ_k + width.
    noise : float
        What of the coefficients may be rounding.

    Attributes
    ----------
    candidates : numpy.ndarray
        Values μ, in increasing order.
    above : numpy.ndarray
        Whether each lies above all Ritz values of the probe.
    log_total : numpy.ndarray
        log Σ_j π_j(μ)², so that κ(μ) = exp(−log_total/2).
    """

    def __init__(self, values: np.ndarray, k: int, width: float, noise: float):
        theta = values[k - 1]
        self.candidates = np.concatenate([theta - (theta - values[-1]) * BELOW, theta + width * INSIDE])
        self.noise = noise
        self.n_steps = 0
        # π_j(μ) = Π_i d_i/β_i with the pivots d_j = μ − α_j − β_{j−1}²/d_{j−1} of μ − (the tridiagonal block): all are
        # positive just where μ lies above its Ritz values. Logarithms, as the products overflow.
        self.above = np.ones(len(self.candidates), bool)
        self._pivot, self._coupling = np.full(len(self.candidates), np.inf), 0.0
        self._log_pi, self.log_total = np.zeros(len(self.candidates)), np.zeros(len(self.candidates))

    def step(self, alpha: float, beta: float) -> None:
        """Take the next diagonal and off-diagonal coefficient; `beta` 0 ends the process."""
        self.n_steps += 1
        self._pivot = self.candidates - self.noise - alpha - self._coupling / self._pivot
        self.above &= self._pivot > 0
        self._pivot = np.where(self.above, self._pivot, np.inf)
        if beta > 0:
            self._log_pi = self._log_pi + np.log(self._pivot / beta)
            self.log_total = np.logaddexp(self.log_total, 2 * self._log_pi)
        else:
            self.log_total = np.full(len(self.candidates), np.inf)
        self._coupling = beta**2

    @property
    def copy_missing(self) -> bool:
        """Whether a Ritz value of the complement reaches beyond the accuracy."""
        return not self.above[-1]

    def bound(self, limit: float) -> float | None:
        """The smallest candidate above the Ritz values with κ(μ) ≤ `limit`; None where there is none yet."""
        good = self.above & (self.log_total >= -2 * np.log(limit))
        good[-1] = False
        return float(self.candidates[good.argmax()]) if good.any() else None


def counts_hold(T: np.ndarray, gram: np.ndarray, mu: float, limits: np.ndarray) -> bool:
    """Whether A has at most i eigenvalues above the i-th of `limits` τ_i (from 0), if `mu` bounds its complement.

    `T` (m, m) is A in the basis, `gram` (m, m) RᵀR.
    """
    if not (limits > mu).all():
        return False
    inflated = np.linalg.eigvalsh(T + gram / (limits - mu)[:, None, None])
    return bool(((inflated > limits[:, None]).sum(axis=1) <= np.arange(len(limits))).all())
