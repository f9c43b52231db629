"""Products of the curvature matrices of many checkpoints with vectors, in the way that is the quickest."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from landscape.product_trial import Situation, batches_columns, choose, power_of_two
from landscape.product_ways import MATRICES, Linear, part

# glibc's malloc gives the memory of a large tensor back to the system as soon as it is free, and the page faults of the
# next one cost more than computing it: half of the time of a product of some MB. Once a block of this size has been
# freed (it is never touched), freed memory is kept, up to 64 MB. Elsewhere this does nothing.
torch.empty(2**25 - 2**16, dtype=torch.uint8)

COLUMNS_TOGETHER = 8  # columns that share a batched product, so that memory stays bounded


def refuse_unfit_vectors(vectors: torch.Tensor, params: torch.Tensor) -> None:
    """ValueError unless `vectors` end with n and, for stacked params (E, n), begin with E."""
    if vectors.shape[: params.ndim - 1] != params.shape[:-1] or vectors.shape[-1] != params.shape[-1]:
        raise ValueError(f"vectors {tuple(vectors.shape)} do not fit params {tuple(params.shape)}")


class CurvatureProduct:
    """The product of the curvature matrices at stacked params (E, n) with vectors (E, n) or (E, k, n).

    With one batch of samples, what a method keeps is kept; with several it is built anew for each batch in each
    product, so that memory stays that of one batch.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    matrix : {"hessian", "gauss_newton"}
        ∇²F, or Jᵀ (∂²F/∂o∂o) J with the Jacobian J of the outputs o.
    params : torch.Tensor
        (n,) or (E, n).
    steps : torch.Tensor
        The steps t of the rows, (E,).
    """

    def __init__(self, objective, matrix: str, params: torch.Tensor, steps: torch.Tensor):
        self.objective, self.params, self.steps = objective, params, steps
        self.points = params.detach().reshape(-1, objective.n_params)
        batches = objective._weighted_batches()
        self.first_batch = next(batches)
        streamed = next(batches, None) is not None
        n_rows, n_samples = len(self.points), len(self.first_batch[1])
        self.situation = Situation(matrix, power_of_two(n_rows), 1, power_of_two(n_samples), streamed, objective.dtype)
        self.way = choose(self)
        self.method = MATRICES[matrix][self.way.method]
        self.kept = None if streamed else list(self._linear_maps(self.first_batch))
        del self.first_batch

    def _linear_maps(self, batch) -> Iterator[tuple[slice, Linear]]:
        n_rows = len(self.points)
        together = min(self.way.rows or n_rows, n_rows)
        for start in range(0, n_rows, together):
            rows = slice(start, start + together)
            yield rows, self.method(*part(self.objective, self.points[rows], self.steps[rows], batch))

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Products with vectors (E, n) or (E, k, n), for params (n,) also (n,); of the shape of `vectors`."""
        refuse_unfit_vectors(vectors, self.params)
        columns = vectors.reshape(len(self.points), -1, self.objective.n_params)
        if self.kept is not None:
            parts = [self._columns(linear, columns[rows]) for rows, linear in self.kept]
            total = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            total = torch.zeros_like(columns)
            for batch in self.objective._weighted_batches():
                for rows, linear in self._linear_maps(batch):
                    total[rows] += self._columns(linear, columns[rows])
        if self.objective.weight_decay:
            total = total + self.objective.weight_decay * columns
        return total.reshape(vectors.shape)

    def _columns(self, linear: Linear, vectors: torch.Tensor) -> torch.Tensor:
        """Products with vectors (rows, k, n) of the matrices of some rows."""
        columns = vectors[0] if len(vectors) == 1 else vectors.transpose(0, 1)  # (k, n), or (k, rows, n)
        if len(columns) == 1:
            return linear.one(columns[0]).reshape(vectors.shape)
        if batches_columns(self, linear, columns):
            products = torch.cat([linear.many(some) for some in columns.split(COLUMNS_TOGETHER)])
        else:
            products = torch.stack([linear.one(column) for column in columns])
        return products[None] if len(vectors) == 1 else products.transpose(0, 1)
