"""Onsets of instability: their lines in other figures, and the curvature at each beside the threshold."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import label_x, label_y, legend_above, own_figure, step_axis
from viz.dataset import coordinate, read
from viz.style import BLACK, ONSET, SKY, THRESHOLD, VERMILION

SOURCE = "landscape.find_onsets"


@own_figure(height=1.2)
def plot_onsets(onsets: xr.Dataset, ax: Axes | None = None, *, text: str | None = "onset", **line_kwargs) -> Axes:
    """Vertical lines at the onsets.

    Parameters
    ----------
    onsets : xarray.Dataset
        `onset_step` (onset), as `landscape.find_onsets` returns it.
    ax : Axes, optional
        Where to draw; a new figure without it.
    text : str, optional
        Entry in the legend; none without it.
    **line_kwargs
        For `Axes.axvline`.
    """
    steps = np.asarray(read(onsets, "onset_step", ("onset",), source=SOURCE), dtype=float)
    if not ax.has_data():
        ax.set_yticks([])
    for i, step in enumerate(steps[np.isfinite(steps)]):
        ax.axvline(step, label=text if i == 0 else None, **(ONSET | line_kwargs))
    if not ax.get_xlabel():
        step_axis(ax)
    return ax


def draw_onsets_within(ax: Axes, onsets: xr.Dataset | None, x: np.ndarray, text: str | None = "onset") -> None:
    """Draw those onsets that lie in the range of the steps `x`, so that they do not widen the axis."""
    if onsets is None:
        return
    steps = read(onsets, "onset_step", ("onset",), source=SOURCE)
    plot_onsets(onsets.isel(onset=np.flatnonzero((steps >= np.min(x)) & (steps <= np.max(x)))), ax, text=text)


@own_figure(height=2.2)
def plot_onset_curvature(curved: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Sharpness at each onset in units of the stability threshold: at the midpoint, and at the two iterates.

    Parameters
    ----------
    curved : xarray.Dataset
        `eigenvalue` (midpoint), `eigenvalue_sharper`, `eigenvalue_flatter`, `threshold` (onset), as
        `landscape.onset_curvature` returns them; placed by `onset_step` (onset) where there is one.
    ax : Axes, optional
        Where to draw; a new figure without it.
    """
    source = "landscape.onset_curvature"
    named = {
        name: np.asarray(read(curved, name, ("onset",), source=source), dtype=float)
        for name in ("eigenvalue", "eigenvalue_sharper", "eigenvalue_flatter", "threshold")
    }
    threshold = named.pop("threshold")
    placed = "onset_step" in curved
    x = coordinate(curved["onset_step"] if placed else curved["eigenvalue"], "onset")
    if placed:
        x = np.asarray(read(curved, "onset_step", ("onset",), source=source), dtype=float)
    ratio = {name: values / threshold for name, values in named.items()}
    ax.vlines(x, ratio["eigenvalue_flatter"], ratio["eigenvalue_sharper"], color="0.75", linewidth=0.8, zorder=1)
    for name, marker, color, text in (
        ("eigenvalue_sharper", "^", VERMILION, "sharper iterate"),
        ("eigenvalue", "o", BLACK, "midpoint"),
        ("eigenvalue_flatter", "v", SKY, "flatter iterate"),
    ):
        ax.plot(x, ratio[name], linestyle="none", marker=marker, markersize=4, color=color, label=text)
    ax.axhline(1, label="stability threshold", **THRESHOLD)
    ax.margins(x=0.1)
    if placed:
        step_axis(ax, "step of the onset")
    else:
        ax.set_xticks(x)
        label_x(ax, "onset")
    label_y(ax, r"$\lambda_1$ / stability threshold")
    legend_above(ax)
    return ax
