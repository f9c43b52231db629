"""Sharpness of the loss around each checkpoint, by the definitions that the literature compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from scipy.optimize import minimize

from landscape.checkpoints import batches, matched, rows_at_a_time
from landscape.hessian import top_eigenpairs
from landscape.objective import POINTS_PER_BATCH
from landscape.spectrum import hessian_trace

SEARCHES, ITERATIONS = 2, 100
"""Of Keskar's box: starts, at the checkpoint and at random points, and iterations of each at most."""


def sharpness(
    objective,
    checkpoints: xr.Dataset,
    definitions: str | Sequence[str] = ("largest_eigenvalue", "trace", "keskar", "sam", "average"),
    *,
    radius: float = 0.05,
    epsilon: float = 1e-3,
    n_samples: int = 64,
    n_products: int = 32,
    tol: float = 1e-4,
    seed: int = 0,
) -> xr.Dataset:
    """Sharpness at each checkpoint in named definitions; each variable's attrs hold its formula, source and parameters.

    None of them is a property of the function that the network computes: rescaling the parameters changes them all but
    not the function (Dinh et al. 2017, arXiv 1703.04933).

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param), or one row of it.
    definitions : str or sequence of str
        Which to compute, of

        - "largest_eigenvalue": λ_1 of the Hessian, certified (Cohen et al. 2021, arXiv 2103.00065);
        - "trace": tr H (as in Wen, Ma & Li 2023, arXiv 2211.05729), estimated by `hessian_trace`;
        - "keskar": 100 · (max F(θ + y) − F(θ)) / (1 + F(θ)) over the box |y_i| ≤ ε (|θ_i| + 1), in per cent (Keskar et
          al. 2017, arXiv 1609.04836, metric 2.1 in the whole space), by L-BFGS-B from θ and from a random point of the
          box. A search finds a local maximum: the value is a lower bound;
        - "sam": F(θ + ρ g/‖g‖) − F(θ), g = ∇F(θ), the one step of sharpness-aware minimisation (Foret et al. 2021,
          arXiv 2010.01412); NaN where g is zero;
        - "average": the mean of F(θ + ρ u) − F(θ) over unit vectors u of uniform direction (Wen, Ma & Li 2023), near
          ρ² tr H / (2n) for small ρ.
    radius : float
        ρ of "sam" and "average", in parameter distance.
    epsilon : float
        ε of "keskar", relative to |θ_i| + 1.
    n_samples : int
        Random vectors of "average", at least 2; the loss is evaluated at θ + ρu and θ − ρu, so that the slope of the
        loss adds nothing to the error.
    n_products : int
        Hessian-vector products of "trace".
    tol : float
        Largest relative residual of "largest_eigenvalue".
    seed : int
        Of the random vectors and starts; the result of a step does not depend on what other steps are asked for, but
        for rounding.

    Returns
    -------
    xarray.Dataset
        One variable a definition (step), in units of the loss (of the loss per squared distance for the first two, per
        cent for "keskar"); beside it ``largest_eigenvalue_certified`` (step), ``trace_standard_error`` and
        ``average_standard_error`` (step). NaN where the loss is not finite.

    Raises
    ------
    ValueError
        For an unknown definition or none, radius or epsilon that is not positive, fewer than 2 samples, and as
        `top_eigenpairs` and `hessian_trace` do.
    """
    names = (definitions,) if isinstance(definitions, str) else tuple(definitions)
    if not names or set(names) - set(DEFINITIONS):
        raise ValueError(f"definitions must be some of {', '.join(DEFINITIONS)}, got {definitions!r}")
    for name, value in (("radius", radius), ("epsilon", epsilon)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, got {n_samples}")
    single = "step" not in checkpoints.dims
    objective, checkpoints = matched(objective, checkpoints)
    found = xr.Dataset(coords={"step": checkpoints.step}, attrs=dict(checkpoints.attrs))
    settings = {
        "radius": radius,
        "epsilon": epsilon,
        "n_samples": n_samples,
        "n_products": n_products,
        "tol": tol,
        "seed": seed,
    }
    for name in dict.fromkeys(names):
        function, used, text = DEFINITIONS[name]
        attrs = {**text, **{key: settings[key] for key in used}}
        found = found.assign(function(objective, checkpoints, settings))
        found[name].attrs = attrs
    return found.isel(step=0) if single else found


def _largest_eigenvalue(objective, checkpoints: xr.Dataset, settings: dict) -> dict:
    eigs = top_eigenpairs(objective, checkpoints, k=1, tol=settings["tol"], seed=settings["seed"]).isel(mode=0)
    certified = ("step", eigs.certified.values, {"long_name": "No larger eigenvalue is missing"})
    return {"largest_eigenvalue": ("step", eigs.eigenvalue.values), "largest_eigenvalue_certified": certified}


def _trace(objective, checkpoints: xr.Dataset, settings: dict) -> dict:
    traces = hessian_trace(objective, checkpoints, n_products=settings["n_products"], seed=settings["seed"])
    error = ("step", traces.standard_error.values, {"long_name": "Standard error of the trace"})
    return {"trace": ("step", traces.trace.values), "trace_standard_error": error}


def _sam(objective, checkpoints: xr.Dataset, settings: dict) -> dict:
    values = []
    for steps, params in batches(
        checkpoints, objective, rows_at_a_time(POINTS_PER_BATCH, objective.n_params), "one-step sharpness"
    ):
        losses, gradients = objective.value_and_gradient(params, steps)
        ascent = gradients / gradients.norm(dim=-1, keepdim=True)  # NaN where it is zero
        values.append((objective.losses(params + settings["radius"] * ascent, steps) - losses).cpu().numpy())
    return {"sam": ("step", np.concatenate(values))}


def _average(objective, checkpoints: xr.Dataset, settings: dict) -> dict:
    n_samples, values = settings["n_samples"], []
    for steps, params in batches(checkpoints, objective, 1, "average sharpness"):
        step, rng = int(steps[0]), _rng(settings["seed"], steps[0])
        loss, rises = objective.losses(params, step), []
        for start in range(0, n_samples, POINTS_PER_BATCH // 2):
            count = min(POINTS_PER_BATCH // 2, n_samples - start)
            drawn = rng.standard_normal((count, objective.n_params))
            drawn *= settings["radius"] / np.linalg.norm(drawn, axis=1, keepdims=True)
            moved = objective.as_vectors(np.concatenate([drawn, -drawn]))
            rises.append((objective.losses(params + moved, step) - loss).reshape(2, count).mean(0).cpu().numpy())
        values.append(np.concatenate(rises))
    values = np.stack(values).astype(float)
    error = values.std(axis=1, ddof=1) / np.sqrt(n_samples)
    return {
        "average": ("step", values.mean(axis=1)),
        "average_standard_error": ("step", error, {"long_name": "Standard error of the average"}),
    }


def _keskar(objective, checkpoints: xr.Dataset, settings: dict) -> dict:
    values = []
    for steps, params in batches(checkpoints, objective, 1, "sharpness in a box"):
        loss = float(objective.losses(params, int(steps[0])))
        box = settings["epsilon"] * (params[0].abs().double().cpu().numpy() + 1)
        rise = _largest_rise(objective, params[0], loss, int(steps[0]), box, _rng(settings["seed"], steps[0]))
        values.append(100 * rise / (1 + loss))
    return {"keskar": ("step", np.array(values))}


def _largest_rise(objective, params: torch.Tensor, loss: float, step: int, box: np.ndarray, rng) -> float:
    """Largest F(θ + y) − F(θ) that the searches find in |y_i| ≤ box_i; NaN where a value is not finite."""

    def descent_of(scale: float) -> Callable:
        def function(position: np.ndarray) -> tuple[float, np.ndarray]:
            at = params + objective.as_vectors(box * position)
            value, gradient = objective.value_and_gradient(at, step)
            return (loss - float(value)) / scale, -gradient.double().cpu().numpy() * box / scale

        return function

    # In units of the box and of the rise that the slope promises: L-BFGS-B's tolerances then fit any loss.
    value, slope = descent_of(1.0)(np.zeros(len(box)))
    scale = float(np.abs(slope).sum()) or 1.0
    if not np.isfinite([value, scale]).all():
        return np.nan
    starts = [np.zeros(len(box)), *rng.uniform(-1, 1, (SEARCHES - 1, len(box)))]
    options = {"maxiter": ITERATIONS, "ftol": 1e-12, "gtol": 1e-9}
    best = 0.0
    for start in starts:
        end = minimize(
            descent_of(scale), start, jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * len(box), options=options
        )
        if not np.isfinite(end.fun):
            return np.nan
        best = max(best, -end.fun * scale)
    return best


def _rng(seed: int, step) -> np.random.Generator:
    return np.random.default_rng([seed, abs(int(step))])


DEFINITIONS = {
    "largest_eigenvalue": (
        _largest_eigenvalue,
        ("tol", "seed"),
        {
            "long_name": "Largest eigenvalue",
            "formula": "λ_1 of ∇²F(θ_t, t)",
            "source": "Cohen et al. 2021, arXiv 2103.00065",
        },
    ),
    "trace": (
        _trace,
        ("n_products", "seed"),
        {
            "long_name": "Trace of the Hessian",
            "formula": "tr ∇²F(θ_t, t)",
            "source": "Wen, Ma & Li 2023, arXiv 2211.05729; estimate: Epperly, Tropp & Webber 2024, arXiv 2301.07825",
        },
    ),
    "keskar": (
        _keskar,
        ("epsilon", "seed"),
        {
            "long_name": "Box sharpness",
            "units": "%",
            "formula": "100 · (max F(θ + y) − F(θ)) / (1 + F(θ)), |y_i| ≤ ε (|θ_i| + 1); a lower bound by L-BFGS-B",
            "source": "Keskar et al. 2017, arXiv 1609.04836, metric 2.1",
            "n_searches": SEARCHES,
            "n_iterations": ITERATIONS,
        },
    ),
    "sam": (
        _sam,
        ("radius",),
        {
            "long_name": "One-step sharpness",
            "formula": "F(θ + ρ g/‖g‖) − F(θ), g = ∇F(θ)",
            "source": "Foret et al. 2021, arXiv 2010.01412",
        },
    ),
    "average": (
        _average,
        ("radius", "n_samples", "seed"),
        {
            "long_name": "Average sharpness",
            "formula": "mean of F(θ + ρ u) − F(θ), ‖u‖ = 1",
            "source": "Wen, Ma & Li 2023, arXiv 2211.05729",
        },
    ),
}
"""Name → (function, the parameters that it uses, what is said of it)."""
