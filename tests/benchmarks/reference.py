"""Independent checks of eigenpairs: products by plain double backward, in float64, and scipy's eigsh.

Nothing here is imported from the packages that are compared, so that an error of theirs cannot excuse itself.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from solvers import Pairs
from workloads import Workload

TOLERANCE = 1e-3
"""Of the relative residual ‖Hv − λv‖/|λ| that is asked for."""

NEARBY = 1e-2
"""A pair is wrong if its eigenvalue is off by more than this share, …"""

OVERLAP = 0.9
"""… or if less than this length of its unit eigenvector lies in the span of those with eigenvalues as near as that."""


class Hessian:
    """The Hessian of the mean cross entropy at one checkpoint, as a product with vectors."""

    def __init__(self, workload: Workload, row: int, dtype: torch.dtype = torch.float64):
        model = workload.model_at(row, dtype)
        self.params = list(model.parameters())
        self.n = sum(p.numel() for p in self.params)
        loss = torch.nn.functional.cross_entropy(model(workload.inputs.to(dtype)), workload.targets)
        gradient = torch.autograd.grad(loss, self.params, create_graph=True)
        self.gradient = torch.cat([g.reshape(-1) for g in gradient])

    def __matmul__(self, vector) -> torch.Tensor:
        vector = torch.as_tensor(vector).to(self.gradient)
        product = torch.autograd.grad(self.gradient, self.params, vector, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in product]).double()

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k largest eigenvalues (k,), descending, and their eigenvectors (k, n)."""
        operator = LinearOperator((self.n, self.n), matvec=lambda v: (self @ v).numpy(), dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(self.n)
        values, vectors = eigsh(operator, k=k, which="LA", tol=1e-8, v0=start)
        order = np.argsort(values)[::-1]
        return values[order], vectors.T[order]


def relative_residuals(workload: Workload, row: int, pairs: Pairs, dtype: torch.dtype = torch.float64) -> list[float]:
    """‖Hv − λv‖/(|λ| ‖v‖) of each pair, with the product Hv in `dtype`."""
    hessian, residuals = Hessian(workload, row, dtype), []
    for value, vector in zip(pairs.values, pairs.vectors, strict=True):
        unit = _unit(vector)
        residuals.append(float((hessian @ unit - value * unit).norm() / abs(value)))
    return residuals


class Reference:
    """Eigenpairs of every checkpoint of a workload, each found when first asked for."""

    def __init__(self):
        self._found: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def n_wrong(self, workload: Workload, row: int, pairs: Pairs) -> int:
        """How many of `pairs` are not those of the largest eigenvalues, the i-th largest compared with the i-th."""
        # One reference serves both types: rounding parameters to float32 moves eigenvalues by less than 1e-6.
        key = workload.name, int(workload.checkpoints.step[row])
        if key not in self._found:
            self._found[key] = Hessian(workload, row).top(len(pairs.values) + 2)
        values, vectors = self._found[key]
        wrong = 0
        for i, j in enumerate(np.argsort(pairs.values)[::-1]):
            nearby = vectors[np.abs(values / values[i] - 1) <= NEARBY]
            overlap = np.linalg.norm(nearby @ _unit(pairs.vectors[j]).numpy())
            wrong += abs(pairs.values[j] / values[i] - 1) > NEARBY or overlap < OVERLAP
        return int(wrong)


def _unit(vector) -> torch.Tensor:
    vector = torch.as_tensor(vector, dtype=torch.float64)
    return vector / vector.norm()
