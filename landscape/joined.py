"""Results of tasks, in whatever order they end, as one Dataset in the order of the checkpoints."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import xarray as xr

from landscape.cluster import Failure
from landscape.hessian import follow
from landscape.results import Columns, RowsInFile, RowsInMemory


class Joined:
    """Puts rows together in memory, or in a file as far as they have come without a gap.

    Parameters
    ----------
    step : xarray.DataArray
        The steps of all rows.
    out : str or path-like, optional
        The file.
    previous : xarray.Dataset, optional
        The row of eigenpairs that the first row continues, where the result holds eigenpairs.
    attrs : dict
        Attributes that in the results of tasks are not those of the whole.

    Raises
    ------
    FileNotFoundError
        If the folder of `out` does not exist.
    """

    def __init__(self, step: xr.DataArray, out: str | os.PathLike | None, previous, attrs: dict):
        if out is not None and not Path(out).parent.is_dir():
            raise FileNotFoundError(f"the folder {Path(out).parent} does not exist; create it first")
        self.step, self.out, self.attrs = step.variable, out, attrs
        known = isinstance(previous, xr.Dataset) and "eigenvector" in previous
        self.before = previous.eigenvector.transpose("mode", "param").values if known else None
        self.template: xr.Dataset | None = None  # a result without rows, known when the first task has ended
        self.results: RowsInMemory | RowsInFile | None = None
        self.ready: dict[int, tuple[int, xr.Dataset | None]] = {}
        self.n_rows = 0
        self.failures: dict[int, Exception] = {}
        self.warned: dict[type, list[str]] = defaultdict(list)

    def take(self, start: int, stop: int, outcome: tuple[xr.Dataset, list] | Failure) -> None:
        """The outcome of the rows start … stop − 1."""
        part = None
        if isinstance(outcome, Failure):
            self.failures |= dict.fromkeys(range(start, stop), outcome.error)
        else:
            part, caught = outcome
            for category, message in caught:
                self.warned[category].append(message)
            self._fit(part)
        self.ready[start] = stop, part
        while self.template is not None and self.n_rows in self.ready:
            stop, part = self.ready.pop(self.n_rows)
            columns = _columns(part) if part is not None else _empty(_columns(self.template), stop - self.n_rows)
            self.results.write(self._followed(columns))
            self.n_rows = stop

    def finish(self) -> xr.Dataset:
        """All rows; warns of those that failed, and of what the analysis warned of."""
        steps = [self.step.values[row].item() for row in sorted(self.failures)]
        dataset = self.results.finish(**({"failed_steps": steps} if steps else {}))
        if steps:
            shown = ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")
            why = self.failures[min(self.failures)]
            warnings.warn(
                f"{len(steps)} of {len(self.step)} checkpoints failed, their rows are NaN (steps {shown}); the first: "
                f"{type(why).__name__}: {why}",
                stacklevel=3,
            )
        for category, messages in self.warned.items():
            more = len(messages) - 1
            warnings.warn(f"{messages[0]}{f' (and {more} more from other tasks)' if more else ''}", category, 3)
        if self.out is not None:
            return dataset
        data = [name for name in self.template.data_vars if name in dataset.coords]
        coords = [name for name in self.template.coords if name in dataset.data_vars]
        return dataset.reset_coords(data).set_coords(coords)

    def close(self) -> None:
        """Leave a file that is not finished as it is."""
        if self.results is not None:
            self.results.close()

    def _fit(self, part: xr.Dataset) -> None:
        """Begin with the first part; of others only the rows may differ."""
        if self.template is None:
            self.template = part.isel(step=[])
            self.results = self._begin()
        for name in {*self.template.variables, *part.variables} - {"step"}:
            one, other = self.template.variables.get(name), part.variables.get(name)
            if one is None or other is None or not one.equals(other.isel({"step": []} if "step" in other.dims else {})):
                raise ValueError(
                    f"{name} depends on which checkpoints a task holds; give the analysis the option that fixes it"
                )

    def _begin(self) -> RowsInMemory | RowsInFile:
        attrs = self.template.attrs | {name: self.attrs[name] for name in self.attrs if name in self.template.attrs}
        constants = {name: v for name, v in self.template.variables.items() if "step" not in v.dims}
        coords = {"step": self.step} | dict(sorted(constants.items(), key=lambda item: item[1].dims != (item[0],)))
        if self.out is None:
            return RowsInMemory(coords, attrs)
        extra = [name for name in self.template.coords if name not in self.template.dims]
        results = RowsInFile(self.out, coords, attrs | ({"coordinates": " ".join(extra)} if extra else {}))
        if results.n_rows:  # of a call before, perhaps of another objective
            results.start_over()
        return results

    def _followed(self, columns: Columns) -> Columns:
        """Eigenvectors with their signs, and what they continue, as if the rows before had been in the same task."""
        if not {"eigenvector", "previous_mode", "overlap", "crossing"} <= columns.keys():
            return columns
        names = ("step", "mode", "param")
        vectors = np.array(columns["eigenvector"].transpose(*names).values)  # a copy, as what arrives is read-only
        previous_mode, overlap = follow(vectors, self.before)
        finite = np.isfinite(vectors).all(axis=(1, 2))
        self.before = vectors[finite][-1].copy() if finite.any() else self.before
        followed = {
            "eigenvector": (names, vectors),
            "previous_mode": (names[:2], previous_mode),
            "overlap": (names[:2], overlap),
            "crossing": (names[:2], np.isfinite(previous_mode) & (previous_mode != np.arange(vectors.shape[1]))),
        }
        return columns | {name: xr.Variable(*column, columns[name].attrs) for name, column in followed.items()}


def _columns(part: xr.Dataset) -> Columns:
    variables = {name: variable for name, variable in part.variables.items() if name != "step"}
    return {name: v.transpose("step", ...) for name, v in variables.items() if "step" in v.dims}


def _empty(columns: Columns, n_rows: int) -> Columns:
    """Rows that say nothing: NaN, False and 0."""

    def nothing(column: xr.Variable) -> xr.Variable:
        fill = np.nan if column.dtype.kind in "fc" else np.zeros((), column.dtype)[()]
        return xr.Variable(column.dims, np.full((n_rows, *column.shape[1:]), fill, column.dtype), column.attrs)

    return {name: nothing(column) for name, column in columns.items()}
