"""Accuracy of many runs: against the width of the network, and over amplitude and period of the oscillation."""

from __future__ import annotations

import numpy as np
import xarray as xr
from cmcrameri import cm
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from viz.axes import label_x, label_y, own_figure, sentence
from viz.dataset import coordinate, label, read
from viz.style import BLACK

SOURCE = "dynloss.sweep, averaged over seeds,"


@own_figure()
def plot_accuracy(
    accuracies: xr.Dataset, ax: Axes | None = None, *, along: str = "width", text: str | None = None, **kwargs
) -> Axes:
    """Mean accuracy against the width of the network, or another setting, with its standard error.

    Parameters
    ----------
    accuracies : xarray.Dataset
        `accuracy` (width), and `standard_error` (width) where it is known: results of `dynloss.sweep`, averaged over
        seeds.
    ax : Axes, optional
        Where to draw; a new figure without it. Several losses can be drawn into one.
    along : str
        The dim of the settings.
    text : str, optional
        Entry in the legend.
    **kwargs
        For `Axes.errorbar`: color, marker, …
    """
    mean = read(accuracies, "accuracy", (along,), source=SOURCE)
    error = read(accuracies, "standard_error", (along,), source=SOURCE) if "standard_error" in accuracies else None
    x = coordinate(mean, along)
    options = {"marker": "o", "markersize": 4, "linewidth": 0.9, "elinewidth": 0.9, "label": text}
    ax.errorbar(x, mean, error, **options | kwargs)
    ax.set_xscale("log")
    drawn = [bars.lines[0].get_xdata() for bars in ax.containers if isinstance(bars, ErrorbarContainer)]
    ax.xaxis.set_major_locator(FixedLocator(np.unique(np.concatenate(drawn))))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(FixedLocator([]))
    label_x(ax, along.replace("_", " "))
    label_y(ax, label(mean, "accuracy"))
    if text is not None:
        ax.legend()
    return ax


@own_figure(height=2.6)
def plot_phase_diagram(
    plane: xr.Dataset,
    ax: Axes | None = None,
    *,
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> Axes:
    """Accuracy over amplitude and period of the oscillation, a cell for each pair; a line parts better from worse.

    Parameters
    ----------
    plane : xarray.Dataset
        `accuracy` (amplitude, period), and `static_accuracy` (), that of the static loss, where it is known: results of
        `dynloss.sweep`, averaged over seeds.
    ax : Axes, optional
        Where to draw; a new figure without it.
    limits : tuple of float, optional
        Accuracies at the ends of the colours; give several panels the same ones, and their colours mean the same.
    colorbar : bool
        Draw a colourbar beside `ax`.
    """
    accuracy = read(plane, "accuracy", ("amplitude", "period"), source=SOURCE)
    amplitude, period = coordinate(accuracy, "amplitude"), coordinate(accuracy, "period")
    low, high = limits or (float(accuracy.min()), float(accuracy.max()))
    values = np.ma.masked_invalid(np.asarray(accuracy, dtype=float))
    cells = ax.pcolormesh(values, vmin=low, vmax=high, cmap=cm.lapaz, rasterized=False)
    if "static_accuracy" in plane:
        _outline(ax, values > float(plane["static_accuracy"]))
    for axis, settings in ((ax.xaxis, period), (ax.yaxis, amplitude)):
        axis.set_major_locator(FixedLocator(np.arange(len(settings)) + 0.5))
        axis.set_ticklabels([f"{value:g}" for value in settings])
    ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(length=0)
    label_x(ax, "period $T$ (steps)")
    label_y(ax, "amplitude $A$")
    if colorbar:
        bar = ax.figure.colorbar(cells, ax=ax, pad=0.02, aspect=25)
        bar.set_label(sentence(label(accuracy, "accuracy")))
    return ax


def _outline(ax: Axes, better: np.ma.MaskedArray) -> None:
    """Lines along the borders between cells that are better and cells that are not."""
    better = np.asarray(np.ma.filled(better, False))
    rows, columns = np.nonzero(better[:, 1:] != better[:, :-1])
    ax.vlines(columns + 1, rows, rows + 1, color=BLACK, linewidth=1.2)
    rows, columns = np.nonzero(better[1:] != better[:-1])
    ax.hlines(rows + 1, columns, columns + 1, color=BLACK, linewidth=1.2)
