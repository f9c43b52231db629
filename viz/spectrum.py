"""Density of the Hessian's eigenvalues, at one step or at several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from cmcrameri import cm
from matplotlib.axes import Axes

from viz.axes import label_x, label_y, legend_above, log_axis, own_figure
from viz.dataset import coordinate, label, read
from viz.style import BLUE

SOURCE = "landscape.spectral_density"
IN_LEGEND = 5  # steps that the legend names when there are more: their colours run from dark blue to orange in order


@own_figure()
def plot_spectral_density(
    spectrum: xr.Dataset,
    ax: Axes | None = None,
    *,
    steps: int | Sequence[int] | None = None,
    band: bool = True,
    legend: bool = True,
) -> Axes:
    """Density of eigenvalues on a logarithmic axis, with a band of a standard error to both sides.

    The dotted line is the height of the peak of a single eigenvalue; the axis ends at a tenth of it.

    Parameters
    ----------
    spectrum : xarray.Dataset
        `density` (step, eigenvalue) or, of a single step, (eigenvalue); `standard_error` and the attributes `n` and
        `width` where present, as `landscape.spectral_density` returns them.
    ax : Axes, optional
        Where to draw; a new figure without it.
    steps : int or sequence of int, optional
        Which steps to draw; by default all.
    band : bool
        Draw the standard error.
    legend : bool
        Name the lines above the panel.
    """
    if isinstance(spectrum, xr.Dataset) and "step" not in spectrum.dims:
        spectrum = spectrum.expand_dims("step")
    density = read(spectrum, "density", ("step", "eigenvalue"), source=SOURCE)
    band = band and "standard_error" in spectrum
    error = read(spectrum, "standard_error", ("step", "eigenvalue"), source=SOURCE) if band else None
    recorded, at = coordinate(density, "step"), coordinate(density, "eigenvalue")
    asked = recorded if steps is None else np.atleast_1d(steps)
    for step in asked:
        if step not in recorded:
            raise ValueError(f"steps must be among {recorded.tolist()}, got {step}")
    single = _single_eigenvalue(spectrum.attrs)
    floor = single / 10 if single else 1e-6 * float(density.max())
    named = asked[np.unique(np.linspace(0, len(asked) - 1, IN_LEGEND).round().astype(int))]
    colors = [BLUE] if len(asked) == 1 else cm.batlow(np.linspace(0, 0.75, len(asked)))
    for step, color in zip(asked, colors, strict=True):
        row = int(np.flatnonzero(recorded == step)[0])
        values = np.asarray(density.isel(step=row), float)
        text = f"step {step:,}" if step in named and "step" in density.coords else None
        ax.plot(at, values, color=color, linewidth=0.9, label=text)
        if error is not None:
            around = np.asarray(error.isel(step=row), float)
            low = np.maximum(values - around, floor / 10)
            ax.fill_between(at, low, np.maximum(values + around, low), color=color, alpha=0.25, linewidth=0)
    if single:
        ax.axhline(single, color="0.4", linestyle=":", linewidth=0.8, zorder=0.9, label="one eigenvalue")
    log_axis(ax)
    highest = float(density.sel(step=asked).max())
    if highest > floor:
        ax.set_ylim(floor, 2 * highest)
    ax.margins(x=0.01)
    label_x(ax, label(density["eigenvalue"], "Hessian eigenvalue"))
    label_y(ax, label(density, "density of eigenvalues"))
    if legend:
        legend_above(ax)
    return ax


def _single_eigenvalue(attrs: dict) -> float | None:
    """Height of the peak of one eigenvalue of n, broadened by a Gaussian."""
    if "n" not in attrs or "width" not in attrs:
        return None
    return 1 / (attrs["n"] * np.sqrt(2 * np.pi) * attrs["width"])
