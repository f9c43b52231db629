"""What plots share on their axes: a figure of their own, step axes, points that join up, legends above the panel."""

from __future__ import annotations

import functools
import textwrap
import weakref
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, MaxNLocator, StrMethodFormatter

from viz.style import SINGLE_COLUMN, style

MANY = 3000  # points in one artist from which it goes into a vector file as pixels
_ours = weakref.WeakSet()  # figures that plots made: what is added to them later keeps their style


def own_figure(width: float = SINGLE_COLUMN, height: float = 2.3, projection: str | None = None) -> Callable:
    """Let a plot called without `ax` make a figure in the project's style; axes of the user's keep their own style."""

    def wrap(plot: Callable[..., Axes]) -> Callable[..., Axes]:
        @functools.wraps(plot)
        def on_axes(dataset, ax=None, **options):
            if ax is not None and ax.get_figure(root=True) in _ours:
                with style():
                    return plot(dataset, ax, **options)
            if ax is not None:
                return plot(dataset, ax, **options)
            kind = {"projection": projection}
            return in_new_figure(lambda axes: plot(dataset, axes[0], **options), 1, width, height, subplot_kw=kind)

        return on_axes

    return wrap


def in_new_figure(
    draw: Callable,
    n_rows: int,
    width: float,
    height: float,
    ratios: Sequence[float] | None = None,
    subplot_kw: dict | None = None,
):
    """Return `draw(axes)` on stacked axes that share the horizontal axis; the figure is closed if drawing fails."""
    with style():
        figure, axes = plt.subplots(
            n_rows,
            1,
            figsize=(width, height),
            sharex=True,
            squeeze=False,
            layout="constrained",
            height_ratios=ratios,
            subplot_kw=subplot_kw,
        )
        _ours.add(figure)
        try:
            drawn = draw(axes[:, 0])
            figure.align_ylabels()
            return drawn
        except BaseException:
            plt.close(figure)
            raise


def sentence(text: str) -> str:
    """`text` with a capital first letter, unless that is a symbol."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def label_x(ax: Axes, text: str) -> None:
    """Label below `ax`, unless it shares its horizontal axis with a panel below."""
    spec = ax.get_subplotspec()
    shared = len(ax.get_shared_x_axes().get_siblings(ax)) > 1
    if not (shared and spec is not None and not spec.is_last_row()):
        ax.set_xlabel(sentence(text))


def label_y(ax: Axes, text: str) -> None:
    """Label left of `ax`, in short lines, unless it shares its vertical axis with a panel to the left."""
    spec = ax.get_subplotspec()
    shared = len(ax.get_shared_y_axes().get_siblings(ax)) > 1
    if not (shared and spec is not None and not spec.is_first_col()):
        text = sentence(text)
        ax.set_ylabel(textwrap.fill(text, 24) if "$" not in text else text)


def step_axis(ax: Axes, text: str = "step") -> None:
    """Whole steps below `ax`, thousands separated."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    label_x(ax, text)


class PlainLogFormatter(LogFormatterMathtext):
    """Labels 0.2, 1, 50 on a logarithmic axis, and powers of ten, as in 4·10⁻⁴, only where those would be long."""

    def __call__(self, x, pos=None):
        """Text for a tick at x."""
        text = super().__call__(x, pos)
        if not text or 1e-3 <= x < 1e4:
            return f"{x:g}" if text else text
        digits, power = f"{x:.0e}".split("e")
        return text if digits == "1" else rf"${digits}\times10^{{{int(power)}}}$"


def log_axis(ax: Axes) -> None:
    """Logarithmic vertical axis with plain labels."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PlainLogFormatter())
    ax.yaxis.set_minor_formatter(PlainLogFormatter())


def points(ax: Axes, x: np.ndarray, y: np.ndarray, *, color: str, label: str | None, open_at: np.ndarray | None = None):
    """Draw points at every finite (x, y), hollow at `open_at`, on a thin line that breaks where sampling pauses."""
    size = 3.0 if len(x) < 80 else 2.0 if len(x) < 600 else 1.2
    at = np.flatnonzero(pauses(x)) + 1
    ax.plot(np.insert(x.astype(float), at, np.nan), np.insert(y.astype(float), at, np.nan), color=color, linewidth=0.4,
            alpha=0.5, rasterized=len(x) > MANY)  # fmt: skip
    filled = np.ones(len(x), bool) if open_at is None else ~open_at
    marks = {"linestyle": "none", "marker": "o", "color": color, "rasterized": len(x) > MANY}
    ax.plot(x[filled], y[filled], markersize=size, markeredgewidth=0, label=label, **marks)
    if not filled.all():
        ax.plot(x[~filled], y[~filled], markersize=size + 1, markeredgewidth=0.6, markerfacecolor="white", **marks)


def pauses(x: np.ndarray, factor: float = 4) -> np.ndarray:
    """Mark the spacings (one less than `x`) that are over `factor` times both of their neighbours."""
    if len(x) < 3:
        return np.zeros(max(len(x) - 1, 0), bool)
    spacing = np.abs(np.diff(x.astype(float)))
    around = np.concatenate([[-np.inf], spacing, [-np.inf]])
    return spacing > factor * np.maximum(around[:-2], around[2:])


def legend_above(ax: Axes, extra: Sequence[Line2D] = ()) -> None:
    """Legend over the right end of `ax`, where it covers no data, in as many columns as there is room for."""
    handles, labels = ax.get_legend_handles_labels()
    entries = {line.get_label(): line for line in extra} | dict(zip(labels, handles, strict=True))
    if not entries:
        return
    inches = ax.get_position().width * ax.get_figure(root=True).get_figwidth()
    columns = min(len(entries), 4 if max(map(len, entries)) < 11 else 3) if inches < 4 else min(len(entries), 7)
    legend = ax.legend(entries.values(), entries.keys(), loc="lower right", bbox_to_anchor=(1, 1), ncols=columns)
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(max(handle.get_markersize(), 3.5))
            handle.set_linewidth(max(handle.get_linewidth(), 0.8))
