"""Sharpness of the loss along a run, a panel for each definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import MANY, in_new_figure, label_y, legend_above, log_axis, points, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLACK, SINGLE_COLUMN

SOURCE = "landscape.sharpness"
DEFINITIONS = {
    "largest_eigenvalue": "largest eigenvalue",
    "trace": "trace of the Hessian",
    "keskar": "box sharpness (%)",
    "sam": "one-step sharpness",
    "average": "average sharpness",
}
LOGARITHMIC = {"keskar", "sam", "average"}


def plot_sharpness(
    sharpness: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    variable: str | Sequence[str] | None = None,
    onsets: xr.Dataset | None = None,
    log: bool | None = None,
    legend: bool = True,
) -> Axes | np.ndarray:
    """Sharpness against the step: one definition in an axes, or several in stacked panels.

    A bar spans a standard error to both sides where there is one; eigenvalues that are not certified are hollow.

    Parameters
    ----------
    sharpness : xarray.Dataset
        Variables over `step`, as `landscape.sharpness` returns them.
    ax : Axes or sequence of Axes, optional
        One axes for one definition (by default the first in the Dataset), or as many as there are. A new figure without
        it.
    variable : str or sequence of str, optional
        Which definitions to draw, by default all that the Dataset holds. A name gives one panel and returns its Axes; a
        sequence gives an array of them.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    log : bool, optional
        Logarithmic vertical axes; by default for "keskar", "sam" and "average" where all their values are positive.
    legend : bool
        Name the onsets above the first panel.
    """
    if not isinstance(sharpness, xr.Dataset):
        raise TypeError(f"sharpness must be an xarray.Dataset as {SOURCE} returns it, got {type(sharpness).__name__}")
    held = [name for name in sharpness if name in DEFINITIONS]
    if variable is None and isinstance(ax, Axes):
        variable = (held or ["largest_eigenvalue"])[0]
    names = [variable] if isinstance(variable, str) else list(variable or held or ["largest_eigenvalue"])
    for name in names:
        if name not in DEFINITIONS:
            raise ValueError(f"variable must be among {list(DEFINITIONS)}, got {name!r}")

    def draw(axes: Sequence[Axes]) -> np.ndarray:
        for one, name in zip(axes, names, strict=True):
            _draw_one(one, sharpness, name)
            draw_onsets_within(one, onsets, coordinate(sharpness, "step"), text="onset" if one is axes[0] else None)
            if log or (log is None and name in LOGARITHMIC and not (sharpness[name] <= 0).any()):
                log_axis(one)
            if legend:
                legend_above(one)
        return np.asarray(axes)

    if ax is None:
        axes = in_new_figure(draw, len(names), SINGLE_COLUMN, 0.5 + 1.2 * len(names))
    else:
        given = np.ravel(ax)
        if len(given) != len(names):
            raise ValueError(f"ax must hold one axes for each of {names}, got {len(given)}")
        axes = draw(given)
    return axes[0] if isinstance(variable, str) else axes


def _draw_one(ax: Axes, sharpness: xr.Dataset, name: str) -> None:
    variable = read(sharpness, name, ("step",), source=SOURCE)
    step, values = coordinate(variable, "step"), np.asarray(variable, float)
    doubtful = None
    if f"{name}_certified" in sharpness:
        certified = read(sharpness, f"{name}_certified", ("step",), source=SOURCE)
        doubtful = ~np.asarray(certified, bool)
    points(ax, step, values, color=BLACK, label=None, open_at=doubtful)
    if f"{name}_standard_error" in sharpness:
        error = np.asarray(read(sharpness, f"{name}_standard_error", ("step",), source=SOURCE), float)
        ax.vlines(
            step, values - error, values + error, color=BLACK, linewidth=0.8, alpha=0.5, rasterized=len(step) > MANY
        )
    ax.margins(x=0.01)
    step_axis(ax, label(variable["step"], "step"))
    label_y(ax, label(variable, DEFINITIONS[name]))
