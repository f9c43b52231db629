"""Sections of the loss: along a line, on a plane, and the path of a run on that plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from cmcrameri import cm
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from viz.axes import PlainLogFormatter, label_x, label_y, log_axis, own_figure, sentence
from viz.dataset import coordinate, label, read
from viz.style import BLACK, MISSING, SINGLE_COLUMN

HALO = [withStroke(linewidth=1.6, foreground="white")]  # lines seen on dark and on light ground
PLANE, PATH, LINE = "landscape.plane_slice", "landscape.project", "landscape.line_slice"


@own_figure(height=2.7)
def plot_plane_slice(
    plane: xr.Dataset,
    ax: Axes | None = None,
    *,
    levels: int | Sequence[float] = 24,
    scale: str = "linear",
    lines: bool = True,
    colorbar: bool = True,
    equal: bool = True,
    title: bool = True,
) -> Axes:
    """Filled contours of the loss on a plane; its centre is marked, and hatched grey is where the loss is not finite.

    Rows of planes are best drawn in ``plt.subplots(…, layout="compressed")``, which knows of equal units.

    Parameters
    ----------
    plane : xarray.Dataset
        `loss` (alpha, beta), as `landscape.plane_slice` returns it.
    ax : Axes, optional
        Where to draw; a new figure without it.
    levels : int or sequence of float
        About how many levels between the smallest and the largest loss, or the levels themselves: give several panels
        the same ones, and their colours mean the same.
    scale : {"linear", "log"}
        Spacing of the levels and of the colours.
    lines : bool
        Draw thin lines at the levels.
    colorbar : bool
        Draw a colourbar beside `ax`.
    equal : bool
        One unit of length along both axes, as distances along unit vectors are.
    title : bool
        Say which step the plane belongs to, where it has a `step`.
    """
    if scale not in ("linear", "log"):
        raise ValueError(f'scale must be "linear" or "log", got {scale!r}')
    loss = read(plane, "loss", ("beta", "alpha"), source=PLANE)
    alpha, beta = coordinate(loss, "alpha"), coordinate(loss, "beta")
    values = np.ma.masked_invalid(np.asarray(loss, dtype=float))
    levels, extend = _levels(values, levels, scale)
    norm = (LogNorm if scale == "log" else Normalize)(levels[0], levels[-1])
    size = (np.ptp(alpha), np.ptp(beta))
    hatched = {"facecolor": MISSING, "edgecolor": "0.65", "hatch": "////", "linewidth": 0, "zorder": 0}
    ax.add_patch(Rectangle((alpha.min(), beta.min()), *size, **hatched))
    if values.count():
        filled = ax.contourf(alpha, beta, values, levels=levels, norm=norm, cmap=cm.lapaz, extend=extend)
        if lines:
            ax.contour(alpha, beta, values, levels=levels, colors="white", linewidths=0.3, alpha=0.5)
        if colorbar:
            ticks = LogLocator(subs=(1, 2, 3, 5)) if scale == "log" else MaxNLocator(6)
            form = PlainLogFormatter(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)) if scale == "log" else None
            bar = ax.figure.colorbar(
                filled, ax=ax, pad=0.02, aspect=25, ticks=ticks, format=form, spacing="proportional"
            )
            bar.set_label(sentence(label(loss, r"loss $F$")))
            bar.minorticks_off()
    ax.plot(0, 0, marker="+", markersize=6, color=BLACK, markeredgewidth=1.0, zorder=3)
    ax.set(xlim=(alpha.min(), alpha.max()), ylim=(beta.min(), beta.max()))
    if equal:
        ax.set_aspect("equal")
    label_x(ax, label(loss["alpha"], r"$\alpha$ along $v_1$"))
    label_y(ax, label(loss["beta"], r"$\beta$ along $v_2$"))
    if title and "step" in plane and plane["step"].ndim == 0:
        ax.set_title(f"step {int(plane['step']):,}")
    return ax


def _levels(values: np.ma.MaskedArray, levels, scale: str) -> tuple[np.ndarray, str]:
    """Levels to draw, and at which ends the surface goes beyond them."""
    low, high = (float(values.min()), float(values.max())) if values.count() else (0.5, 1.0)
    if scale == "log" and low <= 0:
        raise ValueError(f'scale "log" needs a positive loss, got a smallest value of {low:g}: use scale="linear"')
    if np.ndim(levels) == 0:
        if not low < high:
            low, high = low - 1e-6 * max(abs(low), 1e-6), high + 1e-6 * max(abs(high), 1e-6)
        n = int(levels)
        levels = np.geomspace(low, high, n) if scale == "log" else MaxNLocator(n).tick_values(low, high)
    else:
        levels = np.asarray(levels, dtype=float)
    beyond = (low < levels[0], high > levels[-1])
    return levels, {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]


@own_figure(height=2.7)
def plot_path(
    path: xr.Dataset,
    ax: Axes | None = None,
    *,
    color_by: str = "step",
    line: bool = True,
    colorbar: bool = False,
    size: float = 10,
) -> Axes:
    """States of a run projected on a plane, joined in order; a ring at the first, a square at the last.

    Parameters
    ----------
    path : xarray.Dataset
        `alpha`, `beta`, and `off_plane` (step), as `landscape.project` returns them.
    ax : Axes, optional
        Where to draw, such as the axes of `plot_plane_slice`; a new figure without it.
    color_by : {"step", "off_plane"}
        Colour of the points: the order in time, or the distance from the plane.
    line : bool
        Join successive states.
    colorbar : bool
        Draw a colourbar of the points' colours.
    size : float
        Area of the points, in points².
    """
    if color_by not in ("step", "off_plane"):
        raise ValueError(f'color_by must be "step" or "off_plane", got {color_by!r}')
    alpha, beta = (read(path, name, ("step",), source=PATH) for name in ("alpha", "beta"))
    color = alpha["step"] if color_by == "step" else read(path, "off_plane", ("step",), source=PATH)
    if line:
        ax.plot(alpha, beta, color=BLACK, linewidth=0.5, zorder=2, path_effects=HALO)
    dots = ax.scatter(
        alpha, beta, c=np.asarray(color, float), cmap=cm.lajolla, s=size, edgecolors=BLACK, linewidths=0.3, zorder=2.5
    )
    ends = {"linestyle": "none", "markerfacecolor": "none", "markersize": np.sqrt(size) + 3, "path_effects": HALO}
    for at, marker in ((0, "o"), (-1, "s")):
        ax.plot(alpha[at], beta[at], marker=marker, markeredgecolor=BLACK, markeredgewidth=0.7, zorder=2.4, **ends)
    if colorbar:
        fallback = {"step": "step", "off_plane": "distance from the plane"}[color_by]
        whole = {"ticks": MaxNLocator(5, integer=True), "format": StrMethodFormatter("{x:,.0f}")}
        bar = ax.figure.colorbar(dots, ax=ax, pad=0.02, aspect=25, **(whole if color_by == "step" else {}))
        bar.set_label(sentence(label(color, fallback)))
    if not ax.get_xlabel():
        label_x(ax, label(alpha, r"$\alpha$ along $v_1$"))
    if not ax.get_ylabel():
        label_y(ax, label(beta, r"$\beta$ along $v_2$"))
    return ax


@own_figure(width=SINGLE_COLUMN, height=2.0)
def plot_line_slice(line: xr.Dataset, ax: Axes | None = None, *, log: bool = False, **line_kwargs) -> Axes:
    """Loss along a line; the point it was taken through is marked.

    Parameters
    ----------
    line : xarray.Dataset
        `loss` (alpha), as `landscape.line_slice` returns it.
    ax : Axes, optional
        Where to draw; a new figure without it.
    log : bool
        Logarithmic vertical axis.
    **line_kwargs
        For `Axes.plot`.
    """
    loss = read(line, "loss", ("alpha",), source=LINE)
    ax.plot(coordinate(loss, "alpha"), loss, **({"color": BLACK} | line_kwargs))
    ax.axvline(0, color="0.8", linewidth=0.6, zorder=0.5)
    if log:
        log_axis(ax)
    label_x(ax, label(loss["alpha"], r"distance $\alpha$"))
    label_y(ax, label(loss, r"loss $F$"))
    return ax
