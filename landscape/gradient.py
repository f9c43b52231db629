"""The gradient inside and outside the span of the top eigenvectors, and the motion from step to step."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.checkpoints import batches, refuse_repeated_steps, rows


def gradient_decomposition(objective, checkpoints: xr.Dataset, eigs: xr.Dataset) -> xr.Dataset:
    """Components of the gradient g = ∇F(θ_t, t) on the eigenvectors v_i, and its parts inside and outside their span.

    c_i = ⟨g, v_i⟩; inside (Σ c_i²)^½; bulk (‖g‖² − Σ c_i²)^½, computed as the norm of what is left of g; dominant
    fraction inside/‖g‖ (Gur-Ari et al. 2018, arXiv 1812.04754, for its square).

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param); the rows whose step `eigs` holds too are used.
    eigs : xarray.Dataset
        ``eigenvector`` (step, mode, param), as from `top_eigenpairs`.

    Returns
    -------
    xarray.Dataset
        ``component`` (step, mode); ``gradient_norm``, ``inside_norm``, ``bulk_norm``, ``dominant_fraction`` (step); the
        fraction is NaN where the gradient is zero.

    Raises
    ------
    ValueError
        If checkpoints and eigs share no step, or hold one twice.
    """
    checkpoints, eigs = shared_steps(checkpoints, eigs, objective)
    components, totals, bulks = [], [], []
    done = 0
    for steps, params in batches(checkpoints, objective, 32, "gradients"):
        gradients = objective.gradient(params, steps)
        block = eigs.eigenvector.isel(step=slice(done, done + len(steps))).transpose("step", "mode", "param")
        vectors = objective.as_vectors(block.values)
        component = (vectors @ gradients[..., None])[..., 0]
        components.append(component.cpu().numpy())
        totals.append(gradients.norm(dim=-1).cpu().numpy())
        bulks.append((gradients - (component[:, None] @ vectors)[:, 0]).norm(dim=-1).cpu().numpy())
        done += len(steps)
    component, total, bulk = np.concatenate(components), np.concatenate(totals), np.concatenate(bulks)
    inside = np.linalg.norm(component, axis=1)
    fraction = np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)
    return xr.Dataset(
        {
            "component": (("step", "mode"), component, {"long_name": "Component of the gradient on v_i"}),
            "gradient_norm": ("step", total, {"long_name": "Norm of the gradient"}),
            "inside_norm": ("step", inside, {"long_name": "Norm inside the span of the eigenvectors"}),
            "bulk_norm": ("step", bulk, {"long_name": "Norm outside the span of the eigenvectors"}),
            "dominant_fraction": ("step", fraction, {"long_name": "Dominant fraction of the gradient"}),
        },
        {"step": checkpoints.step, "mode": eigs.mode},
        dict(checkpoints.attrs),
    )


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
    for start in range(0, len(steps), 256):
        for row, params in enumerate(trajectory.isel(step=slice(start, start + 256)).values, start):
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
