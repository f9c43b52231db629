"""Traces of symmetric operators and of functions of them, from products with random vectors, for many at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from landscape.basis import orthogonalise

NOISE = 32
"""Norm in units of rounding, relative to that of A, below which a product has left nothing outside of its basis."""

Product = Callable[[torch.Tensor], torch.Tensor]
"""The product of E operators with k vectors each, (E, k, n) → the same shape."""


def quadratures(product: Product, starts: torch.Tensor, n_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss quadratures Σ_j w_j f(node_j) ≈ vᵀ f(A) v of unit vectors v, exact for degrees below 2 · n_steps.

    Lanczos with full reorthogonalisation; weights are squared first components of the eigenvectors of the tridiagonal
    matrix (Golub & Welsch 1969).

    Parameters
    ----------
    product : callable
        See `Product`.
    starts : torch.Tensor
        The vectors v (E, k, n).
    n_steps : int
        Lanczos steps, at most n.

    Returns
    -------
    tuple of numpy.ndarray
        Nodes in increasing order and weights (E, k, n_steps), and how many there are (E, k), as many as products made.
        Where the Krylov space of v is smaller than `n_steps` the rest is NaN and 0; where a product was not finite all
        is NaN.
    """
    diagonal, beside, sizes = _tridiagonal(product, starts, n_steps)
    nodes, weights = np.full(diagonal.shape, np.nan), np.zeros(diagonal.shape)
    for row, size in enumerate(sizes):
        if not np.isfinite([diagonal[row], beside[row]]).all():
            weights[row] = np.nan
            continue
        values, vectors = scipy.linalg.eigh_tridiagonal(diagonal[row, :size], beside[row, : size - 1])
        nodes[row, :size], weights[row, :size] = values, vectors[0] ** 2
    shape = starts.shape[:2]
    return nodes.reshape(*shape, n_steps), weights.reshape(*shape, n_steps), sizes.reshape(shape)


def _tridiagonal(product: Product, starts: torch.Tensor, n_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Diagonals and off-diagonals (E · k, n_steps) of VᵀAV, zero behind the size (E · k,) that each reached."""
    rows, n = starts.shape[:2].numel(), starts.shape[-1]
    basis = starts.new_empty((rows, n_steps, n))
    diagonal, beside, sizes = np.zeros((rows, n_steps)), np.zeros((rows, n_steps)), np.zeros(rows, int)
    running, scale, vectors = np.ones(rows, bool), np.zeros(rows), starts
    for j in range(n_steps):
        basis[:, j] = vectors.reshape(rows, n)
        outside, inside = orthogonalise(product(vectors).reshape(rows, n), basis[:, : j + 1])
        norms = torch.linalg.vector_norm(outside, dim=-1)
        diagonal[running, j] = inside[:, j].double().cpu().numpy()[running]
        beside[running, j] = norms.double().cpu().numpy()[running]
        sizes += running
        scale = np.fmax(scale, np.fmax(np.abs(diagonal[:, j]), beside[:, j]))  # a lower bound of the norm of A
        # What is left of a product in an invariant subspace is rounding; not finite values end a row here too.
        running &= (beside[:, j] > NOISE * torch.finfo(starts.dtype).eps * scale) & np.isfinite(beside[:, j])
        if not running.any():
            break
        goes_on = torch.from_numpy(running).to(starts.device)[:, None]
        vectors = torch.where(goes_on, outside / norms[:, None], 0).reshape(starts.shape)
    return diagonal, beside, sizes


def xtrace(product: Product, vectors: torch.Tensor) -> np.ndarray:
    """Exchangeable unbiased estimates (E, k) of the trace, whose mean is that of XTrace; 2k products.

    Epperly, Tropp & Webber 2024, arXiv 2301.07825. With P_i the projection on the span of the A ω_j of all j but i,
    estimate i is tr P_i A + (n − k + 1) uᵀAu / uᵀu of the part u of ω_i outside, which is of uniform direction there.

    Parameters
    ----------
    product : callable
        See `Product`.
    vectors : torch.Tensor
        Gaussian vectors ω_i (E, k, n) with k ≤ n / 2.
    """
    k, n = vectors.shape[1:]
    images = product(vectors)
    basis, r = torch.linalg.qr(images.mT)
    basis, r = basis.mT.contiguous(), r.double()
    products = product(basis)
    # Where the vectors found the whole range of A, r is singular but for rounding; a change as small makes it regular.
    size = r.diagonal(dim1=1, dim2=2).abs()
    least = torch.finfo(vectors.dtype).eps * size.amax(1, keepdim=True)
    r = r + torch.diag_embed(torch.where(size > least, 0, torch.where(least > 0, 2 * least, 1)))
    # Column i of r^(−T) is orthogonal to all columns of r but i, so that P_i = Q (1 − s_i s_iᵀ) Qᵀ.
    left_out = torch.linalg.solve_triangular(r.mT, torch.eye(k).to(r), upper=False)
    left_out = left_out / torch.linalg.vector_norm(left_out, dim=1, keepdim=True)
    inside = (basis @ vectors.mT).double()
    inside = (inside - left_out * (left_out * inside).sum(1, keepdim=True)).mT.to(vectors)
    outside, image = vectors - inside @ basis, images - inside @ products
    quotient = ((outside * image).sum(2) / (outside * outside).sum(2)).double()
    matrix = (basis @ products.mT).double()
    within = matrix.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (left_out * (matrix @ left_out)).sum(1)
    return (within + (n - k + 1) * quotient).cpu().numpy()
