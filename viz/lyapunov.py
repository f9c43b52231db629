"""Lyapunov exponents along a trajectory, with the zero that divides contraction from growth."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import label_y, legend_above, own_figure, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import MODE_COLORS


@own_figure()
def plot_lyapunov_exponents(
    growth: xr.Dataset,
    ax: Axes | None = None,
    *,
    onsets: xr.Dataset | None = None,
    legend: bool = True,
) -> Axes:
    """Exponents against the step: neighbouring trajectories approach each other below zero, and part above.

    Where an exponent is −∞, at a superstable orbit, the line ends.

    Parameters
    ----------
    growth : xarray.Dataset
        `exponent` (step, mode), as `landscape.lyapunov_exponents` returns it.
    ax : Axes, optional
        Where to draw; a new figure without it.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    legend : bool
        Name the lines above the panel.
    """
    exponent = read(growth, "exponent", ("step", "mode"), source="landscape.lyapunov_exponents")
    step, modes = coordinate(exponent, "step"), coordinate(exponent, "mode")
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0.5)
    for i, mode in enumerate(modes):
        color, text = MODE_COLORS[i % len(MODE_COLORS)], rf"$\Lambda_{{{mode + 1}}}$"
        ax.plot(step, np.asarray(exponent[:, i], float), color=color, linewidth=0.9, label=text)
    draw_onsets_within(ax, onsets, step)
    ax.margins(x=0.01)
    step_axis(ax, label(exponent["step"], "step"))
    label_y(ax, label(exponent, "Lyapunov exponent"))
    if legend:
        legend_above(ax)
    return ax
