"""How much of the gradient, or of the motion, lies along the top eigenvectors, and how large its parts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import MANY, in_new_figure, label_y, legend_above, log_axis, points, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLACK, GREEN, MODE_COLORS, ORANGE, SINGLE_COLUMN

SOURCE = "landscape.gradient_decomposition"
KINDS = ("fraction", "norm")
VECTORS = {
    "gradient": r"gradient norm $\|\nabla F\|$",
    "update": r"update norm $\|\Delta\theta\|$",
    "displacement": r"displacement norm",
}


def plot_gradient_decomposition(
    grads: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    kind: str | None = None,
    onsets: xr.Dataset | None = None,
    legend: bool = True,
) -> Axes | np.ndarray:
    """Shares of the gradient, the update or the displacement along the top eigenvectors, or norms of its parts.

    ``plot_gradient_decomposition(grads)`` stacks both in a new figure and returns its two axes; with `ax` or `kind`
    one of them is drawn and its Axes returned.

    Parameters
    ----------
    grads : xarray.Dataset
        `component` (step, mode), `gradient_norm` (or `update_norm`, `displacement_norm`), `inside_norm`, `bulk_norm`,
        `dominant_fraction` (step), and `component_error` (step, mode) where present, as
        `landscape.gradient_decomposition` returns them.
    ax : Axes or sequence of two Axes, optional
        Where to draw; a new figure without it.
    kind : {"fraction", "norm"}, optional
        "fraction": |cᵢ|/‖g‖ for each mode, with its error as a bar, and the dominant fraction. "norm": ‖g‖ and its
        parts inside and outside the span of the modes, on a logarithmic axis. With one axes the fraction by default.
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
            known = coordinate(grads, "step")[np.isfinite(grads[f"{_vector(grads)}_norm"])]
            if len(known):
                draw_onsets_within(one, onsets, known, text="onset" if one is axes[0] else None)
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


def _vector(grads: xr.Dataset) -> str:
    """What was decomposed."""
    if not isinstance(grads, xr.Dataset):
        return "gradient"  # and `read` says what is wrong
    return next((name for name in VECTORS if f"{name}_norm" in grads), "gradient")


def _draw_fractions(ax: Axes, grads: xr.Dataset) -> None:
    vector = _vector(grads)
    component = read(grads, "component", ("step", "mode"), source=SOURCE)
    norm = np.asarray(read(grads, f"{vector}_norm", ("step",), source=SOURCE), float)
    dominant = read(grads, "dominant_fraction", ("step",), source=SOURCE)
    error = None
    if "component_error" in grads:
        error = np.asarray(read(grads, "component_error", ("step", "mode"), source=SOURCE), float)
    step = coordinate(component, "step")
    points(
        ax, step, np.asarray(dominant, float), color=BLACK, label="all modes" if component.sizes["mode"] > 2 else "both"
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a vector that is zero has no shares
        shares = np.abs(np.asarray(component, float)) / norm[:, None]
        errors = None if error is None else error / norm[:, None]
    for i, mode in enumerate(coordinate(component, "mode")):
        color = MODE_COLORS[i % len(MODE_COLORS)]
        points(ax, step, shares[:, i], color=color, label=f"$v_{{{mode + 1}}}$")
        if errors is not None and np.isfinite(errors[:, i]).any():
            low, high = np.clip([shares[:, i] - errors[:, i], shares[:, i] + errors[:, i]], 0, 1)
            ax.vlines(step, low, high, color=color, linewidth=1.2, alpha=0.3, zorder=1.2, rasterized=len(step) > MANY)
    ax.set_ylim(-0.03, 1.03)
    label_y(ax, f"share of {vector} norm")


def _draw_norms(ax: Axes, grads: xr.Dataset) -> None:
    name = f"{_vector(grads)}_norm"
    for variable, color, text in (
        (name, BLACK, "whole"),
        ("inside_norm", ORANGE, "inside"),
        ("bulk_norm", GREEN, "outside"),
    ):
        values = read(grads, variable, ("step",), source=SOURCE)
        positive = np.asarray(values.where(values > 0), float)  # a displacement begins at zero
        points(ax, coordinate(values, "step"), positive, color=color, label=text)
    log_axis(ax)
    label_y(ax, label(grads[name], VECTORS[_vector(grads)]))
