"""The frozen bifurcation diagram: attractors of the descent map against one control, coloured by their period."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import label_x, label_y, legend_above, own_figure
from viz.bifurcation import dots
from viz.dataset import coordinate, label, read
from viz.style import THRESHOLD

SOURCE = "landscape.attractor_diagram"
NAMES = {
    "projection": r"projection on $v_1$",
    "loss": r"loss $F$",
    "eigenvalue": r"sharpness $\lambda_1$ on the attractor",
}


@own_figure()
def plot_attractor_diagram(
    frozen: xr.Dataset,
    ax: Axes | None = None,
    *,
    variable: str = "projection",
    against: str = "control",
    legend: bool = True,
) -> Axes:
    """Attractor of the map at each frozen value of the control, coloured by its period.

    Parameters
    ----------
    frozen : xarray.Dataset
        `projection` and `loss` (control, iterate), `orbit_period` and `eigenvalue` (control), `threshold` (control)
        where present, as `landscape.attractor_diagram` returns them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    variable : {"projection", "loss", "eigenvalue"}
        What to draw against the control; beside the eigenvalue the stability threshold, dashed.
    against : str
        Coordinate along the control for the horizontal axis, such as "phase".
    legend : bool
        Name the colours above the panel.
    """
    if variable not in NAMES:
        raise ValueError(f"variable must be one of {', '.join(NAMES)}, got {variable!r}")
    dims = ("control",) if variable == "eigenvalue" else ("control", "iterate")
    values = read(frozen, variable, dims, source=SOURCE)
    period = np.asarray(read(frozen, "orbit_period", ("control",), source=SOURCE), dtype=float)
    if against != "control" and (against not in frozen.coords or frozen[against].dims != ("control",)):
        along = [str(name) for name in frozen.coords if frozen[name].dims == ("control",)]
        raise ValueError(f"against must be one of {', '.join(along) or 'control'}, got {against!r}")
    x = coordinate(values, against)
    n_each = values.size // max(len(x), 1)
    present = dots(ax, np.repeat(x, n_each), np.ravel(values), np.repeat(period, n_each))
    if variable == "eigenvalue" and "threshold" in frozen:
        threshold = np.asarray(read(frozen, "threshold", ("control",), source=SOURCE), dtype=float)
        present += ax.plot(x, threshold, label="stability threshold", **THRESHOLD)
    ax.margins(x=0.02)
    label_x(ax, label(values[against], against))
    label_y(ax, label(values, NAMES[variable]))
    if legend:
        legend_above(ax, extra=present)
    return ax
