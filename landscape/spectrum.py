"""The whole spectrum of the Hessian at many checkpoints, from products with random vectors: its density, its trace."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from landscape.curvature import Curvature, CurvatureBatch
from landscape.stochastic import quadratures, xtrace

VECTOR_BYTES = 2**28
"""Vectors that a batch holds take at most so much memory, unless those of a single start vector need more."""

MARGIN = 5  # widths of the Gaussian between the extreme Ritz values and the ends of the grid: it loses 3e-7 of a peak
N_POINTS = 512  # of the grid at least, and as many as needed for two a width up to MOST_POINTS
MOST_POINTS = 20_000


def spectral_density(
    objective,
    checkpoints: xr.Dataset,
    *,
    n_vectors: int = 10,
    n_lanczos: int = 80,
    grid: int | Sequence[float] | None = None,
    width: float | None = None,
    matrix: str = "hessian",
    parameters: str | Sequence[str] | None = None,
    preconditioned: bool = False,
    batch_rows: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Density (1/n) Σ_i δ(λ − λ_i) of the Hessian's eigenvalues at each checkpoint, broadened by a Gaussian.

    Stochastic Lanczos quadrature (Golub & Meurant 1994; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019, arXiv
    1901.10159): m Lanczos steps from a random unit vector give a tridiagonal T, whose eigenvalues are the nodes and the
    squared first components of whose unit eigenvectors are the weights of a Gauss quadrature,
    Σ_j w_j f(node_j) = vᵀ f(A) v for every polynomial f of degree ≤ 2m − 1. Its mean over v is tr f(A) / n. Vectors are
    reorthogonalised in full, so that no eigenvalue is counted twice. The start vectors of a checkpoint are orthonormal,
    each of uniform direction: as many as n give the mean without error.

    An eigenvalue far from others is seen as a peak of the right place, but its height, 1/n on average, has a relative
    standard error of √(2 / n_vectors): count outliers with `top_eigenpairs`.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param), or one row of it; see `landscape.curvature.Curvature` for preconditioned ones.
    n_vectors : int
        Start vectors a checkpoint, at most n of which are used; the standard error falls as 1/√n_vectors. From fewer
        than ten the standard error itself is too uncertain to rely on.
    n_lanczos : int
        Lanczos steps m a start vector, at most n of which are made; nodes lie about π · range / (2m) apart in the
        middle of a spectrum without gaps, closer at its ends and where there are gaps.
    grid : int or sequence of float, optional
        Eigenvalues at which to evaluate the density, or how many: evenly from 5 widths below the smallest Ritz value of
        all steps to 5 above the largest, 512 or as many as make two a width by default.
    width : float, optional
        Standard deviation of the Gaussian. By default the range of all Ritz values over `n_lanczos`: even without gaps
        in the spectrum the quadrature is then exact to 1e-3 of the highest density, but no longer at half of that.
    matrix : {"hessian", "gauss_newton"}
        Which matrix.
    parameters : str or sequence of str, optional
        Restrict it to the tensors whose names match one of these patterns, as ``"hidden.*"``; n is then their size.
    preconditioned : bool
        P^(−1/2) A P^(−1/2) with the preconditioner P of Adam or RMSProp.
    batch_rows : int, optional
        Checkpoints that share one batched product; as many as stay in cache by default.
    seed : int
        Seed of the start vectors; nodes and weights of a step do not depend on what other steps are asked for, but for
        rounding. The default grid and width do.

    Returns
    -------
    xarray.Dataset
        ``density``, which integrates to 1, and its ``standard_error`` over the start vectors (step, eigenvalue);
        ``node``, ``weight`` (step, vector, lanczos), where Σ_j w_j = 1; ``n_hvp`` (step), products made.
        Where Krylov spaces end early, nodes are NaN and weights 0; where a Hessian is not finite all is NaN. Attributes
        ``n`` and ``width``. Any tr f(A) is ``n * (weight * f(node)).sum("lanczos", min_count=1).mean("vector")``.

    Raises
    ------
    ValueError
        For counts below 1, a width that is not positive, a grid that does not increase, and as `Curvature` does.

    Warns
    -----
    UserWarning
        Naming the steps whose matrix is not finite; for a grid too coarse for the width.
    """
    _check_counts(n_vectors=n_vectors, n_lanczos=n_lanczos, batch_rows=batch_rows, seed=seed)
    _check_grid(grid, width)
    curvature = Curvature(objective, checkpoints, matrix, parameters, preconditioned)
    settings = {"n_vectors": min(n_vectors, curvature.n), "n_lanczos": min(n_lanczos, curvature.n)}
    held = settings["n_lanczos"] * curvature.n
    found = []
    for batch in curvature.batches(batch_rows or _batch_rows(curvature, held), "spectral density"):
        found.append(_quadratures(batch, **settings, seed=seed))
    node, weight, n_hvp = (np.concatenate(parts) for parts in zip(*found, strict=True))
    values, width = _grid(node, grid, width, n_lanczos)
    curves = [_mean_curve(*row, values, width, curvature.n) for row in zip(node, weight, strict=True)]
    mean, error = (np.stack(parts) for parts in zip(*curves, strict=True))
    variables = {
        "density": (("step", "eigenvalue"), mean),
        "standard_error": (("step", "eigenvalue"), error),
        "node": (("step", "vector", "lanczos"), node),
        "weight": (("step", "vector", "lanczos"), weight),
        "n_hvp": ("step", n_hvp),
    }
    settings |= {"width": width}
    density = _dataset(curvature, variables, {"eigenvalue": values}, settings, seed)
    name = _name(curvature)
    density.density.attrs["long_name"] = f"Density of eigenvalues of the {name}"
    density.eigenvalue.attrs["long_name"] = f"Eigenvalue of the {name}"
    density.node.attrs["long_name"] = "Node of the Gauss quadrature (Ritz value)"
    density.weight.attrs["long_name"] = "Weight of the Gauss quadrature"
    _warn(density.step.values[np.isnan(weight).any((1, 2))], len(weight), name)
    return density if "step" in checkpoints.dims else density.isel(step=0)


