"""The Hessian's top eigenvalues along a run, against the stability threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import label_y, legend_above, own_figure, points, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import MODE_COLORS, THRESHOLD


@own_figure()
def plot_eigenvalues(
    eigs: xr.Dataset,
    ax: Axes | None = None,
    *,
    onsets: xr.Dataset | None = None,
    modes: Sequence[int] | None = None,
    threshold: bool = True,
    legend: bool = True,
) -> Axes:
    """Eigenvalues against the step, with the stability threshold dashed where the Dataset has one.

    Points are joined by a thin line that breaks where sampling pauses. Eigenpairs that did not converge or are not
    certified to be the largest are hollow.

    Parameters
    ----------
    eigs : xarray.Dataset
        `eigenvalue` (step, mode); `converged`, `certified` (step, mode) and `threshold` (step) where present, as
        `landscape.top_eigenpairs` returns them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    modes : sequence of int, optional
        Which modes to draw, 0 for the largest eigenvalue; by default all.
    threshold : bool
        Draw the stability threshold.
    legend : bool
        Name the lines above the panel.
    """
    source = "landscape.top_eigenpairs"
    eigenvalue = read(eigs, "eigenvalue", ("step", "mode"), source=source)
    step, recorded = coordinate(eigenvalue, "step"), coordinate(eigenvalue, "mode")
    doubtful = np.zeros(eigenvalue.shape, bool)
    for flag in ("converged", "certified"):
        if flag in eigs:
            doubtful |= ~np.asarray(read(eigs, flag, ("step", "mode"), source=source), dtype=bool)
    for mode in recorded if modes is None else modes:
        if mode not in recorded:
            raise ValueError(f"modes must be among {recorded.tolist()}, got {mode}: compute more with a larger k")
        i = int(np.flatnonzero(recorded == mode)[0])
        color = MODE_COLORS[i % len(MODE_COLORS)]
        values = np.asarray(eigenvalue.isel(mode=i), dtype=float)
        points(ax, step, values, color=color, label=rf"$\lambda_{{{mode + 1}}}$", open_at=doubtful[:, i])
    if doubtful.any():
        hollow = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.6}
        ax.plot([], [], color="0.4", linestyle="none", label="not certified", **hollow)
    if threshold and "threshold" in eigs:
        limit = read(eigs, "threshold", ("step",), source=source)
        if np.isfinite(limit).any():
            ax.plot(step, limit, label="stability threshold", **THRESHOLD)
    draw_onsets_within(ax, onsets, step)
    ax.margins(x=0.01)
    step_axis(ax, label(eigenvalue["step"], "step"))
    label_y(ax, label(eigenvalue, "Hessian eigenvalue"))
    if legend:
        legend_above(ax)
    return ax
