"""Top eigenpairs of the Hessian at many checkpoints, each with its residual and a certificate."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import xarray as xr

from landscape.checkpoints import batches, rows
from landscape.lanczos import RitzPairs, Settings, top_ritz_pairs
from landscape.stability import stability_threshold

LABELS = {
    "eigenvalue": "Eigenvalue of the Hessian",
    "eigenvector": "Unit eigenvector of the Hessian",
    "residual": "Relative residual of the eigenpair",
    "gap": "Distance to the next smaller eigenvalue",
    "overlap": "Overlap with the matched eigenvector of the previous step",
    "previous_mode": "Mode of the previous step that this one continues",
    "converged": "Residual within the tolerance",
    "certified": "No larger eigenvalue is missing",
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
    certify: bool = True,
    accuracy: float | None = None,
    failure: float = 1e-6,
    max_products: int | None = None,
    batch_rows: int = 8,
    previous: xr.Dataset | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Eigenvalues and unit eigenvectors of the Hessian ∇²F(θ_t, t) at each checkpoint, largest algebraic first.

    Lanczos with full reorthogonalisation, stopped by the true residual ‖Hv − λv‖ / max(|λ|, 1e-3 max_j |λ_j|) ≤ tol of
    each pair, then certified: but for a probability `failure` over the whole series, λ_i lies within
    [θ_i, θ_i + accuracy · max(|θ_i|, 1e-3 max_j |θ_j|)] with θ_i the value returned, so that no copy of a repeated
    eigenvalue is missing (see `landscape.lanczos`). Signs and order are followed from row to row: each eigenvector has
    the sign that fits the one it continues.

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
    certify : bool
        Spend five to seven more products a checkpoint on the certificate.
    accuracy : float, optional
        Relative accuracy ε that the certificate states, max(2 · tol, 1e-3) by default.
    failure : float
        Probability that any certificate of the series is wrong.
    max_products : int, optional
        Give up after so many products a checkpoint; max(300, 10 k) by default.
    batch_rows : int
        Checkpoints that share one batched product.
    previous : xarray.Dataset, optional
        A row of eigenpairs that the first row continues.
    seed : int
        Seed of the random starts; the result of a step does not depend on what other steps are asked for, but for
        rounding.

    Returns
    -------
    xarray.Dataset
        ``eigenvalue``, ``residual``, ``converged``, ``certified``, ``gap``, ``overlap``, ``previous_mode`` (step,
        mode); ``eigenvector`` (step, mode, param); ``n_hvp``, ``threshold`` (step). All k pairs come back, converged or
        not; where a Hessian is not finite they are NaN. ``previous_mode`` and ``overlap`` are NaN in the first row.

    Raises
    ------
    ValueError
        For k outside 1 … n, `max_products` below k, an unknown `which`, checkpoints of another model.

    Warns
    -----
    UserWarning
        Once, naming the steps with pairs that did not converge or are not certified.
    """
    single = "step" not in checkpoints.dims
    checkpoints = rows(checkpoints, objective)
    n, n_steps = objective.n_params, checkpoints.sizes["step"]
    _check(k, n, tol, which, max_products)
    settings = Settings(
        k=k,
        tol=tol,
        certify=certify,
        accuracy=max(2 * tol, 1e-3) if accuracy is None else accuracy,
        failure=failure / n_steps,
        max_products=min(n, max(300, 10 * k) if max_products is None else max_products),
    )
    sign = 1.0 if which == "LA" else -1.0
    pairs: list[RitzPairs] = []
    for steps, params in batches(checkpoints, objective, batch_rows, "eigenpairs"):
        pairs += _solve(objective, params, steps, settings, sign, seed)
    eigs = _dataset(pairs, checkpoints, sign, previous)
    eigs.attrs |= {"which": which, "tol": tol, "accuracy": settings.accuracy, "failure": failure, "seed": seed}
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


def _solve(objective, params: torch.Tensor, steps: np.ndarray, settings: Settings, sign: float, seed: int):
    rngs = [np.random.default_rng([seed, abs(int(step))]) for step in steps]

    def linearize(members: list[int]):
        product = objective.linearize(params[members], steps[members])
        return product if sign > 0 else lambda vectors: -product(vectors)

    return top_ritz_pairs(linearize, params, rngs, settings)


def _dataset(pairs: list[RitzPairs], checkpoints: xr.Dataset, sign: float, previous: xr.Dataset | None) -> xr.Dataset:
    values = sign * np.stack([p.values for p in pairs])
    vectors = np.stack([p.vectors.cpu().numpy() for p in pairs])
    before = None if previous is None else np.asarray(previous.eigenvector.transpose("mode", "param"))
    previous_mode, overlap = follow(vectors, before)
    certified = np.repeat([[p.certified] for p in pairs], values.shape[1], axis=1)
    variables = {
        "eigenvalue": (("step", "mode"), values),
        "residual": (("step", "mode"), np.stack([p.residuals for p in pairs])),
        "converged": (("step", "mode"), np.stack([p.converged for p in pairs])),
        "certified": (("step", "mode"), certified),
        "gap": (("step", "mode"), np.stack([p.gaps for p in pairs])),
        "overlap": (("step", "mode"), overlap),
        "previous_mode": (("step", "mode"), previous_mode),
        "eigenvector": (("step", "mode", "param"), vectors),
        "n_hvp": ("step", np.array([p.n_products for p in pairs])),
        "threshold": ("step", np.full(len(pairs), stability_threshold(checkpoints.attrs))),
    }
    eigs = xr.Dataset(
        variables, {"step": checkpoints.step, "mode": np.arange(values.shape[1])}, dict(checkpoints.attrs)
    )
    for name, label in LABELS.items():
        eigs[name].attrs["long_name"] = label
    return eigs


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
