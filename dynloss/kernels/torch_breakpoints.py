"""Rows of a plane of the one-hidden-layer network, by the breakpoints of its ReLUs: for many points on the CPU.

Along β the pre-activation s + β d of a hidden unit at a sample passes zero once, at β = −s/d. Where it is positive it
adds (u_0 + β u_2)(s + β d) to an output, a parabola in β. Each unit puts the three coefficients into the bucket of the
first point of the grid behind its breakpoint, and running sums over the buckets are the parabolas of all active units.
A row costs one pass over the units and one over the points, where point by point each of them costs a pass over the
units.
"""

from __future__ import annotations

import torch

UNITS_AT_ONCE = 2**15
"""Hidden activations taken together: a few arrays of so many numbers stay in the processor's cache."""

SMALLEST = 1e-300
"""A rate below it counts as it: the sign of s alone then says whether the unit is active."""


class Row:
    """Outputs, less their bias, along β, as functions of α.

    Parameters
    ----------
    layers : tuple of torch.Tensor, float64
        W̃ x̃ (3, h, P) and U (3, c, h), of the centre and of the two directions.
    beta : torch.Tensor, shape (b,), float64
        Increasing.
    rounding : float
        Relative rounding error of the numbers in `beta`.
    """

    def __init__(self, layers: tuple[torch.Tensor, torch.Tensor], beta: torch.Tensor, rounding: float):
        self.hidden, self.output = layers
        self.beta = beta[:, None]
        self.spacing = (beta[-1] - beta[0]) / (len(beta) - 1)
        even = torch.addcmul(beta[0], self.spacing, torch.arange(len(beta)).to(beta))
        self.is_even = bool((even - beta).abs().max() <= 4 * rounding * beta.abs().max())
        rates = self.hidden[2]
        rates = torch.where(rates.abs() < SMALLEST, SMALLEST, rates)
        falling = (rates < 0).to(rates)  # active up to the breakpoint, where others begin
        self.falling, self.sign, self.inverse = falling, 1 - 2 * falling, -1 / rates
        self.sample = torch.arange(rates.shape[1])
        self.units_at_once = max(1, UNITS_AT_ONCE // rates.shape[1])

    def outputs(self, alpha: torch.Tensor) -> torch.Tensor:
        """(b, c, P) at one α."""
        n_points, n_samples, n_outputs = len(self.beta), len(self.sample), self.output.shape[1]
        sums = self.hidden.new_zeros(n_outputs, 3, (n_points + 1) * n_samples)
        for start in range(0, self.hidden.shape[1], self.units_at_once):
            units = slice(start, start + self.units_at_once)
            s = torch.addcmul(self.hidden[0, units], alpha, self.hidden[1, units])
            d, sign, falling = self.hidden[2, units], self.sign[units], self.falling[units]
            place = (self._bucket(s * self.inverse[units]) * n_samples + self.sample).view(-1)
            u0, u2 = self.output[0, :, units] + alpha * self.output[1, :, units], self.output[2, :, units]
            for c in range(n_outputs):
                v0, v2 = u0[c, :, None], u2[c, :, None]
                for total, part in zip(sums[c], (v0 * s, torch.addcmul(v0 * d, v2, s), v2 * d), strict=True):
                    total[:n_samples] += (part * falling).sum(0)
                    total.scatter_add_(0, place, part.mul_(sign).view(-1))
        constant, linear, square = sums.view(n_outputs, 3, n_points + 1, n_samples)[:, :, :-1].cumsum(2).unbind(1)
        return torch.addcmul(constant, self.beta, torch.addcmul(linear, self.beta, square)).transpose(0, 1)

    def _bucket(self, breakpoints: torch.Tensor) -> torch.Tensor:
        """Number of the first point at or behind each breakpoint.

        One off where both are equal up to rounding does no harm: the unit is zero there, up to rounding.
        """
        if not self.is_even:
            return torch.searchsorted(self.beta[:, 0], breakpoints)
        return ((breakpoints - self.beta[0]) / self.spacing).ceil_().clamp_(0, len(self.beta)).to(torch.int64)
