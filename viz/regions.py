"""The regions of the plane that a classifier gives to each class."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb

from viz.axes import label_x, label_y, own_figure
from viz.dataset import coordinate, read
from viz.style import CLASS_COLORS, MISSING

SOURCE = "landscape.decision_regions"
LIGHTER = 0.6
"""Share of white in the colour of a region, so that samples of the class stand out on it."""


@own_figure(height=3.2)
def plot_regions(regions: xr.Dataset, ax: Axes | None = None, *, samples: xr.Dataset | None = None) -> Axes:
    """The class that is answered at each point, in the class's colour, and the samples on it.

    Parameters
    ----------
    regions : xarray.Dataset
        `predicted` (y, x) of one step, as `landscape.decision_regions` returns it. Grey is where it is -1.
    ax : Axes, optional
        Where to draw; a new figure without it.
    samples : xarray.Dataset, optional
        `inputs` (sample, feature) and `targets` (sample), as ``run.data["training"]``.
    """
    predicted = read(regions, "predicted", ("y", "x"), source=SOURCE)
    x, y = coordinate(predicted, "x"), coordinate(predicted, "y")
    colors = [MISSING] + [tuple(LIGHTER + (1 - LIGHTER) * c for c in to_rgb(color)) for color in CLASS_COLORS]
    n_colors = len(CLASS_COLORS)
    classes = np.where(predicted < 0, -1, np.asarray(predicted) % n_colors)
    norm = BoundaryNorm(np.arange(-1.5, n_colors), n_colors + 1)
    ax.pcolormesh(x, y, classes, cmap=ListedColormap(colors), norm=norm, rasterized=True)
    if samples is not None:
        source = "open_run(…).data[…]"
        inputs = np.asarray(read(samples, "inputs", ("sample", "feature"), source=source))
        targets = np.asarray(read(samples, "targets", ("sample",), source=source))
        for target in np.unique(targets):
            own = inputs[targets == target]
            color = CLASS_COLORS[int(target) % n_colors]
            ax.plot(*own.T, "o", markersize=1.5, markeredgewidth=0, color=color, label=f"class {target}")
    ax.set_aspect("equal")
    label_x(ax, "$x_1$")
    label_y(ax, "$x_2$")
    return ax
