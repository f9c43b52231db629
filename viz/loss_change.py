"""Change of the loss from step to step: what the motion did, and what the moving landscape did."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import SymmetricalLogLocator

from viz.axes import MANY, label_y, legend_above, own_figure, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLACK, BLUE, VERMILION

SOURCE = "landscape.loss_change"


@own_figure()
def plot_loss_change(
    change: xr.Dataset,
    ax: Axes | None = None,
    *,
    onsets: xr.Dataset | None = None,
    scale: str = "linear",
    linear_within: float | None = None,
    legend: bool = True,
) -> Axes:
    """Change of the loss at each step and its two parts.

    Parameters
    ----------
    change : xarray.Dataset
        `change`, `motion_part`, `time_part` (step), as `landscape.loss_change` returns them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    scale : {"linear", "symlog"}
        Vertical axis. "symlog" is linear within ±`linear_within` and logarithmic beyond.
    linear_within : float, optional
        By default 1e-4.
    legend : bool
        Name the lines above the panel.
    """
    if scale not in ("linear", "symlog"):
        raise ValueError(f'scale must be "linear" or "symlog", got {scale!r}')
    whole = read(change, "change", ("step",), source=SOURCE)
    step = coordinate(whole, "step")
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=0.5)
    size = 1.0 if len(step) > MANY else 2.0
    for name, color, text, larger in (
        ("change", BLACK, "whole", 1.8),  # seen around a part that is nearly all of it
        ("motion_part", BLUE, "by the motion", 1.0),
        ("time_part", VERMILION, "by the moving landscape", 1.0),
    ):
        values = np.asarray(read(change, name, ("step",), source=SOURCE), float)
        dots = {"linestyle": "none", "marker": "o", "markeredgewidth": 0, "rasterized": len(step) > MANY}
        ax.plot(step, values, markersize=larger * size, color=color, label=text, **dots)
    if scale == "symlog":
        ax.set_yscale("symlog", linthresh=linear_within or 1e-4)
        ax.yaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=linear_within or 1e-4))
    draw_onsets_within(ax, onsets, step)
    ax.margins(x=0.01)
    step_axis(ax, label(whole["step"], "step"))
    label_y(ax, label(whole, "change of the loss"))
    if legend:
        legend_above(ax)
    return ax
