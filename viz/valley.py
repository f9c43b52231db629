"""Width of the valley along an eigenvector, beside its harmonic estimate and the width that just holds a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from viz.axes import label_y, legend_above, log_axis, own_figure, points, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLUE, GREEN, ORANGE, THRESHOLD, VERMILION

SOURCE = "landscape.valley_width"
DASHED = THRESHOLD["linestyle"]
RISE_COLORS = (BLUE, VERMILION, GREEN, ORANGE)


@own_figure()
def plot_valley_width(
    widths: xr.Dataset,
    ax: Axes | None = None,
    *,
    mode: int = 0,
    rise: float | Sequence[float] | None = None,
    onsets: xr.Dataset | None = None,
    log: bool = False,
    legend: bool = True,
) -> Axes:
    """Measured width of the valley (points), its harmonic estimate (dotted) and the stable width (dashed).

    Where the measured width falls below the stable width, a step no longer fits in the valley.

    Parameters
    ----------
    widths : xarray.Dataset
        `width` (step, mode, rise); `harmonic_width`, `stable_width` where present, as `landscape.valley_width` returns
        them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    mode : int
        Eigenvector along which the width was measured, 0 for that of the largest eigenvalue.
    rise : float or sequence of float, optional
        Which rises of the loss to draw; by default all.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    log : bool
        Logarithmic vertical axis.
    legend : bool
        Name the lines above the panel.
    """
    width = read(widths, "width", ("step", "mode", "rise"), source=SOURCE)
    step, modes, rises = (coordinate(width, dim) for dim in width.dims)
    if mode not in modes:
        raise ValueError(f"mode must be one of {modes.tolist()}, got {mode}")
    asked = rises if rise is None else np.atleast_1d(np.asarray(rise, float))
    at_mode = widths.isel(mode=int(np.flatnonzero(modes == mode)[0]))
    entries = []
    for i, value in enumerate(asked):
        match = np.flatnonzero(np.isclose(rises, value))
        if not len(match):
            raise ValueError(f"rise must be among {rises.tolist()}, got {value}")
        at, color = at_mode.isel(rise=int(match[0])), RISE_COLORS[i % len(RISE_COLORS)]
        points(ax, step, np.asarray(at["width"], float), color=color, label=None)
        for name, linestyle in (("harmonic_width", ":"), ("stable_width", DASHED)):
            if name in widths:
                line = np.broadcast_to(np.asarray(at[name], float), step.shape)
                ax.plot(step, line, color=color, linestyle=linestyle, linewidth=0.9, zorder=1.5)
        entries.append(
            Line2D([], [], color=color, marker="o", markersize=3, linestyle="none", label=rf"$\Delta F$ = {value:g}")
        )
    for name, linestyle, text in (("harmonic_width", ":", "harmonic width"), ("stable_width", DASHED, "stable width")):
        if name in widths:
            entries.append(Line2D([], [], color="0.3", linestyle=linestyle, linewidth=0.9, label=text))
    if log:
        log_axis(ax)
    draw_onsets_within(ax, onsets, step)
    ax.margins(x=0.01)
    step_axis(ax, label(width["step"], "step"))
    label_y(ax, label(width, rf"valley width along $v_{{{mode + 1}}}$"))
    if legend:
        legend_above(ax, extra=entries)
    return ax
