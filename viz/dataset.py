"""Reading what a plot draws out of a Dataset: the variable in the order of dims asked for, and its label."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr


def read(dataset: xr.Dataset, name: str, dims: tuple[str, ...], *, source: str) -> xr.DataArray:
    """Variable `name` with its dims in the order `dims`, or an error that says what to pass instead.

    Parameters
    ----------
    dataset : xarray.Dataset
        What the user handed to a plot.
    name : str
        Variable that the plot needs.
    dims : tuple of str
        Its dims, in the order that the plot wants.
    source : str
        The call that returns such a Dataset, for the error.

    Raises
    ------
    TypeError
        `dataset` is not a Dataset.
    ValueError
        The variable is missing, or has other dims.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"this plot draws an xarray.Dataset as {source} returns it, got {type(dataset).__name__}")
    if name not in dataset:
        held = ", ".join(map(str, dataset.data_vars)) or "nothing"
        raise ValueError(f"variable {name!r} is missing: pass what {source} returns (this Dataset holds {held})")
    variable = dataset[name]
    if set(variable.dims) != set(dims):
        raise ValueError(
            f"variable {name!r} must have dims {dims}, got {variable.dims}: pass what {source} returns, "
            "with a single item selected as [item] so that its dim stays"
        )
    return variable.transpose(*dims)


def coordinate(variable: xr.DataArray | xr.Dataset, dim: str) -> np.ndarray:
    """Values of the coordinate along `dim`; the positions where it has none."""
    return np.asarray(variable[dim])


def label(variable: xr.DataArray, fallback: str, *, units: bool = True) -> str:
    """Text for an axis: attrs "long_name", else `fallback`, and attrs "units" in brackets; "v1", "v_i" as symbols."""
    text = str(variable.attrs.get("long_name") or fallback)
    text = re.sub(r"\bv_?(\d|i)\b(?!\$)", r"$v_\1$", text) if "$" not in text else text
    unit = str(variable.attrs.get("units") or "")
    return f"{text} ({unit})" if units and unit not in ("", "1", "dimensionless") else text
