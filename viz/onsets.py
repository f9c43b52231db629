"""Onsets of instability: their lines in other figures, and the curvature at each beside the threshold."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import label_x, label_y, legend_above, own_figure, step_axis
from viz.dataset import coordinate, read
from viz.style import BLACK, CLASS_COLORS, ONSET, SKY, THRESHOLD, VERMILION

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


@own_figure(height=2.6)
def plot_onset_sharpness(curved: xr.Dataset, ax: Axes | None = None, *, by: str | None = None) -> Axes:
    """Sharpness at onsets of runs with different learning rates, on logarithmic axes, with the stability threshold.

    Parameters
    ----------
    curved : xarray.Dataset
        `eigenvalue`, `threshold`, `learning_rate` (onset): rows of `landscape.onset_curvature` of several runs, joined,
        with the learning rate of each.
    ax : Axes, optional
        Where to draw; a new figure without it.
    by : str, optional
        Name of a variable (onset) whose values have markers and entries in the legend of their own, such as the loss.
    """
    source = "landscape.onset_curvature, with learning_rate (onset)"
    rate, sharpness, threshold = (
        np.asarray(read(curved, name, ("onset",), source=source), dtype=float)
        for name in ("learning_rate", "eigenvalue", "threshold")
    )
    names = np.full(len(rate), "onset") if by is None else np.asarray(read(curved, by, ("onset",), source=source))
    groups = {name: names == name for name in dict.fromkeys(names.tolist())}
    for (name, rows), color, marker in zip(groups.items(), cycle(CLASS_COLORS), cycle("osD^v")):
        ax.plot(rate[rows], sharpness[rows], marker, markersize=4, color=color, label=name)
    pairs = np.unique(np.stack([rate, threshold], axis=1), axis=0)
    one_curve = len(np.unique(pairs[:, 0])) == len(pairs)  # not where optimisers differ
    for i, rows in enumerate([slice(None)] if one_curve else groups.values()):
        line = np.unique(np.stack([rate[rows], threshold[rows]], axis=1), axis=0)
        ax.plot(*line.T, label=None if i else "stability threshold", **THRESHOLD, zorder=0.9)
    ax.set_xscale("log")
    ax.set_yscale("log")
    label_x(ax, r"learning rate $\eta$")
    label_y(ax, r"$\lambda_1$ at the onset")
    ax.legend()
    return ax
