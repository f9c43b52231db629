"""Two-dimensional sections of the loss, the paths of trajectories on them, and their re-weighting over time."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.checkpoints import batches, rows


def plane_slice(
    objective,
    checkpoint: xr.Dataset,
    directions: xr.Dataset | xr.DataArray | np.ndarray,
    *,
    half_width: float | tuple[float, float] = 1.0,
    n_points: int | tuple[int, int] = 51,
    step: int | None = None,
    terms: bool = False,
) -> xr.Dataset:
    """Loss F(θ + α d_0 + β d_1, t) on a grid around one checkpoint, with α and β distances along unit vectors.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoint : xarray.Dataset
        One row of checkpoints, e.g. ``run.checkpoints.sel(step=9050)``: the centre of the plane.
    directions : xarray.Dataset, xarray.DataArray or numpy.ndarray
        Two eigenpairs (``eigs.sel(step=9050).isel(mode=[0, 1])``), or an array (2, param). They are scaled to unit
        length and, where they are not orthogonal, the second is made so (and attrs["orthogonalised"] is then 1).
    half_width : float or (float, float)
        The grid spans [−half_width, half_width] along each direction, in parameter distance.
    n_points : int or (int, int)
        Grid points along α and β; odd numbers put one at the centre.
    step : int, optional
        Evaluate the loss at this step instead of the checkpoint's own.
    terms : bool
        Keep the class losses, so that `reweight` gives the plane at any other phase.

    Returns
    -------
    xarray.Dataset
        ``loss`` (alpha, beta); ``term_loss`` (class, alpha, beta) with `terms`; ``direction`` (axis, param); ``center``
        (param); scalar coordinate ``step``. Non-finite losses are kept as they are.

    Raises
    ------
    ValueError
        If the checkpoint has several rows, directions do not fit or are parallel, or the loss has no terms to keep.
    """
    if "step" in checkpoint.dims:
        raise ValueError("plane_slice needs one checkpoint, e.g. checkpoints.sel(step=9050); this has a dim step")
    center = rows(checkpoint, objective).params.isel(step=0)
    step = int(checkpoint.step) if step is None else step
    unit, orthogonalised = _orthonormal(_direction_array(directions, objective.n_params))
    if terms and not objective.has_terms:
        raise ValueError("terms=True needs a loss with terms(outputs, targets) and class_weights(step)")
    (width_a, width_b), (n_a, n_b) = _pair(half_width), _pair(n_points)
    if not (width_a > 0 and width_b > 0 and n_a >= 2 and n_b >= 2):
        raise ValueError(f"half_width must be positive and n_points at least 2, got {half_width} and {n_points}")
    alpha, beta = _grid(width_a, int(n_a)), _grid(width_b, int(n_b))
    values = objective.plane_losses(center.values, unit, alpha, beta, step).cpu().numpy()
    weights = objective.class_weights(step).cpu().numpy() if objective.has_terms else np.ones(1)
    plane = xr.Dataset(
        {
            "loss": (("alpha", "beta"), np.tensordot(weights, values, 1), {"long_name": "Loss"}),
            "direction": (("axis", "param"), unit),
            "center": ("param", center.values),
        },
        {
            "alpha": ("alpha", alpha, {"long_name": "Distance along direction 1"}),
            "beta": ("beta", beta, {"long_name": "Distance along direction 2"}),
            "step": step,
        },
        {**checkpoint.attrs, "orthogonalised": int(orthogonalised), "center_step": int(checkpoint.step)},
    )
    if isinstance(directions, xr.Dataset):
        modes = np.atleast_1d(directions.mode.values)
        for name, mode in zip(("alpha", "beta"), modes, strict=True):
            plane[name].attrs["long_name"] = f"Distance along v{mode + 1}"
    if terms:
        plane["term_loss"] = (("class", "alpha", "beta"), values, {"long_name": "Class loss"})
        plane["class_weight"] = ("class", weights)
    return plane


def reweight(plane: xr.Dataset, class_weights) -> xr.Dataset:
    """The same plane at another phase of the oscillation: Σ_i Γ_i F_i of its class terms, exact and without the model.

    Parameters
    ----------
    plane : xarray.Dataset
        A plane computed with ``terms=True``.
    class_weights : array_like
        Γ, shape (class,), e.g. ``loss.class_weights(9600)``; or (…, class), then as a DataArray with dims of its own.

    Returns
    -------
    xarray.Dataset
        `plane` with ``loss`` and ``class_weight`` replaced.
    """
    if "term_loss" not in plane:
        raise ValueError("this plane holds no class terms; compute it with plane_slice(…, terms=True)")
    if not isinstance(class_weights, xr.DataArray):
        class_weights = xr.DataArray(np.asarray(class_weights, dtype=float), dims="class")
    if class_weights.sizes.get("class") != plane.sizes["class"]:
        raise ValueError(f"class_weights must have {plane.sizes['class']} classes, got shape {class_weights.shape}")
    loss = xr.dot(class_weights, plane.term_loss, dim="class").assign_attrs(plane.loss.attrs)
    return plane.assign(loss=loss, class_weight=class_weights)


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
    checkpoints = rows(checkpoints, objective)
    plane = plane.transpose("axis", "alpha", "beta", "param", ..., missing_dims="ignore")
    center, axes = objective.as_params(plane.center.values), objective.as_params(plane.direction.values)
    coordinates, distances, losses = [], [], []
    for steps, params in batches(checkpoints, objective, 64, "projection"):
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


def _direction_array(directions, n_params: int) -> np.ndarray:
    if isinstance(directions, xr.Dataset):
        directions = directions.eigenvector
    if isinstance(directions, xr.DataArray):
        if "step" in directions.dims:
            raise ValueError("directions must be those of one step, e.g. eigs.sel(step=9050).isel(mode=[0, 1])")
        directions = directions.transpose(..., "param").values
    array = np.asarray(directions, dtype=float)
    if array.shape != (2, n_params):
        raise ValueError(
            f"plane_slice needs two directions, shape (2, {n_params}), got {array.shape}; select two modes"
        )
    return array


def _orthonormal(array: np.ndarray) -> tuple[np.ndarray, bool]:
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("directions must be finite and not zero")
    first, second = array / norms
    overlap = first @ second
    if abs(overlap) > 1 - 1e-12:
        raise ValueError("the two directions are parallel; a plane needs two different ones")
    # Twice, as one pass leaves a component where the directions were close.
    for _ in range(2):
        second = second - (first @ second) * first
        second = second / np.linalg.norm(second)
    return np.stack([first, second]), abs(overlap) > 1e-6


def _grid(half_width: float, n: int) -> np.ndarray:
    """`n` equidistant points, symmetric to the last bit: exactly 0 at the centre, where linspace may leave 1e-17."""
    return half_width * ((2 * np.arange(n) - (n - 1)) / (n - 1))


def _onto_border(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """`values` with those that only rounding puts outside the grid moved onto its border."""
    inside = values.clip(grid.min(), grid.max())
    return np.where(np.abs(values - inside) <= 1e-6 * np.ptp(grid), inside, values)


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
