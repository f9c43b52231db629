"""Results that come a few rows at a time: gathered in memory, or written to a file as they come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from landscape.hdf5 import load_dataset
from landscape.netcdf import add_dimension, add_variable, to_json, write_attrs

N_ROWS, COMPUTATION = "n_rows_written", "computation"

Columns = Mapping[str, xr.Variable]
"""Some rows of each variable of a result, by name; `step` is the first of its dims."""


class RowsInMemory:
    """Gathers rows; `finish` gives the Dataset.

    Parameters
    ----------
    coords : mapping
        Coordinates of the Dataset, that of all rows, `step`, among them.
    attrs : mapping
        Its attributes.
    """

    def __init__(self, coords: Mapping, attrs: Mapping):
        self.coords, self.attrs, self.n_rows, self.parts = coords, dict(attrs), 0, []

    def write(self, columns: Columns) -> None:
        """Take the next rows."""
        self.parts.append(columns)
        self.n_rows += len(next(iter(columns.values())))

    def close(self) -> None:
        """Nothing is open."""

    def finish(self) -> xr.Dataset:
        """All rows."""
        first = self.parts[0]
        joined = {
            name: (column.dims, np.concatenate([part[name].values for part in self.parts]), column.attrs)
            for name, column in first.items()
        }
        return xr.Dataset(joined, self.coords, self.attrs)


class RowsInFile:
    """Writes rows to a Dataset file, which takes its name when it is whole and goes on where it was interrupted.

    Until then it stands beside, as ``PATH.part``. What another computation left there (other steps, coordinates or
    attributes) is replaced. Once the first rows are written only numbers in place change, and the number of rows last:
    a process killed at any moment leaves a file that is right.

    Parameters
    ----------
    path : str or path-like
        Where the Dataset will stand; an existing file there is replaced at the end.
    coords, attrs : mapping
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

    def __init__(self, path: str | os.PathLike, coords: Mapping, attrs: Mapping):
        self.path, self.coords, self.attrs = Path(path), coords, dict(attrs)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder {self.path.parent} does not exist; create it first")
        self.part = self.path.with_name(f"{self.path.name}.part")
        description = to_json([self.attrs, {name: np.asarray(values) for name, values in coords.items()}])
        self.computation = hashlib.sha256(description.encode()).hexdigest()
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
            add_variable(file, name, (name,), np.asarray(values), attrs=getattr(values, "attrs", None))
        return file

    def start_over(self) -> None:
        """Forget all rows."""
        self.file.close()
        self.file, self.n_rows = self._new(), 0

    def read(self, name: str, row: int) -> np.ndarray:
        """A row that is written."""
        return self.file[name][row]

    def write(self, columns: Columns) -> None:
        """Write the next rows."""
        stop = self.n_rows + len(next(iter(columns.values())))
        for name, column in columns.items():
            values = column.values.astype(np.int8) if column.dtype == bool else column.values
            if self.n_rows == 0:
                self._create(name, column, values)
            self.file[name][self.n_rows : stop] = values
        if self.n_rows == 0:
            self.file[N_ROWS] = 0
        self.file.flush()
        self.file[N_ROWS][()] = self.n_rows = stop
        self.file.flush()

    def _create(self, name: str, column: xr.Variable, values: np.ndarray) -> None:
        for dim, size in zip(column.dims, values.shape, strict=True):
            if dim not in self.file:
                add_dimension(self.file, dim, size)
        shape = (len(self.coords["step"]), *values.shape[1:])
        options = {"shape": shape, "dtype": values.dtype, "fill_time": "never"}
        add_variable(self.file, name, column.dims, attrs=column.attrs, **options)

    def close(self) -> None:
        """Leave what is written for another time."""
        self.file.close()

    def finish(self) -> xr.Dataset:
        """All rows, read from the file when they are used."""
        del self.file.attrs[COMPUTATION], self.file[N_ROWS]
        self.file.close()
        os.replace(self.part, self.path)
        return load_dataset(self.path, lazy=True)
