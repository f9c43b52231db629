"""Runs on disk: `RunWriter` records one, `open_run` reads it, also while it grows or after its writer was killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from landscape.entries import stored_entries
from landscape.file_handle import LOCK, FileHandle, RunFormatError, damage_named
from landscape.netcdf import read_dataset
from landscape.row_guard import RowGuard
from landscape.run_format import FORMAT, FORMAT_VERSION, STATUSES
from landscape.run_state import TABLES, newest_state, saved_states, state_names
from landscape.run_tables import CHECKSUM, STEP_CHECK
from landscape.run_writer import RunWriter

if TYPE_CHECKING:
    from landscape.params import ParamLayout

__all__ = ["Run", "RunFormatError", "RunWriter", "at_step", "open_run"]


def open_run(path: str | os.PathLike, *, check: bool = True) -> Run:
    """The run in the file `path`, for reading.

    A file that is being written opens too, and shows the rows committed so far, `Run.refresh` those since; so does a
    file whose writer was killed. Large variables stay in the file until they are indexed, and each row is compared with
    its checksum when it is first read.

    Parameters
    ----------
    path : str or path-like
        A file that `RunWriter` wrote.
    check : bool
        False reads damaged rows as they are.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RunFormatError
        If it is not a run file, of a newer format version, or damaged.
    """
    return Run(path, check=check)


def is_run_file(path: str | os.PathLike) -> bool:
    """Whether the HDF5 file `path` says that it is a run; raises like `open_run` where it cannot be read."""
    handle = FileHandle(path)
    try:
        return _text(_root_attrs(handle).get("format", "")) == FORMAT
    finally:
        handle.close()


class Run:
    """A recorded run, open for reading; use it as a context manager. See `open_run`.

    Attributes
    ----------
    path : Path
        The file.
    status : str
        "running", "complete", "diverged" or "interrupted". A run whose writer was killed still says "running".
    producer, created : str
        What recorded the run, and when (ISO 8601, UTC).
    software, config : dict
        Versions, and everything needed to repeat the run.
    """

    def __init__(self, path: str | os.PathLike, *, check: bool = True):
        self._handle = FileHandle(path)
        self._check = check
        self.path = self._handle.path
        self._progress: tuple | None = None
        try:
            self._read_root()
            with contextlib.suppress(RunFormatError):  # what is damaged is an error where it is read
                self._progress = self._committed()
        except BaseException:
            self._handle.close()
            raise

    def refresh(self) -> bool:
        """Whether the file holds anything new; from now on, the run shows what is committed by now.

        Datasets taken from the run before keep the rows that they had. The writer is not disturbed.

        Returns
        -------
        bool
            True if rows or a state were committed, or the status changed, since the run was opened or refreshed last.

        Raises
        ------
        FileNotFoundError
            If the file is gone; the run shows what it showed.
        RunFormatError
            If another file has taken its place; the run shows what it showed.
        ValueError
            If the run is closed.

        Examples
        --------
        >>> import tempfile
        >>> from landscape import ParamLayout
        >>> folder = tempfile.TemporaryDirectory()
        >>> with RunWriter(f"{folder.name}/a.h5", ParamLayout(("w",), ((2,),)), history=["loss"]) as writer:
        ...     run = open_run(writer.path)
        ...     writer.append(0, loss=0.5)
        ...     writer.commit()
        ...     run.refresh(), run.status, run.history.loss.values
        (True, 'running', array([0.5]))
        >>> run.refresh(), run.status, run.refresh()
        (True, 'complete', False)
        >>> run.close()
        >>> folder.cleanup()
        """
        self._handle.refresh()
        for name in ("history", "checkpoints", "eigenpairs"):
            self.__dict__.pop(name, None)
        self._read_root()
        before, self._progress = self._progress, self._committed()
        return self._progress != before

    def _committed(self) -> tuple:
        """What changes when the file grows."""
        with damage_named(self.path, "the number of rows"):
            return self._count()

    def _count(self) -> tuple:
        state = self._handle["state/sequence"][()].tolist() if "state" in self._handle else []
        return self.status, self._n_rows(), state

    def _read_root(self) -> None:
        attrs = _root_attrs(self._handle)
        if _text(attrs.get("format", "")) != FORMAT:
            raise RunFormatError(
                f"{self.path} is not a run file; landscape.load_dataset reads Dataset files, h5py any other"
            )
        version = attrs.get("format_version")
        if not isinstance(version, np.integer) or version < 1:
            raise RunFormatError(f"{self.path} has no valid format_version, got {version!r}; it is damaged")
        if version > FORMAT_VERSION:
            raise RunFormatError(
                f"{self.path} has format version {version}, this package reads up to {FORMAT_VERSION}: update it"
            )
        self.status = _text(attrs.get("status", ""))
        if self.status not in STATUSES:
            raise RunFormatError(f"{self.path} has no valid status, got {self.status!r}; it is damaged")
        self.producer = _text(attrs.get("producer", ""))
        self.created = _text(attrs.get("created", ""))
        self.software: dict[str, str] = self._json(attrs, "software")
        self.config: dict[str, Any] = self._json(attrs, "config")

    def _json(self, attrs: Mapping[str, Any], name: str) -> dict[str, Any]:
        try:
            value = json.loads(_text(attrs.get(name, "{}")))
        except (ValueError, RecursionError) as error:
            raise RunFormatError(f"{self.path}: its attribute {name} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RunFormatError(f"{self.path}: its attribute {name} is no JSON object; it is damaged")
        return value

    @cached_property
    def history(self) -> xr.Dataset:
        """Scalars of each step (step), for example loss, and class_weight (step, class); lazy."""
        return self._table("history")

    @cached_property
    def checkpoints(self) -> xr.Dataset:
        """θ of each saved step: params (step, param), lazy; attrs say how the run was trained, and hold the layout."""
        table = self._table("checkpoints")
        if "params" not in table:
            raise RunFormatError(f"{self.path}: checkpoints have no params; the file is incomplete")
        return table

    @cached_property
    def eigenpairs(self) -> xr.Dataset | None:
        """Eigenpairs recorded while training, with the variables of `top_eigenpairs`; None where there are none."""
        if "eigenpairs" not in self._handle:
            return None
        table = self._table("eigenpairs")
        return table if table.sizes["step"] else None

    @property
    def state(self) -> xr.Dataset | None:
        """The state that the run would resume from, with its step as the coordinate `step`; None without any."""
        found = None
        with LOCK, damage_named(self.path, "the state"):
            for _ in range(2 if self._state_shapes() else 0):
                saved = saved_states(self._handle.group("state"))
                if self._handle.is_out_of_date():  # a live writer may have committed rows that we do not see yet
                    self._handle.refresh()
                found = newest_state(saved, self._n_rows())
                if found is not None:
                    break
            else:
                if self.status != "running" and "state" in self._handle and self._handle["state/sequence"][()].any():
                    raise RunFormatError(f"{self.path}: both copies of the state are damaged; it cannot be resumed")
        return found

    @cached_property
    def data(self) -> dict[str, xr.Dataset]:
        """Data sets by name ("training", "validation"): inputs (sample, feature) and targets (sample); lazy."""
        with LOCK, damage_named(self.path, "data"):
            sets = {name: read_dataset(self._handle, f"data/{name}") for name in self._handle.members("data")}
        for name, dataset in sets.items():
            if not {"inputs", "targets"} <= set(dataset.data_vars):
                raise RunFormatError(f"{self.path}: data/{name} lacks inputs or targets; the file is incomplete")
        return sets

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in θ by name, in their order."""
        checkpoints = self.checkpoints
        with damage_named(self.path, "the layout of θ"):
            entries = [(str(name), tuple(map(int, shape))) for name, shape in json.loads(checkpoints.attrs["layout"])]
            tensors, n_params = dict(entries), checkpoints.sizes["param"]
            if len(tensors) < len(entries) or any(size < 0 for shape in tensors.values() for size in shape):
                raise ValueError("names repeat, or sizes are negative")
            if sum(map(math.prod, tensors.values())) != n_params:
                raise ValueError(f"its tensors do not have the {n_params} entries of θ")
        return tensors

    @cached_property
    def layout(self) -> ParamLayout:
        """Names and shapes of the tensors in θ."""
        from landscape.params import ParamLayout  # loads torch, which a look at the history does not need

        return ParamLayout(tuple(self.tensors), tuple(self.tensors.values()))

    @property
    def is_open(self) -> bool:
        """Whether the file is still open."""
        return self._handle.is_open

    def close(self) -> None:
        """Close the file; what was not loaded can no longer be read."""
        self._handle.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _table(self, name: str) -> xr.Dataset:
        with LOCK, damage_named(self.path, name):
            step = self._handle[f"{name}/step"]
            n_rows = step.shape[0]
            if stored_entries(step) < n_rows:
                raise RunFormatError(f"{self.path}: {name}/step claims {n_rows} rows, more than the file holds")
            guard = RowGuard(self._handle, name, n_rows) if self._check else None
            table = read_dataset(self._handle, name, n_rows=n_rows, hide=(CHECKSUM, STEP_CHECK), guard=guard)
            if self._check and (table["step"].values != ~self._handle[f"{name}/{STEP_CHECK}"][:n_rows]).any():
                raise RunFormatError(
                    f"{self.path}: steps of {name} are damaged; `python -m landscape verify` says what is right; "
                    "open_run(path, check=False) reads all as it is"
                )
            return table

    def _n_rows(self) -> list[int]:
        """Committed rows of each table that a state counts."""
        return [self._handle[f"{name}/step"].shape[0] if name in self._handle else 0 for name in TABLES]

    def _state_shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of the state."""
        if "state" not in self._handle:
            return {}
        members = {name: self._handle[f"state/{name}"] for name in self._handle.members("state")}  # none leads outside
        names = state_names(self._handle.group("state"))
        return {name: (members[name].dtype.name, members[name].shape[1:]) for name in names}

    def __repr__(self) -> str:
        if not self.is_open:
            return f"<Run {self.path.name}: {self.status}, closed>"
        lines = [f"<Run {self.path.name}: {self.status}"]
        history, checkpoints = self.history, self.checkpoints
        lines.append(f"  steps        {_span(history)}")
        params = checkpoints["params"]
        lines.append(f"  checkpoints  {_span(checkpoints)}, {params.sizes['param']} parameters in {params.dtype}")
        if self.eigenpairs is not None:
            lines.append(f"  eigenpairs   {_span(self.eigenpairs)}, {self.eigenpairs.sizes['mode']} modes")
        if "loss" in history and history.sizes["step"]:
            first, last = history["loss"].values[[0, -1]]
            lines.append(f"  loss         {first:.6g} → {last:.6g}")
        return "\n".join(lines) + ">"


def at_step(dataset: xr.Dataset, step: int) -> xr.Dataset:
    """The row of `dataset` at `step`.

    Raises
    ------
    KeyError
        If the step was not recorded; the message names the nearest that were.
    """
    steps = dataset["step"].values
    position = int(np.searchsorted(steps, step))
    if position < len(steps) and steps[position] == step:
        return dataset.isel(step=position)
    near = ", ".join(map(str, steps[max(0, position - 1) : position + 1]))
    raise KeyError(f"step {step} was not recorded; the nearest are {near}" if near else "no step was recorded")


def _root_attrs(handle: FileHandle) -> dict[str, Any]:
    file = handle.file
    with damage_named(handle.path, "an attribute"):
        return dict(file.attrs)


def _span(dataset: xr.Dataset) -> str:
    steps = dataset["step"].values
    return f"{len(steps)} (steps {steps[0]} … {steps[-1]})" if len(steps) else "none"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