def hessian_trace(
    objective,
    checkpoints: xr.Dataset,
    *,
    n_products: int = 32,
    matrix: str = "hessian",
    parameters: str | Sequence[str] | None = None,
    preconditioned: bool = False,
    batch_rows: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Trace of the Hessian at each checkpoint, unbiased, with its standard error.

    XTrace (Epperly, Tropp & Webber 2024, arXiv 2301.07825): of k = n_products / 2 Gaussian vectors, each in turn
    estimates the trace on the complement of the range of A that the k − 1 others found, and their mean is taken. A few
    large eigenvalues, which dominate the error of Hutchinson's estimate, then add nothing to it.

    Parameters
    ----------
    objective, checkpoints, matrix, parameters, preconditioned, batch_rows
        As for `spectral_density`.
    n_products : int
        Products with the matrix a checkpoint, at least 4; from n on, the diagonal is computed and the trace exact.
    seed : int
        Seed of the vectors; the result of a step does not depend on what other steps are asked for, but for rounding.

    Returns
    -------
    xarray.Dataset
        ``trace``, ``standard_error`` (step), the latter from the spread of the k estimates, which depend on one another
        so that it is up to a quarter too small; 0 where the trace is exact. ``n_hvp`` (step), products made; attribute
        ``n``. NaN where a Hessian is not finite.

    Raises
    ------
    ValueError
        For fewer than 4 products (and fewer than n), and as `Curvature` does.

    Warns
    -----
    UserWarning
        Once, naming the steps whose matrix is not finite.
    """
    _check_counts(n_products=n_products, batch_rows=batch_rows, seed=seed)
    curvature = Curvature(objective, checkpoints, matrix, parameters, preconditioned)
    exact, n_vectors = n_products >= curvature.n, n_products // 2
    if not exact and n_vectors < 2:
        raise ValueError(f"n_products must be at least 4, or n = {curvature.n} for the exact trace, got {n_products}")
    size = batch_rows or _batch_rows(curvature, curvature.n * (1 if exact else 6 * n_vectors))
    found = [
        _exact_trace(batch) if exact else _xtrace(batch, n_vectors, seed)
        for batch in curvature.batches(size, "trace of the Hessian")
    ]
    trace, error = (np.concatenate(parts) for parts in zip(*found, strict=True))
    n_hvp = np.full(len(trace), curvature.n if exact else 2 * n_vectors)
    variables = {"trace": ("step", trace), "standard_error": ("step", error), "n_hvp": ("step", n_hvp)}
    traces = _dataset(curvature, variables, {}, {}, seed)
    name = _name(curvature)
    traces.trace.attrs["long_name"] = f"Trace of the {name}"
    _warn(traces.step.values[~np.isfinite(trace)], len(trace), name)
    return traces if "step" in checkpoints.dims else traces.isel(step=0)


def _quadratures(batch: CurvatureBatch, n_vectors: int, n_lanczos: int, seed: int):
    """Nodes and weights (E, vector, lanczos) and numbers of products (E,), a few start vectors at a time."""
    n_rows, n = batch.like.shape
    starts = np.stack([np.linalg.qr(_gaussian(seed, step, n_vectors, n).T)[0].T for step in batch.steps])
    starts, product = torch.from_numpy(starts).to(batch.like), batch.linearize(range(n_rows))
    at_once = max(1, VECTOR_BYTES // (n_rows * n_lanczos * n * starts.element_size()))
    nodes, weights, counts = zip(
        *(quadratures(product, part, n_lanczos) for part in starts.split(at_once, 1)), strict=True
    )
    return np.concatenate(nodes, 1), np.concatenate(weights, 1), np.concatenate(counts, 1).sum(1)


def _xtrace(batch: CurvatureBatch, n_vectors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    n_rows, n = batch.like.shape
    vectors = np.stack([_gaussian(seed, step, n_vectors, n) for step in batch.steps])
    estimates = xtrace(batch.linearize(range(n_rows)), torch.from_numpy(vectors).to(batch.like))
    return estimates.mean(1), estimates.std(1, ddof=1) / np.sqrt(n_vectors)


def _exact_trace(batch: CurvatureBatch) -> tuple[np.ndarray, np.ndarray]:
    n_rows, n = batch.like.shape
    product, trace = batch.linearize(range(n_rows)), 0.0
    for columns in torch.eye(n).to(batch.like).split(32):
        vectors = columns.expand(n_rows, *columns.shape)
        trace = trace + (vectors * product(vectors)).sum((1, 2)).double().cpu().numpy()
    return trace, np.where(np.isfinite(trace), 0.0, np.nan)


def _gaussian(seed: int, step: int, n_vectors: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, abs(int(step))]).standard_normal((n_vectors, n))


def _batch_rows(curvature: Curvature, numbers: int) -> int:
    """Checkpoints that share a product, when so many numbers are held for each."""
    itemsize = torch.finfo(curvature.objective.dtype).bits // 8
    return max(1, min(curvature.batch_rows(), VECTOR_BYTES // (numbers * itemsize)))


def _grid(node: np.ndarray, grid, width: float | None, n_lanczos: int) -> tuple[np.ndarray, float]:
    """Eigenvalues of the grid and the width of the Gaussian."""
    finite = node[np.isfinite(node)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    if width is None:  # of a multiple of the identity, whose range is rounding, a thousandth of its eigenvalue
        width = (max(high - low, 1e-3 * max(abs(low), abs(high))) or 1.0) / n_lanczos
    if np.ndim(grid) > 0:
        return np.asarray(grid, float), float(width)
    span = high - low + 2 * MARGIN * width
    n_points = int(np.clip(2 * span / width, N_POINTS, MOST_POINTS) if grid is None else grid)
    if span > width * (n_points - 1):
        warnings.warn(
            f"a grid of {n_points} points has a spacing above the width {width:.3g}, so that peaks fall between them; "
            f"ask for a grid of {int(np.ceil(2 * span / width))}, or for a larger width",
            stacklevel=3,
        )
    return np.linspace(low - MARGIN * width, high + MARGIN * width, n_points), float(width)


def _mean_curve(node: np.ndarray, weight: np.ndarray, grid: np.ndarray, width: float, n: int):
    """Mean over the start vectors of the density (eigenvalue,), and its standard error."""
    curves = np.empty((len(node), len(grid)))
    for curve, nodes, weights in zip(curves, np.nan_to_num(node), weight, strict=True):
        curve[:] = np.exp(-(((grid[:, None] - nodes) / width) ** 2) / 2) @ weights / (np.sqrt(2 * np.pi) * width)
    if len(curves) == 1 < n:
        return curves[0], np.full(len(grid), np.nan)
    # Orthonormal vectors are drawn without replacement, so to say: all n of them leave no error.
    error = curves.std(0, ddof=1) * np.sqrt((1 - len(curves) / n) / len(curves)) if n > 1 else np.zeros(len(grid))
    return curves.mean(0), error


def _name(curvature: Curvature) -> str:
    """What the matrix is called in labels and warnings."""
    name = {"hessian": "Hessian", "gauss_newton": "Gauss–Newton matrix"}[curvature.attrs["matrix"]]
    return f"preconditioned {name}" if curvature.preconditioned else name


def _dataset(curvature: Curvature, variables: dict, coordinates: dict, settings: dict, seed: int) -> xr.Dataset:
    checkpoints = curvature.checkpoints
    attrs = checkpoints.attrs | curvature.attrs | {"n": curvature.n} | settings | {"seed": seed}
    dataset = xr.Dataset(variables, {"step": checkpoints.step, **coordinates}, attrs)
    dataset.standard_error.attrs["long_name"] = "Standard error"
    dataset.n_hvp.attrs["long_name"] = "Matrix-vector products"
    return dataset


def _warn(bad: np.ndarray, n_steps: int, name: str) -> None:
    if len(bad):
        shown = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        warnings.warn(f"the {name} of {len(bad)} of {n_steps} steps is not finite (steps {shown})", stacklevel=3)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is None and name == "batch_rows":
            continue
        least = 0 if name == "seed" else 1
        if not isinstance(count, (int, np.integer)) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {count}")


def _check_grid(grid, width: float | None) -> None:
    if width is not None and not 0 < width < np.inf:
        raise ValueError(f"width must be positive, got {width}")
    if np.ndim(grid) == 0:
        good = grid is None or (isinstance(grid, (int, np.integer)) and grid > 1)
    else:
        good = np.ndim(grid) == 1 and np.size(grid) > 1 and bool((np.diff(grid) > 0).all())
    if not good:
        raise ValueError(f"grid must be increasing eigenvalues, or a number of at least 2 points, got {grid}")
