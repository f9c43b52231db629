"""The live bifurcation diagram, along a run, and the colours of orbit periods."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import SymmetricalLogLocator

from viz.axes import MANY, label_y, legend_above, own_figure, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION

PERIODS = {
    "period 1": BLUE,
    "period 2": ORANGE,
    "period 4": GREEN,
    "other period": PURPLE,
    "aperiodic": VERMILION,
    "window not full": "0.6",
}
DOTS = {"linestyle": "none", "marker": "o", "markeredgewidth": 0}


@own_figure()
def plot_bifurcation_diagram(
    live: xr.Dataset,
    ax: Axes | None = None,
    *,
    onsets: xr.Dataset | None = None,
    scale: str = "linear",
    linear_within: float | None = None,
    legend: bool = True,
) -> Axes:
    """Change dF of the signal at every step, coloured by the period of the orbit.

    Parameters
    ----------
    live : xarray.Dataset
        `change`, `orbit_period` (step), as `landscape.bifurcation_diagram` returns them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    scale : {"linear", "symlog"}
        Vertical axis. "symlog" is linear within ±`linear_within` and logarithmic beyond: it shows the smooth descent
        and the cascade at once.
    linear_within : float, optional
        By default 1e-4.
    legend : bool
        Name the colours above the panel.
    """
    if scale not in ("linear", "symlog"):
        raise ValueError(f'scale must be "linear" or "symlog", got {scale!r}')
    source = "landscape.bifurcation_diagram"
    change = read(live, "change", ("step",), source=source)
    period = np.asarray(read(live, "orbit_period", ("step",), source=source), dtype=float)
    step, values = coordinate(change, "step"), np.asarray(change, dtype=float)
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=0.5)
    present = dots(ax, step, values, period)
    if scale == "symlog":
        ax.set_yscale("symlog", linthresh=linear_within or 1e-4)
        ax.yaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=linear_within or 1e-4))
    draw_onsets_within(ax, onsets, step)
    ax.margins(x=0.01)
    step_axis(ax, label(change["step"], "step"))
    label_y(ax, label(change, r"change of the loss $dF$"))
    if legend:
        legend_above(ax, extra=present)
    return ax


def dots(ax: Axes, x: np.ndarray, y: np.ndarray, period: np.ndarray) -> list[Line2D]:
    """Draw one group of dots a kind of orbit; return the legend's entries for those present."""
    kind = _kinds(period)
    size = 1.0 if len(x) > MANY else 2.0
    for name in PERIODS:
        at = kind == name
        if at.any():
            ax.plot(x[at], y[at], markersize=size, color=PERIODS[name], rasterized=len(x) > MANY, **DOTS)
    return period_entries(period)


def period_entries(period: np.ndarray) -> list[Line2D]:
    """Entries of a legend for the kinds of orbit among the orbit periods `period`."""
    present = set(_kinds(np.ravel(period)))
    return [
        Line2D([], [], color=PERIODS[name], label=name, markersize=4, **DOTS) for name in PERIODS if name in present
    ]


def _kinds(period: np.ndarray) -> np.ndarray:
    """Name in `PERIODS` of each orbit period."""
    kind = np.full(len(period), "other period", dtype=object)
    for number in (1, 2, 4):
        kind[period == number] = f"period {number}"
    kind[period == 0] = "aperiodic"
    kind[np.isnan(period)] = "window not full"
    return kind
