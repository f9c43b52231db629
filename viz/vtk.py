"""Sections of the loss as VTK files, for ParaView and other viewers of surfaces in three dimensions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from viz.dataset import coordinate, read
from viz.surface import height_range, heights

PLANE, PATH = "landscape.plane_slice", "landscape.project"


def save_vtk(
    plane: xr.Dataset,
    path: str | os.PathLike,
    *,
    states: xr.Dataset | None = None,
    scale: str = "linear",
    cap: float | None = None,
    stretch: float = 1.0,
) -> list[Path]:
    """Write a plane as a surface of VTK's legacy format (structured grid, text), and states as a line in a second file.

    Points are (alpha, beta, height). Everything the plane holds over alpha and beta becomes a field of the points:
    the loss, the classes' own losses ``term_loss_0``, …, accuracy and the like.

    Parameters
    ----------
    plane : xarray.Dataset
        `loss` (alpha, beta), as `landscape.plane_slice` returns it; or with one more dim, such as step or phase, and
        then each item becomes a file of its own, numbered from 0: ParaView opens them as an animation.
    path : path-like
        Where to write, ending with ".vtk". States go to ``NAME_states.vtk`` beside it.
    states : xarray.Dataset, optional
        `alpha`, `beta` (step), as `landscape.project` returns them, put at the height of `loss` (step) where there is
        one and 0 otherwise. Other variables over step become fields of the points, and so does the step.
    scale : {"linear", "log"}
        Heights are losses, or their decimal logarithms; fields are always losses.
    cap : float, optional
        Higher losses are put at this height.
    stretch : float
        Multiplies heights.

    Returns
    -------
    list of Path
        The files, surfaces first. Older ones are replaced. A loss that is not finite is put at the largest finite
        height, and is a NaN of the field.

    Raises
    ------
    ValueError
        If `loss` has other dims, or the path another ending.
    FileNotFoundError
        If the folder does not exist.

    Notes
    -----
    The format is the simple legacy one of "VTK File Formats", version 3.0, read by VTK itself (9.7 was tried).
    """
    path = Path(path)
    if path.suffix != ".vtk":
        raise ValueError(f'path must end with ".vtk", got {path.name!r}')
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first")
    found = plane["loss"].dims if isinstance(plane, xr.Dataset) and "loss" in plane else ()
    others = [dim for dim in found if dim not in ("alpha", "beta")]
    if len(others) > 1:
        raise ValueError(f"loss must have dims alpha, beta and at most one more, got {found}: select one item")
    read(plane, "loss", (*others, "alpha", "beta"), source=PLANE)
    texts = {}
    if others:
        digits = len(str(plane.sizes[others[0]] - 1))
        for i in range(plane.sizes[others[0]]):
            texts[path.with_name(f"{path.stem}_{i:0{digits}d}.vtk")] = _surface(
                plane.isel({others[0]: i}), scale, cap, stretch
            )
    else:
        texts[path] = _surface(plane, scale, cap, stretch)
    if states is not None:
        texts[path.with_name(f"{path.stem}_states.vtk")] = _line(states, scale, cap, stretch)
    for file, text in texts.items():
        file.write_text(text, encoding="ascii")
    return list(texts)


def _surface(plane: xr.Dataset, scale: str, cap: float | None, stretch: float) -> str:
    loss = plane["loss"].transpose("alpha", "beta")
    height = heights(np.asarray(loss, dtype=float), scale, cap)
    height = stretch * np.where(np.isfinite(height), height, height_range(height)[1])
    alpha, beta = np.meshgrid(coordinate(loss, "alpha"), coordinate(loss, "beta"), indexing="ij")
    where = [
        f"{name} {plane[name].item()}" for name in ("step", "phase") if name in plane.coords and plane[name].ndim == 0
    ]
    title = ", ".join(["Loss on a plane", *where])
    return "\n".join(
        [
            *_head(title, "STRUCTURED_GRID"),
            f"DIMENSIONS {loss.sizes['alpha']} {loss.sizes['beta']} 1",
            f"POINTS {loss.size} double",
            # the first axis runs fastest
            *_rows(np.stack([part.T.ravel() for part in (alpha, beta, height)], axis=1)),
            f"POINT_DATA {loss.size}",
            *_fields((name, values.T.ravel()) for name, values in _grids(plane)),
            "",
        ]
    )


def _grids(plane: xr.Dataset) -> Iterable[tuple[str, np.ndarray]]:
    """Everything over alpha and beta: arrays (alpha, beta) with a name each, in which a further dim is counted."""
    for name, variable in plane.data_vars.items():
        others = [dim for dim in variable.dims if dim not in ("alpha", "beta")]
        if not {"alpha", "beta"} <= set(variable.dims) or len(others) > 1:
            continue
        values = np.asarray(variable.transpose(*others, "alpha", "beta"), dtype=float)
        if not others:
            yield str(name), values
        else:
            for item, one in zip(coordinate(variable, others[0]), values, strict=True):
                yield f"{name}_{item}", one


def _line(states: xr.Dataset, scale: str, cap: float | None, stretch: float) -> str:
    alpha, beta = (np.asarray(read(states, name, ("step",), source=PATH), dtype=float) for name in ("alpha", "beta"))
    known = "loss" in states
    height = heights(np.asarray(states["loss"], dtype=float), scale, cap) if known else np.zeros(len(alpha))
    n = len(alpha)
    fields = {"step": coordinate(states["alpha"], "step")}
    fields |= {str(name): values.values for name, values in states.data_vars.items() if values.dims == ("step",)}
    return "\n".join(
        [
            *_head("States of a run on a plane", "POLYDATA"),
            f"POINTS {n} double",
            *_rows(np.stack([alpha, beta, stretch * np.where(np.isfinite(height), height, 0)], axis=1)),
            f"VERTICES {n} {2 * n}",
            *(f"1 {i}" for i in range(n)),
            f"LINES 1 {n + 1}",
            " ".join(map(str, [n, *range(n)])),
            f"POINT_DATA {n}",
            *_fields((name, np.asarray(values, dtype=float)) for name, values in fields.items()),
            "",
        ]
    )


def _head(title: str, kind: str) -> list[str]:
    return ["# vtk DataFile Version 3.0", title[:255], "ASCII", f"DATASET {kind}"]


def _fields(fields: Iterable[tuple[str, np.ndarray]]) -> Iterable[str]:
    for name, values in fields:
        # a name must not hold white space
        yield f"SCALARS {re.sub(r'[^A-Za-z0-9_.+-]', '_', name)} double 1"
        yield "LOOKUP_TABLE default"
        yield from _rows(values[:, None])


def _rows(values: np.ndarray) -> Iterable[str]:
    """Numbers to the last bit; NaN as "nan", which VTK reads."""
    return (" ".join(map(repr, row)) for row in values.tolist())
