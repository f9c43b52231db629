"""The runs of a sweep: grids of settings as one table."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dynloss.losses import LOSSES

AXES: dict[str, Any] = {
    "loss": "dynamical_cross_entropy",
    "weighting": "sample",
    "amplitude": 70.0,
    "period": 5000,
    "learning_rate": 1.0,
    "width": 100,
    "seed": 0,
}
"""What a grid may vary, with the value of what it leaves out."""

RECORDED = ("loss", "accuracy", "validation_accuracy")
"""What the history of a run holds, and what is measured after its last update."""

TYPES = {"loss": "U32", "weighting": "U16", "width": np.int64, "seed": np.int64}


_NAN = float("nan")  # differs from itself; as the same object, it is of the same run


def table_of(grids: Mapping | Sequence[Mapping]) -> xr.Dataset:
    """All runs, each once: every combination of the values in a grid, one grid after another.

    Parameters
    ----------
    grids : mapping, or sequence of mappings
        Names of `AXES` → one value or several.

    Returns
    -------
    xarray.Dataset
        A variable (run) for each of `AXES`; amplitude and period are NaN for static losses, weighting is "" but for
        dynamical squared errors.

    Raises
    ------
    ValueError
        For other names, and values that cannot be trained with.
    """
    found: dict[tuple, None] = {}
    for grid in [grids] if isinstance(grids, Mapping) else grids:
        unknown = sorted(set(grid) - set(AXES))
        if unknown:
            raise ValueError(f"a grid varies {', '.join(AXES)}; got {', '.join(unknown)}")
        values = [_several(grid.get(name, default)) for name, default in AXES.items()]
        for one in itertools.product(*values):
            found[_checked(dict(zip(AXES, one, strict=True)))] = None
    if not found:
        raise ValueError("the grids hold no run: give at least one value of everything they vary")
    columns = zip(*found, strict=True)
    variables = {
        name: ("run", np.array(column, TYPES.get(name, float))) for name, column in zip(AXES, columns, strict=True)
    }
    return xr.Dataset(variables, {"run": np.arange(len(found))})


def _several(value) -> list:
    return [value] if isinstance(value, str) or not np.iterable(value) else list(value)


def _checked(one: dict[str, Any]) -> tuple:
    """The settings of a run in the order of `AXES`, those that do not matter for its loss left out."""
    if one["loss"] not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {one['loss']!r}")
    for name in ("learning_rate", "width", "seed", "amplitude", "period"):
        value, least = one[name], {"width": 1, "seed": 0, "amplitude": 1, "period": 2}.get(name, 0)
        whole = name in ("width", "seed", "period")
        if not isinstance(value, numbers.Real) or not np.isfinite(value) or value < least or (whole and value % 1):
            raise ValueError(f"{name} must be a {'whole ' if whole else ''}number of at least {least}, got {value!r}")
    if not one["learning_rate"] > 0:
        raise ValueError(f"learning_rate must be positive, got {one['learning_rate']}")
    if not one["loss"].startswith("dynamical"):
        one["amplitude"] = one["period"] = _NAN
    if one["loss"] != "dynamical_squared_error":
        one["weighting"] = ""
    elif one["weighting"] not in ("sample", "component"):
        raise ValueError(f'weighting must be "sample" or "component", got {one["weighting"]!r}')
    return tuple(one.values())
