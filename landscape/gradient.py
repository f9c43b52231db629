"""The gradient, or the motion, inside and outside the span of the top eigenvectors; the motion from step to step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr

from landscape.checkpoints import batches, matched, refuse_repeated_steps, rows, rows_at_a_time

VECTORS = ("gradient", "update", "displacement")


def gradient_decomposition(
    objective,
    checkpoints: xr.Dataset,
    eigs: xr.Dataset,
    *,
    vector: str = "gradient",
    reference: xr.Dataset | None = None,
) -> xr.Dataset:
    """Components of the gradient, or of the motion, on the eigenvectors v_i, and its parts inside and outside of them.

    Of g, the gradient ∇F(θ_t, t), the update θ_t − θ_{t−1} or the displacement θ_t − θ_0: c_i = ⟨g, v_i⟩; inside
    (Σ c_i²)^½; bulk (‖g‖² − Σ c_i²)^½, computed as the norm of what is left of g; dominant fraction inside/‖g‖ (Gur-Ari
    et al. 2018, arXiv 1812.04754, for its square).

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param); the rows whose step `eigs` holds too are used.
    eigs : xarray.Dataset
        ``eigenvector`` (step, mode, param), as from `top_eigenpairs`, and ``vector_error`` (step, mode) where known.
    vector : {"gradient", "update", "displacement"}
        What to decompose. An update needs the checkpoint of the step before and is NaN without it; that one need not be
        among the steps of `eigs`.
    reference : xarray.Dataset, optional
        One checkpoint θ_0 from which displacements are measured; the first row of `checkpoints` by default.

    Returns
    -------
    xarray.Dataset
        ``component`` (step, mode); ``gradient_norm`` (or ``update_norm``, ``displacement_norm``), ``inside_norm``,
        ``bulk_norm``, ``dominant_fraction`` (step), the fraction NaN where g is zero; ``component_error`` (step, mode),
        largest error of |c_i| that the eigenvector's own leaves: ‖g‖ sin φ, its angle φ to the exact one bounded by
        residual and gap (Davis and Kahan 1970), at most ‖g‖; NaN where `eigs` holds no ``vector_error``. Of the last
        mode, whose gap is to an eigenvalue that nothing certifies, it is an estimate: ask for one mode more.

    Raises
    ------
    ValueError
        If checkpoints and eigs share no step or hold one twice, `vector` is unknown, or `reference` is given without
        displacements, has several rows, or belongs to another model.
    """
    if vector not in VECTORS:
        raise ValueError(f"vector must be one of {', '.join(VECTORS)}, got {vector!r}")
    if reference is not None and vector != "displacement":
        raise ValueError(f'reference is for vector="displacement", got vector={vector!r}')
    objective, checkpoints = matched(objective, checkpoints)
    chosen = _vectors(objective, checkpoints, vector, reference)
    checkpoints, eigs = shared_steps(checkpoints, eigs, objective)
    components, totals, bulks = [], [], []
    done = 0
    for steps, params in batches(checkpoints, objective, rows_at_a_time(32, objective.n_params), f"{vector}s"):
        whole = chosen(steps, params)
        block = eigs.eigenvector.isel(step=slice(done, done + len(steps))).transpose("step", "mode", "param")
        axes = objective.as_vectors(block.values)
        component = (axes @ whole[..., None])[..., 0]
        components.append(component.cpu().numpy())
        totals.append(whole.norm(dim=-1).cpu().numpy())
        bulks.append((whole - (component[:, None] @ axes)[:, 0]).norm(dim=-1).cpu().numpy())
        done += len(steps)
    component, total, bulk = np.concatenate(components), np.concatenate(totals), np.concatenate(bulks)
    inside = np.linalg.norm(component, axis=1)
    fraction = np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)
    return xr.Dataset(
        {
            "component": (("step", "mode"), component, {"long_name": f"Component of the {vector} on v_i"}),
            "component_error": (
                ("step", "mode"),
                total[:, None] * _sines(eigs),
                {"long_name": f"Error of the component of the {vector} on v_i"},
            ),
            f"{vector}_norm": ("step", total, {"long_name": f"Norm of the {vector}"}),
            "inside_norm": ("step", inside, {"long_name": "Norm inside the span of the eigenvectors"}),
            "bulk_norm": ("step", bulk, {"long_name": "Norm outside the span of the eigenvectors"}),
            "dominant_fraction": ("step", fraction, {"long_name": f"Dominant fraction of the {vector}"}),
        },
        {"step": checkpoints.step, "mode": eigs.mode},
        dict(checkpoints.attrs),
    )


def _vectors(objective, checkpoints: xr.Dataset, vector: str, reference: xr.Dataset | None) -> Callable:
    """The function (steps (E,), params (E, n)) → what is decomposed (E, n); `checkpoints` are all rows."""
    if vector == "gradient":
        return lambda steps, params: objective.gradient(params, steps)
    if vector == "displacement":
        origin = rows(checkpoints.isel(step=0) if reference is None else reference, objective)
        if origin.sizes["step"] != 1:
            raise ValueError("reference must be one checkpoint, e.g. checkpoints.sel(step=0)")
        start = objective.as_params(origin.params.values)
        return lambda steps, params: params - start

    def updates(steps, params):
        known = np.isin(steps - 1, checkpoints.step.values)
        moved = torch.full_like(params, torch.nan)
        if known.any():
            before = checkpoints.params.sel(step=steps[known] - 1).values
            moved[torch.from_numpy(known)] = params[torch.from_numpy(known)] - objective.as_params(before)
        return moved

    return updates


def _sines(eigs: xr.Dataset) -> np.ndarray:
    """Bounds (step, mode) on the sines of the angles between the eigenvectors and the exact ones, at most 1."""
    # ||⟨g, v⟩| − |⟨g, w⟩|| ≤ ‖g‖ sin φ for unit vectors v, w whose lines meet at an angle φ.
    dims = ("step", "mode")
    if "vector_error" not in eigs:
        return np.full((eigs.sizes["step"], eigs.sizes["mode"]), np.nan)
    sine = eigs.vector_error.transpose(*dims).values.astype(float)
    accuracy = eigs.attrs.get("accuracy")
    if {"gap", "eigenvalue"} <= set(eigs) and accuracy and sine.shape[1] > 1:
        # It takes the next Ritz value for an eigenvalue, which may lie higher by what the certificate leaves open.
        values, gap = (np.abs(eigs[name].transpose(*dims).values) for name in ("eigenvalue", "gap"))
        above = np.column_stack([np.full(len(gap), np.inf), gap[:, :-1]])
        unsure = accuracy * np.maximum(values, 1e-3 * values.max(axis=1, keepdims=True))
        below = np.maximum(gap[:, :-1] - unsure[:, 1:], 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            wider = np.fmin(gap, above)[:, :-1] / np.fmin(above[:, :-1], below)
            sine[:, :-1] *= np.where(sine[:, :-1] == 0, 1, wider)
    return np.minimum(sine, 1.0)


def shared_steps(checkpoints: xr.Dataset, eigs: xr.Dataset, objective) -> tuple[xr.Dataset, xr.Dataset]:
    """The rows of both at the steps that both hold, sorted; ValueError where there are none, or a step repeats."""
    checkpoints = rows(checkpoints, objective)
    eigs = eigs if "step" in eigs.dims else eigs.expand_dims("step")
    refuse_repeated_steps(checkpoints, "checkpoints")
    refuse_repeated_steps(eigs, "eigs")
    steps = np.intersect1d(checkpoints.step.values, eigs.step.values)
    if not len(steps):
        raise ValueError(
            "checkpoints and eigs share no step; compute eigs = top_eigenpairs(objective, checkpoints) first"
        )
    return checkpoints.sel(step=steps), eigs.sel(step=steps)


def motion(checkpoints: xr.Dataset) -> xr.Dataset:
    """Length and turning of the updates of a trajectory saved at every step.

    Row t describes Δ = θ_t − θ_{t−1}: ``update_norm`` ‖Δ‖ and ``update_cosine``, the cosine between Δ and the update
    before it. Both are NaN where a row needed for them was not saved.

    Parameters
    ----------
    checkpoints : xarray.Dataset
        ``params`` (step, param), of any optimiser.

    Returns
    -------
    xarray.Dataset
        ``update_norm``, ``update_cosine`` (step), with the attrs of `checkpoints`.

    Examples
    --------
    >>> path = xr.Dataset({"params": (("step", "param"), [[0.0], [1.0], [0.5], [1.0]])}, {"step": [0, 1, 2, 3]})
    >>> motion(path).update_cosine.values
    array([nan, nan, -1., -1.])
    """
    steps = checkpoints.step.values
    norm, cosine = np.full(len(steps), np.nan), np.full(len(steps), np.nan)
    before, update_before = None, None
    trajectory = checkpoints.params.transpose("step", "param")
    at_once = rows_at_a_time(256, checkpoints.sizes["param"])
    for start in range(0, len(steps), at_once):
        for row, params in enumerate(trajectory.isel(step=slice(start, start + at_once)).values, start):
            consecutive = row > 0 and steps[row] == steps[row - 1] + 1
            update = params - before if consecutive else None
            if update is not None:
                norm[row] = np.linalg.norm(update)
                if update_before is not None and norm[row] * norm[row - 1] > 0:
                    cosine[row] = update @ update_before / (norm[row] * norm[row - 1])
            before, update_before = params, update
    return xr.Dataset(
        {
            "update_norm": ("step", norm, {"long_name": "Norm of the update"}),
            "update_cosine": ("step", cosine, {"long_name": "Cosine between successive updates"}),
        },
        {"step": checkpoints.step},
        dict(checkpoints.attrs),
    )
