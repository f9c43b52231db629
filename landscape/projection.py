"""Where trajectories lie on a plane, and how far off it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.checkpoints import batches, matched, rows_at_a_time


def project(objective, checkpoints: xr.Dataset, plane: xr.Dataset) -> xr.Dataset:
    """Where a trajectory lies on a plane, how far off it, and its own loss beside the plane's.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param).
    plane : xarray.Dataset
        A result of `plane_slice`.

    Returns
    -------
    xarray.Dataset
        ``alpha``, ``beta``, ``off_plane``: distances of each state from the plane's centre along its axes, and from the
        plane; ``loss``: F(θ_t, t) of the state itself; ``plane_loss``: the plane's loss at (alpha, beta), interpolated
        linearly, NaN outside the grid; all (step).
    """
    objective, checkpoints = matched(objective, checkpoints)
    plane = plane.transpose("axis", "alpha", "beta", "param", ..., missing_dims="ignore")
    center, axes = objective.as_params(plane.center.values), objective.as_params(plane.direction.values)
    coordinates, distances, losses = [], [], []
    for steps, params in batches(checkpoints, objective, rows_at_a_time(64, objective.n_params), "projection"):
        moved = params - center
        inside = moved @ axes.T
        coordinates.append(inside.cpu().numpy())
        distances.append((moved - inside @ axes).norm(dim=-1).cpu().numpy())
        losses.append(objective.losses(params, steps).cpu().numpy())
    alpha, beta = np.concatenate(coordinates).T
    at = {
        name: xr.DataArray(_onto_border(values, plane[name].values), dims="step")
        for name, values in (("alpha", alpha), ("beta", beta))
    }
    plane_loss = plane.loss.reset_coords(drop=True).interp(at).values
    return xr.Dataset(
        {
            "alpha": ("step", alpha, dict(plane.alpha.attrs)),
            "beta": ("step", beta, dict(plane.beta.attrs)),
            "off_plane": ("step", np.concatenate(distances), {"long_name": "Distance from the plane"}),
            "loss": ("step", np.concatenate(losses), {"long_name": "Loss"}),
            "plane_loss": ("step", plane_loss, {"long_name": "Loss on the plane"}),
        },
        {"step": checkpoints.step},
        dict(checkpoints.attrs),
    )


def _onto_border(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """`values` with those that only rounding puts outside the grid moved onto its border."""
    inside = values.clip(grid.min(), grid.max())
    return np.where(np.abs(values - inside) <= 1e-6 * np.ptp(grid), inside, values)
