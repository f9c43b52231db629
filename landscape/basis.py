"""Orthonormal bases for several operators at once, each with its operator's products and projection."""

from __future__ import annotations

import numpy as np
import torch

GRAM_ENTRIES = 2**18
"""Entries of θ whose part of a Gram matrix is computed at a time."""


class Batch:
    """Orthonormal vectors q_j, their products A q_j, and T_ij = ⟨q_i, A q_j⟩ of several operators, equally many each.

    Attributes
    ----------
    vectors, products : torch.Tensor
        (E, capacity so far, n); the first `size` are filled.
    T : numpy.ndarray
        (E, capacity, capacity), in double precision.
    scale : numpy.ndarray
        (E,), the largest |T_ij|: a lower bound of the operators' norms.
    """

    def __init__(self, n_rows: int, like: torch.Tensor, capacity: int):
        self.capacity, self.size = capacity, 0
        self.T, self.scale = np.zeros((n_rows, capacity, capacity)), np.zeros(n_rows)
        self.vectors = like.new_empty((n_rows, min(capacity, 32), like.shape[-1]))
        self.products = torch.empty_like(self.vectors)

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows."""
        if len(rows) < len(self.T):
            self.T, self.scale = self.T[rows], self.scale[rows]
            self.vectors, self.products = self.vectors[rows], self.products[rows]

    def extend(self, vectors: torch.Tensor, products: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """Add a unit vector (E, n) and its product to each; what of the product lies outside, as unit vector and norm.

        Where nothing lies outside that direction is rounding.
        """
        m = self.size
        if m == self.vectors.shape[1]:
            capacity = min(2 * m, self.capacity)
            self.vectors = _with_room(self.vectors, capacity)  # one after the other, as both at once take twice as much
            self.products = _with_room(self.products, capacity)
        self.vectors[:, m], self.products[:, m] = vectors, products
        self.size = m + 1
        outside, column = orthogonalise(products, self.vectors[:, : m + 1])
        column = column.double().cpu().numpy()
        self.T[:, : m + 1, m] = self.T[:, m, : m + 1] = column
        self.scale = np.maximum(self.scale, np.abs(column).max(axis=1))
        norms = torch.linalg.vector_norm(outside, dim=-1)
        outside /= norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
        return outside, norms.double().cpu().numpy()


def _with_room(vectors: torch.Tensor, capacity: int) -> torch.Tensor:
    """`vectors` (E, m, n) as the first of (E, capacity, n); what is not written takes no memory of a CPU."""
    larger = vectors.new_empty((len(vectors), capacity, vectors.shape[-1]))
    larger[:, : vectors.shape[1]] = vectors
    return larger


def orthogonalise(vectors: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of `vectors` (E, n) outside the span of `basis` (E, m, n), and their coefficients inside (E, m)."""
    vectors, across = vectors[:, None], basis.mT
    coefficients = torch.bmm(vectors, across)
    vectors = torch.baddbmm(vectors, coefficients, basis, alpha=-1)
    second = torch.bmm(vectors, across)  # one pass loses orthogonality where most lies inside; two do not
    vectors = torch.baddbmm(vectors, second, basis, alpha=-1)
    return vectors[:, 0], (coefficients + second)[:, 0]


class Basis:
    """The row of a `Batch` that belongs to one operator."""

    def __init__(self, batch: Batch, row: int, rng: np.random.Generator):
        self.batch, self.row, self.rng = batch, row, rng
        self.n = batch.vectors.shape[-1]
        self.rounding = 8 * self.n**0.5 * torch.finfo(batch.vectors.dtype).eps

    @property
    def size(self) -> int:
        """Number m of vectors, and of products made."""
        return self.batch.size

    @property
    def room(self) -> int:
        """How many vectors may still join."""
        return self.batch.capacity - self.batch.size

    @property
    def T(self) -> np.ndarray:
        """VᵀAV (m, m)."""
        return self.batch.T[self.row, : self.size, : self.size]

    @property
    def vectors(self) -> torch.Tensor:
        """V as rows (m, n)."""
        return self.batch.vectors[self.row, : self.size]

    @property
    def products(self) -> torch.Tensor:
        """AV as rows (m, n)."""
        return self.batch.products[self.row, : self.size]

    def random_vector(self) -> torch.Tensor:
        """A unit vector of uniform direction in the complement of the basis."""
        vector = torch.from_numpy(self.rng.standard_normal(self.n)).to(self.batch.vectors)
        # The complement of an almost full basis leaves little of the draw: once more restores orthogonality.
        return self.outside(self.outside(vector))

    def outside(self, vector: torch.Tensor) -> torch.Tensor:
        """The unit vector along the part of `vector` outside the basis."""
        if self.size:
            vector = orthogonalise(vector[None], self.vectors[None])[0][0]
        return vector / vector.norm()

    def noise(self) -> float:
        """Norm below which what is left of a product is rounding."""
        return self.rounding * self.batch.scale[self.row]

    def gram(self, m: int) -> np.ndarray:
        """RᵀR (m, m) of R = AV − VT for the first m vectors."""
        V, products, T = self.vectors[:m], self.products[:m], self.like(self.T[:m, :m])
        total = torch.zeros(m, m, dtype=torch.float64, device=V.device)
        # In pieces: R in double precision as a whole would take more memory than the basis.
        for piece, image in zip(V.split(GRAM_ENTRIES, 1), products.split(GRAM_ENTRIES, 1), strict=True):
            R = (image - T @ piece).double()
            total += R @ R.T
        return total.cpu().numpy()

    def like(self, array: np.ndarray) -> torch.Tensor:
        """`array` as a tensor of the type and device of the vectors."""
        return torch.from_numpy(np.array(array)).to(self.batch.vectors)
