"""Results that come a few rows at a time: gathered in memory, or written to a file as they come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from landscape.attributes import to_json, write_attrs
from landscape.hdf5 import load_dataset
from landscape.netcdf import add_dimension, add_variable, dims_of, write_variable

N_ROWS, COMPUTATION = "n_rows_written", "computation"

Columns = Mapping[str, xr.Variable]
"""Some rows of each variable of a result, by name; `step` is the first of its dims."""


class RowsInMemory:
    """Gathers rows; `finish` gives the Dataset.

    Parameters
    ----------
    coords : mapping
        Coordinates of the Dataset, that of all rows, `step`, among them; each after those of its dims.
    attrs : mapping
        Its attributes.
    dim : str
        The dim of which rows come; every variable has it.
    """

    def __init__(self, coords: Mapping, attrs: Mapping, dim: str = "step"):
        self.coords, self.attrs, self.dim, self.n_rows, self.parts = coords, dict(attrs), dim, 0, []

    def write(self, columns: Columns) -> None:
        """Take the next rows."""
        self.parts.append(columns)
        self.n_rows += next(iter(columns.values())).sizes[self.dim]

    def close(self) -> None:
        """Nothing is open."""

    def finish(self, **attrs) -> xr.Dataset:
        """All rows, with further attributes."""
        first = self.parts[0]
        joined = {name: xr.Variable.concat([part[name] for part in self.parts], self.dim) for name in first}
        return xr.Dataset(joined, self.coords, self.attrs | attrs)


class RowsInFile:
    """Writes rows to a Dataset file, which takes its name when it is whole and goes on where it was interrupted.

    Until then it stands beside, as ``PATH.part``. What another computation left there (other steps, coordinates or
    attributes) is replaced. Once the first rows are written only numbers in place change, and the number of rows last:
    a process killed at any moment leaves a file that is right.

    Parameters
    ----------
    path : str or path-like
        Where the Dataset will stand; an existing file there is replaced at the end.
    coords, attrs, dim
        As for `RowsInMemory`.

    Attributes
    ----------
    n_rows : int
        Number of rows that are written already.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """

    def __init__(self, path: str | os.PathLike, coords: Mapping, attrs: Mapping, dim: str = "step"):
        self.path, self.coords, self.attrs, self.dim = Path(path), coords, dict(attrs), dim
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder {self.path.parent} does not exist; create it first")
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.computation = _fingerprint(self.attrs, coords)
        self.n_rows = 0
        self.file = self._interrupted() or self._new()

    def _interrupted(self) -> h5py.File | None:
        if not self.part.exists():
            return None
        try:
            file = h5py.File(self.part, "r+")
        except OSError:  # killed before its first rows were written
            return None
        if file.attrs.get(COMPUTATION) == self.computation.encode() and N_ROWS in file:
            self.n_rows = int(file[N_ROWS][()])
            return file
        file.close()
        return None

    def _new(self) -> h5py.File:
        file = h5py.File(self.part, "w", track_order=True)
        write_attrs(file, self.attrs | {COMPUTATION: self.computation})
        for name, values in self.coords.items():
            values = values if isinstance(values, xr.Variable | xr.DataArray) else xr.Variable((name,), values)
            for dim, size in zip(values.dims, values.shape, strict=True):
                if dim != name and dim not in file:
                    add_dimension(file, dim, size)
            write_variable(file, name, values.dims, values.values, values.attrs)
        return file

    def start_over(self) -> None:
        """Forget all rows."""
        self.file.close()
        self.file, self.n_rows = self._new(), 0

    def read(self, name: str, row: int) -> np.ndarray:
        """A row that is written, without the dim of which rows come."""
        return self.file[name][(*self._before(dims_of(self.file[name])), row)]

    def write(self, columns: Columns) -> None:
        """Write the next rows."""
        stop = self.n_rows + next(iter(columns.values())).sizes[self.dim]
        for name, column in columns.items():
            values = column.values.astype(np.int8) if column.dtype == bool else column.values
            if self.n_rows == 0:
                self._create(name, column, values)
            self.file[name][(*self._before(column.dims), slice(self.n_rows, stop))] = values
        if self.n_rows == 0:
            self.file[N_ROWS] = 0
        self.file.flush()
        self.file[N_ROWS][()] = self.n_rows = stop
        self.file.flush()

    def _before(self, dims: tuple[str, ...]) -> tuple[slice, ...]:
        """All of the dims that stand before that of which rows come."""
        return (slice(None),) * dims.index(self.dim)

    def _create(self, name: str, column: xr.Variable, values: np.ndarray) -> None:
        for dim, size in zip(column.dims, values.shape, strict=True):
            if dim not in self.file:
                add_dimension(self.file, dim, size)
        n_rows = len(self.coords[self.dim])
        shape = [n_rows if dim == self.dim else size for dim, size in zip(column.dims, values.shape, strict=True)]
        options = {"shape": shape, "dtype": values.dtype, "fill_time": "never"}
        add_variable(self.file, name, column.dims, attrs=column.attrs, **options)

    def close(self) -> None:
        """Leave what is written for another time."""
        self.file.close()

    def finish(self, **attrs) -> xr.Dataset:
        """All rows, with further attributes, read from the file when they are used."""
        if attrs:
            write_attrs(self.file, self.attrs | attrs)
        del self.file.attrs[COMPUTATION], self.file[N_ROWS]
        self.file.close()
        os.replace(self.part, self.path)
        return load_dataset(self.path, lazy=True)


def _fingerprint(attrs: Mapping, coords: Mapping) -> str:
    """Hash of what is computed: attributes and coordinates."""
    digest = hashlib.sha256(to_json(attrs).encode())
    for name, values in coords.items():
        values = np.ascontiguousarray(values)
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()
