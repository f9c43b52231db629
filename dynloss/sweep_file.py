"""The file of a sweep while it runs: a row for each run, filled in any order; killed at any moment, it goes on."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from dynloss.sweep_runs import RECORDED
from landscape import load_dataset, save_dataset
from landscape.attributes import decoded, to_json, write_attrs
from landscape.hdf5 import written_whole
from landscape.netcdf import add_variable, write_dataset
from landscape.run_format import software

PENDING, COMPLETE, DIVERGED, FAILED = range(4)
STATUS = ("pending", "complete", "diverged", "failed")
SWEEP = "sweep"
"""Attribute with the hash of what is swept."""


class SweepFile:
    """Rows of results, written as tasks end into ``PATH.part``, which becomes PATH when all are there.

    The file has its full size from the start, so that a row is written in place; the row's ``state`` is written last,
    and a row without it is computed again. Between two writes the file is closed, and can be read.

    Parameters
    ----------
    path : path-like
        Where the results will stand.
    runs : xr.Dataset
        The table (run) of `sweep_runs.table_of`.
    settings : mapping
        What all runs share; with the table it says which sweep this is.
    steps : ndarray, shape (step,)
        Steps of the histories.
    overwrite : bool
        Whether results, or a part, of another sweep may be replaced.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    FileExistsError
        If another sweep stands there, and `overwrite` is False.
    """

    def __init__(
        self, path: str | os.PathLike, runs: xr.Dataset, settings: Mapping[str, Any], steps: np.ndarray, overwrite: bool
    ):
        self.path, self.runs = Path(path), runs
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder {self.path.parent} does not exist; create it first")
        self.part = self.path.with_name(f"{self.path.name}.part")
        table = {name: runs[name].values.tolist() for name in runs.data_vars}
        self.sweep = hashlib.sha256(to_json([table, dict(settings)]).encode()).hexdigest()
        self.state = np.full(runs.sizes["run"], PENDING, np.int16)
        if self._holds(self.path):
            self.state[:] = COMPLETE
        elif self._holds(self.part):
            with h5py.File(self.part) as file:
                self.state = file["state"][()]
        elif not overwrite and (self.path.exists() or self.part.exists()):
            there = self.path if self.path.exists() else self.part
            raise FileExistsError(f"{there} holds another sweep; give another path, or overwrite=True to replace it")
        else:
            self._create(settings, steps)

    def _holds(self, path: Path) -> bool:
        """Whether `path` holds this sweep."""
        try:
            with h5py.File(path) as file:
                return decoded(file.attrs.get(SWEEP, "")) == self.sweep
        except OSError:
            return False

    def _create(self, settings: Mapping[str, Any], steps: np.ndarray) -> None:
        n_runs = self.runs.sizes["run"]
        with written_whole(self.part) as file:
            table = self.runs.rename(loss="loss_name").assign_coords(step=steps)
            write_dataset(file, table.assign_attrs(settings))
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_attrs(file, {SWEEP: self.sweep, "created": created})
            for name in RECORDED:
                text = name.replace("_", " ")
                _reserve(file, name, {"run": n_runs, "step": len(steps)}, text)
                _reserve(file, f"final_{name}", {"run": n_runs}, f"{text} after the last update")
            _reserve(file, "last_step", {"run": n_runs}, "updates made")
            add_variable(file, "state", ("run",), self.state)

    @property
    def pending(self) -> np.ndarray:
        """Numbers of the runs that are still to be trained; those that failed are tried again."""
        return np.flatnonzero((self.state == PENDING) | (self.state == FAILED))

    def write(self, rows: np.ndarray, found: xr.Dataset) -> None:
        """Write the results of some runs."""
        states = np.where(found.diverged.values, DIVERGED, COMPLETE).astype(np.int16)
        self._write(rows, {name: found[name].values for name in found.data_vars if name != "diverged"}, states)

    def fail(self, rows: np.ndarray) -> None:
        """Note that these runs failed."""
        self._write(rows, {}, np.full(len(rows), FAILED, np.int16))

    def _write(self, rows: np.ndarray, values: Mapping[str, np.ndarray], states: np.ndarray) -> None:
        order = np.argsort(rows)
        rows, states = rows[order], states[order]
        # Without HDF5's lock, by which somebody who just reads the file would end the sweep.
        with h5py.File(self.part, "r+", locking=False) as file:
            for name, array in values.items():
                file[name][rows] = array[order]
            file.flush()
            file["state"][rows] = states
        self.state[rows] = states

    def finish(self) -> xr.Dataset:
        """The results, saved at PATH once no run is missing."""
        if self._holds(self.path):
            return load_dataset(self.path)
        found = load_dataset(self.part)
        varied = ["loss_name" if name == "loss" else name for name in self.runs.data_vars]
        status = np.array(STATUS)[found.state.values]
        found = found.drop_vars("state").assign(status=("run", status)).set_coords(varied)
        found["last_step"] = found.last_step.fillna(0).astype(np.int64)
        found.attrs["software"] = to_json(software())
        if not len(self.pending):
            save_dataset(found, self.path)
            self.part.unlink()
        return found


def _reserve(file: h5py.File, name: str, sizes: Mapping[str, int], text: str) -> None:
    """A variable of NaN that has its place in the file: from now on numbers change, and nothing else."""
    shape = tuple(sizes.values())
    dataset = add_variable(
        file, name, tuple(sizes), attrs={"long_name": text}, shape=shape, dtype="f8", fillvalue=np.nan
    )
    dataset[(0,) * len(shape)] = np.nan
