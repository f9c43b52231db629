"""What is evaluated at the points of a slice: the loss, the losses of the classes, and other quantities on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr

from landscape.lanczos import Settings, top_ritz_pairs
from landscape.objective import POINTS_PER_BATCH

EIGENVALUE = Settings(k=1, tol=1e-3, certify=False, accuracy=1e-3, failure=1e-6, max_products=300)


class Grid:
    """Points center + α d_0 (+ β d_1), evaluated a block of α at a time.

    Parameters
    ----------
    objective : landscape.Objective
        The loss.
    center : ndarray, shape (n,)
    unit : ndarray, shape (1, n) or (2, n)
        Orthonormal directions.
    axes : dict of str to ndarray
        ``alpha`` and, on a plane, ``beta``.
    step : int or ndarray of int
        Step, or steps, of the loss; with several, values have the dim step.
    terms : bool
        Whether the losses of the classes are kept.
    quantities : sequence of str
        Names in `QUANTITIES`.
    """

    def __init__(self, objective, center, unit, axes: dict[str, np.ndarray], step, terms: bool, quantities):
        self.objective, self.axes, self.step, self.terms = objective, axes, np.asarray(step), terms
        self.center, self.unit = objective.as_params(center), objective.as_params(unit)
        self.quantities = tuple(quantities)
        self.n_points = int(np.prod([len(axis) for axis in axes.values()]))
        if objective.has_terms:
            weights = [objective.class_weights(s).cpu().numpy() for s in self.step.ravel().tolist()]
            self.class_weights = self._of_steps(np.stack(weights), ("class",))

    def values(self, start: int, stop: int) -> dict[str, xr.Variable]:
        """All variables for the rows `start` to `stop` of alpha."""
        found = self.losses(start, stop)
        for name in self.quantities:
            function, label, by_step = QUANTITIES[name]
            steps = self.step.ravel().tolist()
            points = [self._points(start, stop, function, step) for step in (steps if by_step else steps[:1])]
            dims, attrs = tuple(self.axes), {"long_name": label}
            found[name] = (
                self._of_steps(np.stack(points), dims, attrs) if by_step else xr.Variable(dims, points[0], attrs)
            )
        return found

    def losses(self, start: int, stop: int) -> dict[str, xr.Variable]:
        """The loss and, where they are kept, those of the classes."""
        dims, attrs = tuple(self.axes), {"long_name": "Loss"}
        if not self.objective.has_terms:
            values = [self._evaluate(start, stop, step)[0] for step in self.step.ravel().tolist()]
            return {"loss": self._of_steps(np.stack(values), dims, attrs)}
        terms = self._evaluate(start, stop, int(self.step.flat[0]))  # the same at every step
        weights = self.class_weights.values.reshape(-1, len(terms))
        found = {"loss": self._of_steps(np.tensordot(weights, terms, 1), dims, attrs)}
        if self.terms:
            found["term_loss"] = xr.Variable(("class", *dims), terms, {"long_name": "Class loss"})
        return found

    def _of_steps(self, values: np.ndarray, dims: tuple[str, ...], attrs: dict | None = None) -> xr.Variable:
        """A variable of `values` (step, …), without that dim where there is one step only."""
        variable = xr.Variable(("step", *dims), values, attrs)
        return variable if self.step.ndim else variable.isel(step=0)

    def _evaluate(self, start: int, stop: int, step: int) -> np.ndarray:
        """Losses of the classes, or the loss as one of them, (class, alpha[, beta])."""
        block = self.axes["alpha"][start:stop]
        if "beta" in self.axes:
            values = self.objective.plane_losses(self.center, self.unit, block, self.axes["beta"], step)
            return values.cpu().numpy()
        # A plane of one row: closed forms are quick along their last axis.
        unit = torch.cat([torch.zeros_like(self.unit), self.unit])
        return self.objective.plane_losses(self.center, unit, np.zeros(1), block, step).cpu().numpy()[:, 0]

    def _points(self, start: int, stop: int, function: Callable, step: int) -> np.ndarray:
        """`function` of the points' parameters, (alpha[, beta])."""
        block = {**self.axes, "alpha": self.axes["alpha"][start:stop]}
        mesh = np.stack(np.meshgrid(*block.values(), indexing="ij"), -1)
        coordinates = torch.as_tensor(mesh.reshape(-1, len(block))).to(self.center)
        values = [
            function(self.objective, self.center + part @ self.unit, step)
            for part in coordinates.split(POINTS_PER_BATCH)
        ]
        return np.concatenate(values).reshape(mesh.shape[:-1])


def check_quantities(quantities: Sequence[str], objective, step: int) -> None:
    """ValueError where a quantity is unknown, or this objective has it not."""
    unknown = [name for name in quantities if name not in QUANTITIES]
    if isinstance(quantities, str) or unknown:
        raise ValueError(f"quantities must be a list of names out of {', '.join(QUANTITIES)}, got {quantities!r}")
    if "accuracy" in quantities:
        objective.at(step).accuracy(torch.zeros(objective.n_params))  # raises where the targets are no classes


def _accuracy(objective, params: torch.Tensor, step: int) -> np.ndarray:
    return objective.at(step).accuracy(params).cpu().numpy()


def _gradient_norm(objective, params: torch.Tensor, step: int) -> np.ndarray:
    return objective.gradient(params, step).norm(dim=-1).cpu().numpy()


def _eigenvalue(objective, params: torch.Tensor, step: int) -> np.ndarray:
    def linearize(rows: list[int]) -> Callable:
        return objective.linearize(params[rows], step)

    rngs = [np.random.default_rng(0) for _ in params]
    pairs = top_ritz_pairs(linearize, params, rngs, EIGENVALUE)
    return np.array([pair.values[0] if pair.converged[0] else np.nan for pair in pairs])


QUANTITIES: dict[str, tuple[Callable, str, bool]] = {
    "accuracy": (_accuracy, "Accuracy", False),
    "gradient_norm": (_gradient_norm, "Norm of the gradient", True),
    "eigenvalue": (_eigenvalue, "Largest eigenvalue of the Hessian", True),
}
"""Of each: the function (objective, params (E, n), step) → (E,), its label, and whether it depends on the step."""
