"""Sections of the loss along a line and on a plane, and what a plane becomes when the class weights move on."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
from tqdm import tqdm

from landscape.checkpoints import matched
from landscape.results import RowsInFile, RowsInMemory
from landscape.slice_values import Grid, check_quantities

SECONDS_PER_BLOCK = 2.0
"""So long is computed, about, before the values are written and the progress is shown."""


def line_slice(
    objective,
    checkpoint: xr.Dataset,
    direction: xr.Dataset | xr.DataArray | np.ndarray,
    *,
    half_width: float = 1.0,
    n_points: int = 101,
    step: int | None = None,
    steps: Sequence[int] | None = None,
    terms: bool = False,
    quantities: Sequence[str] = (),
    out: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Loss F(θ + α d, t) along a line through one checkpoint, with α the distance along the unit vector d.

    Parameters
    ----------
    direction : xarray.Dataset, xarray.DataArray or numpy.ndarray
        One eigenpair (``eigs.sel(step=9050, mode=0)``), one of `landscape.random_directions` and the like
        (``.isel(axis=0)``), or an array (param).
    half_width : float
        The line spans [−half_width, half_width], in parameter distance.
    n_points : int
        Points on it; an odd number puts one at the centre.
    objective, checkpoint, step, steps, terms, quantities, out
        As for `plane_slice`.

    Returns
    -------
    xarray.Dataset
        As `plane_slice` returns it, with ``loss`` (alpha) and one ``axis``.
    """
    return _slice(objective, checkpoint, direction, 1, half_width, n_points, step, steps, terms, quantities, out)


