"""The loss over a plane as a surface in three dimensions, with the states of a run on it."""

from __future__ import annotations

import numpy as np
import xarray as xr
from cmcrameri import cm
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from viz.axes import own_figure, sentence
from viz.dataset import coordinate, label, read
from viz.style import BLACK

PLANE, PATH = "landscape.plane_slice", "landscape.project"
LIFT = 0.012
"""Share of the drawn height by which states stand above the surface, so that it does not hide them."""


@own_figure(height=2.9, projection="3d")
def plot_surface(
    plane: xr.Dataset,
    ax: Axes | None = None,
    *,
    path: xr.Dataset | None = None,
    scale: str = "linear",
    cap: float | None = None,
    limits: tuple[float, float] | None = None,
    view: tuple[float, float] = (38, -58),
    colorbar: bool = True,
    title: bool = True,
) -> Axes:
    """The loss over alpha and beta as a surface, and states of a run on it.

    Parameters
    ----------
    plane : xarray.Dataset
        `loss` (alpha, beta), as `landscape.plane_slice` returns it.
    ax : Axes, optional
        Three-dimensional axes to draw in; a new figure without it.
    path : xarray.Dataset, optional
        `alpha`, `beta` (step), as `landscape.project` returns them. A state stands where the surface is below it,
        interpolated linearly; those outside the plane are left out.
    scale : {"linear", "log"}
        Of heights and colours.
    cap : float, optional
        Higher losses are drawn at this height, so that a valley between steep walls is seen.
    limits : (float, float), optional
        Smallest and largest loss of the vertical axis and of the colours: give several surfaces the same ones.
    view : (float, float)
        Elevation and azimuth from which one looks, in degrees.
    colorbar : bool
        Draw a colourbar beside `ax`.
    title : bool
        Say which step the plane belongs to, where it has a `step`.

    Raises
    ------
    ValueError
        If `ax` is flat, or the scale is logarithmic and a loss is not positive.
    """
    if ax.name != "3d":
        raise ValueError('a surface needs axes made with projection="3d", e.g. by figure.add_subplot(projection="3d")')
    loss = read(plane, "loss", ("alpha", "beta"), source=PLANE)
    alpha, beta = coordinate(loss, "alpha"), coordinate(loss, "beta")
    height = heights(np.asarray(loss, dtype=float), scale, cap)
    low, high = height_range(height) if limits is None else heights(np.asarray(limits, dtype=float), scale, cap)
    norm = Normalize(low, high)
    surface = ax.plot_surface(
        *np.meshgrid(alpha, beta, indexing="ij"), height, rcount=len(alpha), ccount=len(beta), cmap=cm.lapaz, norm=norm,
        linewidth=0.1, edgecolor=(1, 1, 1, 0.25), antialiased=True, zorder=1, rasterized=True)  # fmt: skip
    ticks, texts = height_ticks(low, high, scale, cap)
    form = FuncFormatter(lambda value, _: texts[int(np.argmin(np.abs(np.asarray(ticks) - value)))])
    name = label(loss, r"loss $F$")
    if colorbar:
        bar = ax.figure.colorbar(surface, ax=ax, pad=0.1, aspect=22, shrink=0.7, ticks=ticks, format=form)
        bar.set_label(sentence(name))
        bar.minorticks_off()
    if path is not None:
        ax.computed_zorder = False
        _draw_states(ax, path, alpha, beta, height, LIFT * (high - low))
    ax.zaxis.set_major_locator(FixedLocator(ticks))
    ax.zaxis.set_major_formatter(form)
    ax.set(xlim=(alpha.min(), alpha.max()), ylim=(beta.min(), beta.max()), zlim=(low, high))
    ax.set_xlabel(sentence(label(loss["alpha"], r"$\alpha$ along $v_1$")), labelpad=-2)
    ax.set_ylabel(sentence(label(loss["beta"], r"$\beta$ along $v_2$")), labelpad=-2)
    if not colorbar:
        ax.set_zlabel(sentence(name), labelpad=-2)
    ax.tick_params(pad=-1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    ax.view_init(*view)
    span = np.ptp(alpha), np.ptp(beta)
    ax.set_box_aspect((span[0], span[1], 0.7 * max(span)), zoom=0.86)  # 1 cuts the labels of the axes
    if title and "step" in plane and plane["step"].ndim == 0:
        ax.set_title(f"step {int(plane['step']):,}")
    return ax


def _draw_states(ax: Axes, path: xr.Dataset, alpha, beta, height, lift: float) -> None:
    """States in the order of their steps, joined, coloured as `plot_path` colours them."""
    x, y = (np.asarray(read(path, name, ("step",), source=PATH), dtype=float) for name in ("alpha", "beta"))
    z = on_surface(x, y, alpha, beta, height) + lift
    ax.plot(x, y, z, color="white", linewidth=1.6, zorder=2)
    ax.plot(x, y, z, color=BLACK, linewidth=0.6, zorder=2.1)
    step = coordinate(path["alpha"], "step").astype(float)
    ax.scatter(x, y, z, c=step, cmap=cm.lajolla, s=10, edgecolors=BLACK, linewidths=0.3, depthshade=False, zorder=2.2)


def heights(loss: np.ndarray, scale: str, cap: float | None) -> np.ndarray:
    """Height at which a loss is drawn: itself or its decimal logarithm, at most that of `cap`."""
    if scale not in ("linear", "log"):
        raise ValueError(f'scale must be "linear" or "log", got {scale!r}')
    finite = loss[np.isfinite(loss)]
    if scale == "log" and finite.size and finite.min() <= 0:
        raise ValueError(f'scale "log" needs a positive loss, got a smallest value of {finite.min():g}: use "linear"')
    if cap is not None and not (np.isfinite(cap) and (not finite.size or cap > finite.min())):
        raise ValueError(f"cap must be above the smallest loss, {finite.min():g}, got {cap:g}")
    loss = np.where(np.isfinite(loss), loss, np.nan)
    loss = loss if cap is None else np.minimum(loss, cap)
    return np.log10(loss) if scale == "log" else loss


def height_range(height: np.ndarray) -> tuple[float, float]:
    """Smallest and largest finite height, never the same."""
    finite = height[np.isfinite(height)]
    if not finite.size:
        raise ValueError("no loss on this plane is finite: there is no surface to draw")
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low - 1e-6 * max(abs(low), 1e-6), high + 1e-6 * max(abs(high), 1e-6))


