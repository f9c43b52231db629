"""A run's history: class weights, loss, accuracy and other scalars of every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from viz.axes import MANY, in_new_figure, label_y, legend_above, log_axis, step_axis
from viz.dataset import coordinate, label, read
from viz.onsets import draw_onsets_within
from viz.style import BLACK, CLASS_COLORS, SINGLE_COLUMN, SKY

SOURCE = "open_run(…).history"
PANELS = ("class_weight", "loss", "accuracy")
FALLBACK = {
    "class_weight": r"class weight $\Gamma_i$",
    "loss": r"loss $F$",
    "accuracy": "accuracy",
    "gradient_norm": r"gradient norm $\|\nabla F\|$",
    "update_norm": r"update norm $\|\Delta\theta\|$",
    "update_cosine": r"cosine of successive updates",
}
LOGARITHMIC = {"loss", "gradient_norm", "update_norm"}


def plot_history(
    history: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    variable: str | Sequence[str] | None = None,
    onsets: xr.Dataset | None = None,
    log: bool | None = None,
    legend: bool = True,
    **line_kwargs,
) -> Axes | np.ndarray:
    """Quantities of every step: one in an axes, or several in stacked panels.

    ``plot_history(history)`` stacks those of class weights, loss and accuracy that the run has in a new figure and
    returns its axes; ``plot_history(history, ax, variable="loss")`` draws one quantity and returns `ax`.

    Parameters
    ----------
    history : xarray.Dataset
        Variables over `step`, as `open_run(…).history` holds them; `class_weight` also over `class`.
    ax : Axes or sequence of Axes, optional
        One axes for one variable (by default the loss), or as many as there are variables. A new figure without it.
    variable : str or sequence of str, optional
        What to draw. A name gives one panel and returns its Axes; a sequence gives an array of them. "accuracy" also
        draws `validation_accuracy` where it was recorded.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    log : bool, optional
        Logarithmic vertical axis; by default for losses and norms.
    legend : bool
        Name the lines above each panel.
    **line_kwargs
        For `Axes.plot`.
    """
    if not isinstance(history, xr.Dataset):
        raise TypeError(f"history must be an xarray.Dataset as {SOURCE} holds it, got {type(history).__name__}")
    if variable is None and isinstance(ax, Axes):
        variable = "loss"
    names = [variable] if isinstance(variable, str) else list(variable or [n for n in PANELS if n in history])
    if not names:
        read(history, "loss", ("step",), source=SOURCE)

    def draw(axes: Sequence[Axes]) -> np.ndarray:
        for one, name in zip(axes, names, strict=True):
            _draw_one(one, history, name, line_kwargs)
            draw_onsets_within(one, onsets, coordinate(history, "step"), text="onset" if one is axes[0] else None)
            if log or (log is None and name in LOGARITHMIC):
                log_axis(one)
            if legend:
                legend_above(one)
        return np.asarray(axes)

    if ax is None:
        axes = in_new_figure(draw, len(names), SINGLE_COLUMN, 0.5 + 1.2 * len(names))
    else:
        given = np.ravel(ax)
        if len(given) != len(names):
            raise ValueError(f"ax must hold one axes for each of {names}, got {len(given)}")
        axes = draw(given)
    return axes[0] if isinstance(variable, str) else axes


def _draw_one(ax: Axes, history: xr.Dataset, name: str, line_kwargs: dict) -> None:
    dims = ("step", "class") if name == "class_weight" else ("step",)
    values = read(history, name, dims, source=SOURCE)
    step = coordinate(values, "step")
    options = {"linewidth": 0.9, "rasterized": len(step) > MANY} | line_kwargs
    if name == "class_weight":
        n_classes = values.sizes["class"]
        for i, which in enumerate(coordinate(values, "class")):
            look = {"color": CLASS_COLORS[i % len(CLASS_COLORS)]}
            if n_classes <= 4:  # classes of equal weight lie on each other: a wider line stays visible under the next
                look["linewidth"] = 0.8 + 0.5 * (n_classes - 1 - i)
            ax.plot(step, values.isel({"class": i}), label=f"class {which}", **(options | look | line_kwargs))
    elif name == "accuracy" and "validation_accuracy" in history:
        validation = read(history, "validation_accuracy", ("step",), source=SOURCE)
        ax.plot(step, validation, label="validation", **({"color": SKY} | options))
        ax.plot(step, values, label="training", **({"color": BLACK} | options))
        values = values.drop_attrs(deep=False)  # one label for both
    else:
        ax.plot(step, values, **({"color": BLACK} | options))
    ax.margins(x=0.01)
    step_axis(ax, label(values["step"], "step"))
    label_y(ax, label(values, FALLBACK.get(name, name)))