def plane_slice(
    objective,
    checkpoint: xr.Dataset,
    directions: xr.Dataset | xr.DataArray | np.ndarray,
    *,
    half_width: float | tuple[float, float] = 1.0,
    n_points: int | tuple[int, int] = 51,
    step: int | None = None,
    steps: Sequence[int] | None = None,
    terms: bool = False,
    quantities: Sequence[str] = (),
    out: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Loss F(θ + α d_0 + β d_1, t) on a grid around one checkpoint, with α and β distances along unit vectors.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoint : xarray.Dataset
        One row of checkpoints, e.g. ``run.checkpoints.sel(step=9050)``: the centre of the plane.
    directions : xarray.Dataset, xarray.DataArray or numpy.ndarray
        Two eigenpairs (``eigs.sel(step=9050).isel(mode=[0, 1])``), what the functions of `landscape.directions` return,
        or an array (2, param). The axes are unit vectors along them, and ``length`` keeps how long they were; where
        they are not orthogonal, the second is made so (and attrs["orthogonalised"] is then 1). Directions with a
        ``center`` of their own, such as principal axes, put the plane there.
    half_width : float or (float, float)
        The grid spans [−half_width, half_width] along each direction, in parameter distance.
    n_points : int or (int, int)
        Grid points along α and β; odd numbers put one at the centre.
    step : int, optional
        Evaluate the loss at this step instead of the checkpoint's own.
    steps : sequence of int, optional
        Evaluate it at several; ``loss`` then has the dim step. The classes' own losses are evaluated once.
    terms : bool
        Keep the class losses, so that `reweight` gives the plane at any other phase.
    quantities : sequence of str
        What else to evaluate at each point: "accuracy", "gradient_norm", "eigenvalue" (λ_1 of the Hessian, to a
        relative residual of 1e-3, not certified; NaN where it did not converge).
    out : path-like, optional
        Write the values to this Dataset file as they come, and return it read lazily. An interrupted call leaves
        ``OUT.part``, and the same call goes on from there.

    Returns
    -------
    xarray.Dataset
        ``loss`` (alpha, beta), or (step, alpha, beta) with `steps`; the `quantities` likewise (accuracy without step);
        ``term_loss`` (class, alpha, beta) with `terms`; ``class_weight`` (class) where the loss has any; ``direction``
        (axis, param), ``length`` (axis); ``center`` (param); coordinate ``step``. Losses that are not finite stay so.

    Raises
    ------
    ValueError
        If the checkpoint has several rows, directions do not fit or are parallel, the loss has no terms to keep, or a
        quantity is unknown.
    FileNotFoundError
        If the folder of `out` does not exist.
    """
    return _slice(objective, checkpoint, directions, 2, half_width, n_points, step, steps, terms, quantities, out)


def reweight(plane: xr.Dataset, class_weights) -> xr.Dataset:
    """The same plane at another phase of the oscillation: Σ_i Γ_i F_i of its class terms, exact and without the model.

    Parameters
    ----------
    plane : xarray.Dataset
        A plane, or line, computed with ``terms=True``.
    class_weights : array_like
        Γ, shape (class,), e.g. ``loss.class_weights(9600)``; or (…, class), then as a DataArray with dims of its own.

    Returns
    -------
    xarray.Dataset
        `plane` with ``loss`` and ``class_weight`` replaced.
    """
    if "term_loss" not in plane:
        raise ValueError("this plane holds no class terms; compute it with plane_slice(…, terms=True)")
    if not isinstance(class_weights, xr.DataArray):
        class_weights = xr.DataArray(np.asarray(class_weights, dtype=float), dims="class")
    if class_weights.sizes.get("class") != plane.sizes["class"]:
        raise ValueError(f"class_weights must have {plane.sizes['class']} classes, got shape {class_weights.shape}")
    terms = plane.term_loss.transpose("class", ...)
    weights = class_weights.transpose(..., "class")
    # By numpy: of the time that xarray's own dot takes, a tenth is the sum.
    values = np.tensordot(weights.values, terms.values, 1)
    loss = xr.Variable((*weights.dims[:-1], *terms.dims[1:]), values, plane.loss.attrs)
    return plane.assign(loss=loss, class_weight=class_weights)


def _slice(
    objective, checkpoint, directions, n_axes, half_width, n_points, step, steps, terms, quantities, out
) -> xr.Dataset:
    if "step" in checkpoint.dims:
        raise ValueError("a slice needs one checkpoint, e.g. checkpoints.sel(step=9050); this has a dim step")
    if terms and not objective.has_terms:
        raise ValueError("terms=True needs a loss with terms(outputs, targets) and class_weights(step)")
    if step is not None and steps is not None:
        raise ValueError("give step or steps, not both")
    objective, row = matched(objective, checkpoint)
    check_quantities(quantities, objective, int(checkpoint.step))
    checkpoint_params = row.params.values[0]
    own = directions.get("center") if isinstance(directions, xr.Dataset) else None
    center = checkpoint_params if own is None else np.asarray(own, dtype=checkpoint_params.dtype)
    array = _direction_array(directions, n_axes, objective.n_params)
    lengths = np.linalg.norm(array, axis=1)
    unit, orthogonalised = _orthonormal(array, lengths)
    names = _axis_names(directions, n_axes)
    axes = {
        axis: xr.Variable(axis, _grid(float(width), int(n)), {"long_name": f"Distance along {name}"})
        for axis, width, n, name in zip(
            ("alpha", "beta"), _each(half_width, n_axes), _each(n_points, n_axes), names, strict=False
        )
    }
    at = int(checkpoint.step) if step is None else int(step)
    if steps is not None:
        at = np.array([int(one) for one in steps])
        if not len(at):
            raise ValueError("steps must name at least one step")
    grid = Grid(objective, center, unit, {name: axis.values for name, axis in axes.items()}, at, terms, quantities)
    coords = {**axes, "step": xr.Variable(() if steps is None else "step", at)}
    static = {
        "direction": xr.Variable(("axis", "param"), unit),
        "length": xr.Variable("axis", lengths),
        "center": xr.Variable("param", center),
        **({"class_weight": grid.class_weights} if objective.has_terms else {}),
    }
    attrs = {**row.attrs, "orthogonalised": int(orthogonalised), "center_step": int(checkpoint.step)}
    attrs |= {"quantities": list(quantities)} if quantities else {}
    return _evaluate(grid, coords, static, attrs, out)


def _evaluate(grid: Grid, coords: dict, static: dict, attrs: dict, out) -> xr.Dataset:
    """The Dataset of all values of `grid`, computed in blocks along alpha."""
    if out is None:
        results = RowsInMemory(coords | static, attrs, "alpha")
    else:
        results = RowsInFile(out, coords | static, attrs | {"coordinates": "step"}, "alpha")
    n_rows, n_points = len(grid.axes["alpha"]), grid.n_points
    try:
        if results.n_rows and not _same(results, grid):
            warnings.warn(f"{results.part} holds values of another loss; they are computed anew", stacklevel=4)
            results.start_over()
        size = 1
        with tqdm(total=n_points, desc="slice", unit="point", delay=1, disable=None) as progress:
            progress.update(results.n_rows * n_points // n_rows)
            while results.n_rows < n_rows:
                start, began = results.n_rows, time.monotonic()
                stop = min(start + size, n_rows)
                results.write(grid.values(start, stop))
                progress.update((stop - start) * n_points // n_rows)
                took = max(time.monotonic() - began, 1e-9)
                size = max(1, min(4 * size, int(size * SECONDS_PER_BLOCK / took)))
        plane = results.finish()
    finally:
        results.close()
    return plane.reset_coords([name for name in static if name in plane.coords])


def _same(results: RowsInFile, grid: Grid) -> bool:
    """Whether the first and the last rows in an interrupted call's file are of this objective."""
    for row in {0, results.n_rows - 1}:
        loss = grid.losses(row, row + 1)["loss"].isel(alpha=0).values
        rounding = 1e-4 if loss.dtype == np.float32 else 1e-9
        if not np.allclose(results.read("loss", row), loss, rtol=rounding, atol=0, equal_nan=True):
            return False
    return True


def _direction_array(directions, n_axes: int, n_params: int) -> np.ndarray:
    """The directions as an array (axis, param)."""
    if isinstance(directions, xr.Dataset):
        name = "direction" if "direction" in directions else "eigenvector"
        if name not in directions:
            raise ValueError("directions must hold the variable direction or eigenvector (…, param)")
        directions = directions[name]
    if isinstance(directions, xr.DataArray):
        if "step" in directions.dims:
            raise ValueError("directions must be those of one step, e.g. eigs.sel(step=9050).isel(mode=[0, 1])")
        directions = directions.transpose(..., "param").values
    array = np.asarray(directions, dtype=float)
    array = array[None] if n_axes == 1 and array.ndim == 1 else array
    if array.shape != (n_axes, n_params):
        what = "line_slice needs one direction" if n_axes == 1 else "plane_slice needs two directions"
        raise ValueError(f"{what}, shape ({n_axes}, {n_params}), got {array.shape}; select as many modes, or axes")
    return array


def _orthonormal(array: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, bool]:
    """Unit vectors along `array`, and whether the second had to be turned."""
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("directions must be finite and not zero")
    unit = array / lengths[:, None]
    if len(unit) == 1:
        return unit, False
    first, second = unit
    overlap = first @ second
    if abs(overlap) > 1 - 1e-12:
        raise ValueError("the two directions are parallel; a plane needs two different ones")
    # Twice, as one pass leaves a component where the directions were close.
    for _ in range(2):
        second = second - (first @ second) * first
        second = second / np.linalg.norm(second)
    return np.stack([first, second]), abs(overlap) > 1e-6


def _axis_names(directions, n_axes: int) -> list[str]:
    if isinstance(directions, xr.Dataset) and "axis_name" in directions.coords:
        return [str(name) for name in np.atleast_1d(directions.axis_name.values)]
    if isinstance(directions, xr.Dataset) and "mode" in directions.coords:
        return [f"v{mode + 1}" for mode in np.atleast_1d(directions.mode.values)]
    return ["the direction"] if n_axes == 1 else [f"direction {i + 1}" for i in range(n_axes)]


def _grid(half_width: float, n: int) -> np.ndarray:
    """`n` equidistant points, symmetric to the last bit: exactly 0 at the centre, where linspace may leave 1e-17."""
    if not (0 < half_width < np.inf and n >= 2):
        raise ValueError(f"half_width must be positive and n_points at least 2, got {half_width} and {n}")
    return half_width * ((2 * np.arange(n) - (n - 1)) / (n - 1))


def _each(value, n_axes: int) -> tuple:
    """One value for each axis."""
    values = tuple(value) if isinstance(value, tuple | list | np.ndarray | xr.DataArray) else (value,) * n_axes
    if len(values) != n_axes:
        raise ValueError(f"half_width and n_points take one number, or one for each of {n_axes} axes; got {value}")
    return values