def height_ticks(low: float, high: float, scale: str, cap: float | None = None) -> tuple[list[float], list[str]]:
    """Heights to mark, and the loss that each stands for; the one at `cap` stands for all above it."""
    if scale == "log":
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            losses = LogLocator(subs=digits).tick_values(10**low, 10**high)
            at = np.log10(losses)
            if ((at >= low) & (at <= high)).sum() >= 3:
                break
    else:
        at = losses = MaxNLocator(5).tick_values(low, high)
    inside = (at >= low - 1e-9) & (at <= high + 1e-9)
    ticks, texts = at[inside].tolist(), [f"{value:g}" for value in losses[inside]]
    if cap is not None:
        top = float(np.log10(cap)) if scale == "log" else float(cap)
        if abs(top - high) <= 1e-9 * max(1, abs(high)):
            kept = [i for i, tick in enumerate(ticks) if top - tick > 0.08 * (high - low)]
            ticks, texts = [ticks[i] for i in kept] + [top], [texts[i] for i in kept] + [f"≥ {cap:g}"]
    return ticks, texts


def on_surface(x: np.ndarray, y: np.ndarray, alpha: np.ndarray, beta: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Height of the surface (alpha, beta) at the points (x, y), linear in each cell; NaN outside of it."""
    i = np.clip(np.searchsorted(alpha, x) - 1, 0, len(alpha) - 2)
    j = np.clip(np.searchsorted(beta, y) - 1, 0, len(beta) - 2)
    u, v = (x - alpha[i]) / (alpha[i + 1] - alpha[i]), (y - beta[j]) / (beta[j + 1] - beta[j])
    value = (1 - u) * ((1 - v) * height[i, j] + v * height[i, j + 1])
    value = value + u * ((1 - v) * height[i + 1, j] + v * height[i + 1, j + 1])
    slack = 1e-6  # rounding puts states on the border outside of it
    inside = (u >= -slack) & (u <= 1 + slack) & (v >= -slack) & (v <= 1 + slack)
    return np.where(inside, value, np.nan)
