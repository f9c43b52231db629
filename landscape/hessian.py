"""Top eigenpairs of the Hessian at many checkpoints, each with its residual and a certificate."""

from __future__ import annotations

import warnings
from dataclasses import replace
from os import PathLike

import numpy as np
import xarray as xr

from landscape.curvature import Curvature, CurvatureBatch
from landscape.lanczos import RitzPairs, Settings, top_ritz_pairs
from landscape.results import RowsInFile, RowsInMemory
from landscape.stability import stability_threshold

LABELS = {
    "eigenvalue": "Eigenvalue of the Hessian",
    "residual": "Relative residual of the eigenpair",
    "converged": "Residual within the tolerance",
    "certified": "No larger eigenvalue is missing",
    "gap": "Distance to the next eigenvalue",
    "vector_error": "Estimated sine of the angle to the exact eigenvector",
    "overlap": "Overlap with the matched eigenvector of the previous step",
    "previous_mode": "Mode of the previous step that this one continues",
    "crossing": "Continues another mode of the previous step",
    "eigenvector": "Unit eigenvector of the Hessian",
    "n_hvp": "Hessian-vector products",
    "threshold": "Stability threshold",
}


def top_eigenpairs(
    objective,
    checkpoints: xr.Dataset,
    k: int = 2,
    *,
    tol: float = 1e-4,
    which: str = "LA",
    matrix: str = "hessian",
    parameters=None,
    preconditioned: bool = False,
    certify: bool = True,
    accuracy: float | None = None,
    failure: float = 1e-6,
    max_products: int | None = None,
    batch_rows: int | None = None,
    previous: xr.Dataset | None = None,
    out: str | PathLike | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Eigenvalues and unit eigenvectors of the Hessian ∇²F(θ_t, t) at each checkpoint, largest algebraic first.

    Lanczos with full reorthogonalisation, stopped by the true residual ‖Hv − λv‖ / max(|λ|, 1e-3 max_j |λ_j|) ≤ tol of
    each pair, then certified: but for a probability `failure` over the whole series, λ_i lies within
    [θ_i, θ_i + accuracy · max(|θ_i|, 1e-3 max_j |θ_j|)] with θ_i the value returned, so that no copy of a repeated
    eigenvalue is missing (see `landscape.certificate`). Signs and order are followed from row to row: each eigenvector
    has the sign that fits the one it continues.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param), or one row of it.
    k : int
        Number of eigenpairs, 1 … n.
    tol : float
        Largest relative residual.
    which : {"LA", "SA"}
        Largest or smallest algebraic eigenvalues; with "SA" mode 0 is the smallest.
    matrix : {"hessian", "gauss_newton"}
        The Hessian, or the Gauss–Newton matrix Jᵀ(∂²F/∂o∂o)J with the Jacobian J of the model's outputs o.
    parameters : str or sequence of str, optional
        Only the block of the tensors whose names match one of these patterns, as ``"layer1.*"``; the eigenvectors are
        zero elsewhere.
    preconditioned : bool
        The matrix P^(−1/2) H P^(−1/2) with the P = diag(√ν̂ + ε) of Adam or RMSProp at each step, as saved in the
        checkpoints' ``second_moment``; its sharpness is what their stability threshold limits (Cohen et al. 2022, arXiv
        2207.14484). An eigenvector u stands for the direction P^(−1/2)u of θ.
    certify : bool
        Spend more products a checkpoint, about as many again on steeply decaying spectra, on the certificate.
    accuracy : float, optional
        Relative accuracy ε that the certificate states, max(2 · tol, 1e-3) by default.
    failure : float
        Probability that any certificate of the series is wrong.
    max_products : int, optional
        Give up after so many products a checkpoint; max(300, 10 k) by default.
    batch_rows : int, optional
        Checkpoints that share one batched product; by default as many as fit in cache.
    previous : xarray.Dataset, optional
        A row of eigenpairs that the first row continues.
    out : str or path-like, optional
        Write each batch to this file when it is finished, and return the Dataset that reads it lazily; so memory is
        that of one batch. An interrupted call leaves ``OUT.part``, and the same call goes on from there.
    seed : int
        Seed of the random starts; the result of a step does not depend on what other steps are asked for, but for
        rounding.

    Returns
    -------
    xarray.Dataset
        ``eigenvalue``, ``residual``, ``converged``, ``certified`` (step, mode); ``eigenvector`` (step, mode, param);
        ``n_hvp``, ``threshold`` (step; NaN where attrs name no optimiser). All k pairs come back, converged or not;
        where a matrix is not finite they are NaN. How far modes can be told apart: ``gap`` to the next mode,
        ``vector_error`` = ‖Hv − λv‖ / distance to the nearest other Ritz value, which estimates the sine of the angle
        to the exact eigenvector: with the exact neighbour instead it is the bound of Davis and Kahan (1970), so it is
        good where `tol` is small. From about 0.1 on only the span of close modes means something.
        ``previous_mode``, ``overlap`` and ``crossing`` say which mode of the previous row each one continues, and
        whether that is another one; NaN and False in the first row. All (step, mode).

    Raises
    ------
    ValueError
        For k outside 1 … n, `max_products` below k, an unknown `which` or `matrix`, checkpoints of another model,
        patterns that match no tensor, or checkpoints without the optimiser's state.
    FileNotFoundError
        If the folder of `out` does not exist.

    Warns
    -----
    UserWarning
        Once, naming the steps with pairs that did not converge or are not certified.
    """
    single = "step" not in checkpoints.dims
    curvature = Curvature(objective, checkpoints, matrix, parameters, preconditioned)
    checkpoints = curvature.checkpoints
    _check(k, curvature.n, tol, which, max_products)
    settings = Settings(
        k=k,
        tol=tol,
        certify=certify,
        accuracy=max(2 * tol, 1e-3) if accuracy is None else accuracy,
        failure=failure / checkpoints.sizes["step"],
        max_products=min(curvature.n, max(300, 10 * k) if max_products is None else max_products),
    )
    asked = {"which": which, "tol": tol, "accuracy": settings.accuracy, "certify": certify, "failure": failure}
    attrs = dict(checkpoints.attrs) | curvature.attrs | asked | {"seed": seed}
    coords = {"step": checkpoints.step, "mode": np.arange(k)}
    results = RowsInMemory(coords, attrs) if out is None else RowsInFile(out, coords, attrs)
    try:
        before = None if previous is None else np.asarray(previous.eigenvector.transpose("mode", "param"))
        if results.n_rows:
            before = _resume(results, curvature, before)
        for batch in curvature.batches(batch_rows, "eigenpairs", results.n_rows):
            columns = _columns(_solve(batch, settings, which, seed), batch, before)
            results.write(columns)
            finite = np.isfinite(columns["eigenvalue"].values).all(axis=1)
            before = columns["eigenvector"].values[finite][-1] if finite.any() else before
        eigs = results.finish()
    finally:
        results.close()
    _warn(eigs, certify)
    return eigs.isel(step=0) if single else eigs


def _check(k: int, n: int, tol: float, which: str, max_products: int | None) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and {n}, the number of parameters, got {k}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if which not in ("LA", "SA"):
        raise ValueError(f'which must be "LA" (largest algebraic) or "SA" (smallest algebraic), got {which!r}')
    if max_products is not None and max_products < k:
        raise ValueError(f"max_products must be at least k = {k}, got {max_products}")


def _solve(batch: CurvatureBatch, settings: Settings, which: str, seed: int) -> list[RitzPairs]:
    rngs = [np.random.default_rng([seed, abs(int(step))]) for step in batch.steps]
    if which == "LA":
        return top_ritz_pairs(batch.linearize, batch.like, rngs, settings)

    def negative(rows: list[int]):
        product = batch.linearize(rows)
        return lambda vectors: -product(vectors)

    pairs = top_ritz_pairs(negative, batch.like, rngs, settings)
    return [replace(p, values=-p.values) for p in pairs]


def _columns(pairs: list[RitzPairs], batch: CurvatureBatch, before: np.ndarray | None) -> dict[str, xr.Variable]:
    """Variables of the result for the rows of a batch; `before` holds the eigenvectors (mode, param) of the last."""
    k, curvature = len(pairs[0].values), batch.curvature
    values, gaps, residuals = (np.stack([getattr(p, name) for p in pairs]) for name in ("values", "gaps", "residuals"))
    vectors = curvature.embed(np.stack([p.vectors.cpu().numpy() for p in pairs]))
    previous_mode, overlap = follow(vectors, before)
    nearest = np.fmin(gaps, np.column_stack([np.full(len(gaps), np.inf), gaps[:, :-1]]))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(residuals == 0, 0.0, np.stack([p.errors for p in pairs]) / nearest)
    attrs = curvature.checkpoints.attrs
    limits = [
        stability_threshold(attrs, preconditioned=curvature.preconditioned, step=int(step)) for step in batch.steps
    ]
    by_mode = {
        "eigenvalue": values,
        "residual": residuals,
        "converged": np.stack([p.converged for p in pairs]),
        "certified": np.repeat([[p.certified] for p in pairs], k, axis=1),
        "gap": gaps,
        "vector_error": error,
        "overlap": overlap,
        "previous_mode": previous_mode,
        "crossing": np.isfinite(previous_mode) & (previous_mode != np.arange(k)),
    }
    columns = {name: (("step", "mode"), array) for name, array in by_mode.items()}
    columns["eigenvector"] = (("step", "mode", "param"), vectors)
    columns["n_hvp"] = ("step", np.array([p.n_products for p in pairs]))
    columns["threshold"] = ("step", np.array(limits))
    return {name: xr.Variable(*column, {"long_name": LABELS[name]}) for name, column in columns.items()}


def _resume(results: RowsInFile, curvature: Curvature, before: np.ndarray | None) -> np.ndarray | None:
    """The last finite eigenvectors in the file of an interrupted call, whose rows must be of this objective."""
    for row in {0, results.n_rows - 1}:
        values = results.read("eigenvalue", row)
        vectors = curvature.objective.as_vectors(curvature.extract(results.read("eigenvector", row)))
        product = next(curvature.batches(1, "eigenpairs", row)).linearize([0])(vectors[None])[0]
        # A Ritz value is the Rayleigh quotient of its vector, up to rounding.
        quotients = (vectors * product).sum(-1).cpu().numpy()
        rounding = 1e3 * np.finfo(values.dtype if vectors.dtype.itemsize == 8 else np.float32).eps
        if not np.allclose(quotients, values, rtol=0, atol=rounding * np.abs(values).max(), equal_nan=True):
            warnings.warn(
                f"{results.part} holds eigenpairs of another objective or of other checkpoints; they are computed anew",
                stacklevel=3,
            )
            results.start_over()
            return before
    for row in reversed(range(results.n_rows)):
        if np.isfinite(results.read("eigenvalue", row)).all():
            return results.read("eigenvector", row)
    return before


def follow(vectors: np.ndarray, before: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Match each row of unit eigenvectors (step, mode, param) with the row before and align its signs in place.

    Each mode continues the mode of the previous row that it overlaps most. Returns ``previous_mode`` and ``overlap``,
    |⟨v, v_previous⟩|, both (step, mode), NaN where there is no finite row before. Where modes cross, ``previous_mode``
    is not the mode itself; where an overlap is far from 1, neighbours mix and only the span of both means something.
    """
    previous_mode, overlap = np.full(vectors.shape[:2], np.nan), np.full(vectors.shape[:2], np.nan)
    for row in range(len(vectors)):
        if before is not None and np.isfinite(vectors[row]).all():
            products = vectors[row] @ before.T
            best = np.abs(products).argmax(axis=1)
            chosen = products[np.arange(len(best)), best]
            vectors[row] *= np.where(chosen < 0, -1.0, 1.0)[:, None]
            previous_mode[row], overlap[row] = best, np.abs(chosen)
        if np.isfinite(vectors[row]).all():
            before = vectors[row]
    return previous_mode, overlap


def _warn(eigs: xr.Dataset, certify: bool) -> None:
    good = eigs.certified if certify else eigs.converged
    bad = eigs.step.values[~good.all("mode").values]
    if len(bad):
        shown = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        what = "certified" if certify else "converged"
        remedy = "see residual and certified; raise max_products or tol, or ask for k + 1"
        warnings.warn(
            f"eigenpairs of {len(bad)} of {len(good)} steps are not {what} (steps {shown}); {remedy}", stacklevel=3
        )
