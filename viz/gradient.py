"""How much of the gradient lies along the top eigenvectors, and how large its parts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import in_new_figure, label_y, legend_above, log_axis, points, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLACK, GREEN, MODE_COLORS, ORANGE, SINGLE_COLUMN

SOURCE = "landscape.gradient_decomposition"
KINDS = ("fraction", "norm")


def plot_gradient_decomposition(
    grads: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    kind: str | None = None,
    onsets: xr.Dataset | None = None,
    legend: bool = True,
) -> Axes | np.ndarray:
    """Shares of the gradient along the top eigenvectors, or norms of its parts.

    ``plot_gradient_decomposition(grads)`` stacks both in a new figure and returns its two axes; with `ax` or `kind`
    one of them is drawn and its Axes returned.

    Parameters
    ----------
    grads : xarray.Dataset
        `component` (step, mode), `gradient_norm`, `inside_norm`, `bulk_norm`, `dominant_fraction` (step), as
        `landscape.gradient_decomposition` returns them.
    ax : Axes or sequence of two Axes, optional
        Where to draw; a new figure without it.
    kind : {"fraction", "norm"}, optional
        "fraction": |cᵢ|/‖g‖ for each mode and the dominant fraction. "norm": ‖g‖ and its parts inside and outside the
        span of the modes, on a logarithmic axis. With one axes the fraction by default.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    legend : bool
        Name the lines above each panel.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS} or None for both, got {kind!r}")
    if kind is None and isinstance(ax, Axes):
        kind = "fraction"
    kinds = KINDS if kind is None else (kind,)
    draw_kind = {"fraction": _draw_fractions, "norm": _draw_norms}

    def draw(axes: Sequence[Axes]) -> np.ndarray:
        for one, which in zip(axes, kinds, strict=True):
            draw_kind[which](one, grads)
            draw_onsets_within(one, onsets, coordinate(grads, "step"), text="onset" if one is axes[0] else None)
            one.margins(x=0.01)
            step_axis(one, label(grads["step"], "step"))
            if legend:
                legend_above(one)
        return np.asarray(axes)

    if ax is None:
        axes = in_new_figure(draw, len(kinds), SINGLE_COLUMN, 0.6 + 1.6 * len(kinds))
    else:
        given = np.ravel(ax)
        if len(given) != len(kinds):
            raise ValueError(f"ax must be one axes or the two for {KINDS}, got {len(given)}")
        axes = draw(given)
    return axes if kind is None else axes[0]


def _draw_fractions(ax: Axes, grads: xr.Dataset) -> None:
    component = read(grads, "component", ("step", "mode"), source=SOURCE)
    norm = read(grads, "gradient_norm", ("step",), source=SOURCE)
    dominant = read(grads, "dominant_fraction", ("step",), source=SOURCE)
    step = coordinate(component, "step")
    points(
        ax, step, np.asarray(dominant, float), color=BLACK, label="all modes" if component.sizes["mode"] > 2 else "both"
    )
    for i, mode in enumerate(coordinate(component, "mode")):
        share = np.abs(np.asarray(component.isel(mode=i), float)) / np.asarray(norm, float)
        points(ax, step, share, color=MODE_COLORS[i % len(MODE_COLORS)], label=f"$v_{{{mode + 1}}}$")
    ax.set_ylim(-0.03, 1.03)
    label_y(ax, "share of gradient norm")


def _draw_norms(ax: Axes, grads: xr.Dataset) -> None:
    for name, color, text in (
        ("gradient_norm", BLACK, "whole"),
        ("inside_norm", ORANGE, "inside"),
        ("bulk_norm", GREEN, "outside"),
    ):
        values = read(grads, name, ("step",), source=SOURCE)
        points(ax, coordinate(values, "step"), np.asarray(values, float), color=color, label=text)
    log_axis(ax)
    label_y(ax, label(grads["gradient_norm"], r"gradient norm $\|\nabla F\|$"))
