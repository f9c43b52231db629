"""What a classifier of points in the plane answers, all over the plane."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from landscape.checkpoints import batches, matched


def decision_regions(
    objective, checkpoints: xr.Dataset, *, half_width: float | None = None, n_points: int = 201
) -> xr.Dataset:
    """Class with the largest output at each point of a grid, for each checkpoint.

    Parameters
    ----------
    objective : landscape.Objective
        Of a classifier of two inputs whose outputs are (P, class).
    checkpoints : xarray.Dataset
        ``params`` (step, param).
    half_width : float, optional
        The grid reaches from −half_width to half_width along both inputs; by default a little beyond the samples of the
        objective.
    n_points : int
        Points along each.

    Returns
    -------
    xarray.Dataset
        ``predicted`` (step, y, x), the class; -1 where an output is not finite. ``margin`` (step, y, x), by how much
        the largest output exceeds the second. Coordinates ``x``, ``y``: the first and the second input. For a single
        checkpoint, without the dim ``step``.

    Raises
    ------
    ValueError
        If the samples are not points of a plane, the outputs are no classes, or the grid is empty.
    """
    single = "step" not in checkpoints.dims
    objective, checkpoints = matched(objective, checkpoints)
    samples = next(iter(objective.batches))[0]
    if samples.ndim != 2 or samples.shape[1] != 2:
        raise ValueError(f"regions are drawn for classifiers of two inputs, got inputs {tuple(samples.shape)}")
    if half_width is None:
        half_width = 1.05 * max(float(inputs.abs().max()) for inputs, _ in objective.batches)
    if not (half_width > 0 and n_points >= 2):
        raise ValueError(f"half_width must be positive and n_points at least 2, got {half_width} and {n_points}")
    side = np.linspace(-half_width, half_width, n_points)
    points = objective.as_inputs(torch.from_numpy(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)))
    predicted, margin = [], []
    for step, params in batches(checkpoints, objective, 1, "regions"):
        with torch.no_grad():
            outputs = objective.at(step[0]).outputs(params[0], points)
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise ValueError(f"the model must answer with (P, class), got {tuple(outputs.shape)}")
        best = outputs.topk(2, dim=1)
        finite = outputs.isfinite().all(1)
        predicted.append(torch.where(finite, best.indices[:, 0], -1).cpu().numpy())
        margin.append((best.values[:, 0] - best.values[:, 1]).cpu().numpy())
    shape, dims = (len(checkpoints.step), n_points, n_points), ("step", "y", "x")
    regions = xr.Dataset(
        {
            "predicted": (dims, np.reshape(predicted, shape), {"long_name": "class with the largest output"}),
            "margin": (dims, np.reshape(margin, shape), {"long_name": "largest output less the second"}),
        },
        {"step": checkpoints.step, "y": side, "x": side},
        dict(checkpoints.attrs),
    )
    return regions.isel(step=0) if single else regions
