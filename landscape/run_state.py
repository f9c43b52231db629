"""The state that a run resumes from: two slots in the run file, written in turn, so that one is always whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import h5py
import numpy as np
import xarray as xr

from landscape.entries import stored_entries
from landscape.file_handle import RunFormatError
from landscape.netcdf import add_dimension, add_variable, dims_of, readable_members, write_variable
from landscape.run_tables import CHECKSUM, Column, row_checksums

_HEADER = ("step", "sequence", "rows")
"""Of each slot: the step, the number of states saved before it, and the rows that each table held by then."""

TABLES = ("history", "checkpoints", "eigenpairs")


def create_state(group: h5py.Group, examples: Mapping[str, np.ndarray], n_params: int) -> None:
    """Create both slots for arrays of the shapes and types of `examples`; nothing is saved yet."""
    reserved = sorted({*_HEADER, CHECKSUM, "slot", "table"} & examples.keys())
    if reserved:
        raise ValueError(f"names of the state must not be {', '.join(reserved)}; the file uses them itself")
    write_variable(group, "slot", ("slot",), np.arange(2))
    write_variable(group, "table", ("table",), np.array(TABLES, dtype=bytes))
    for name, example in examples.items():
        if example.dtype.kind not in "iuf" or example.dtype == np.int8:
            raise TypeError(
                f"the state {name} has type {example.dtype}; store numbers, such as uint8 for a random state"
            )
        dims = [f"{name}_{axis}" for axis in range(example.ndim)]
        if example.shape == (n_params,):
            dims = ["param"]
        for dim, size in zip(dims, example.shape, strict=True):
            if dim not in group:
                add_dimension(group, dim, size)
        # Written at once, so that its place in the file is settled before anybody reads it.
        add_variable(group, name, ("slot", *dims), np.stack([example, example]))
    add_variable(group, "step", ("slot",), np.zeros(2, np.int64))
    add_variable(group, "sequence", ("slot",), np.zeros(2, np.int64))
    add_variable(group, "rows", ("slot", "table"), np.zeros((2, len(TABLES)), np.int64))
    add_variable(group, CHECKSUM, ("slot",), np.zeros(2, np.uint64))


class StateSlots:
    """The state group of a file open for writing: holds the last state, and writes it into the older slot."""

    def __init__(self, group: h5py.Group):
        self.names = state_names(group)
        self.pending = False
        self._columns = {name: Column(group[name]) for name in (*self.names, *_HEADER, CHECKSUM)}
        self._buffers = {name: np.zeros((1, *group[name].shape[1:]), group[name].dtype) for name in self._columns}
        newest = max(saved_states(group), key=lambda one: one.sequence, default=None)
        self._slot, self._sequence = (newest.slot, newest.sequence) if newest else (1, 0)

    def hold(self, step: int, arrays: Mapping[str, np.ndarray], rows: Sequence[int]) -> None:
        """Keep a copy of the state at `step`, to be written with the next commit."""
        if arrays.keys() != set(self.names):
            raise ValueError(
                f"the state must give {', '.join(self.names)}, as the writer declared; got {sorted(arrays)}"
            )
        for name, array in arrays.items():
            buffer = self._buffers[name]
            if array.shape != buffer.shape[1:] or array.dtype != buffer.dtype:
                raise ValueError(
                    f"the state {name} must be {buffer.dtype} of shape {buffer.shape[1:]}, as the writer declared; "
                    f"got {array.dtype} of shape {array.shape}"
                )
            buffer[0] = array
        self._buffers["step"][0], self._buffers["rows"][0] = step, rows
        self.pending = True

    def write(self) -> None:
        """Write the held state over the older slot; the newer one stays valid until this one's checksum is right."""
        slot = 1 - self._slot
        self._buffers["sequence"][0] = self._sequence + 1
        self._buffers[CHECKSUM][:] = _checksum(self._buffers, self.names)
        for name, column in self._columns.items():
            column.write(slot, self._buffers[name])
        # Last: a write that was interrupted is done again into the same slot, and never over the whole one.
        self._slot, self._sequence, self.pending = slot, self._sequence + 1, False


class SavedState(NamedTuple):
    """A whole state as a slot holds it."""

    sequence: int
    """Number of states saved before it."""
    slot: int
    rows: np.ndarray
    """Rows of each table by then, shape (table,)."""
    state: xr.Dataset
    """The arrays by name, with the step at which they were saved as the coordinate `step`."""


def saved_states(group: h5py.Group) -> list[SavedState]:
    """The states in the slots that are whole, each value read once: a writer may be at it meanwhile."""
    names = state_names(group)
    for name in (*names, *_HEADER, CHECKSUM):
        if stored_entries(group[name]) < math.prod(group[name].shape):
            raise RunFormatError(f"{group.file.filename}: state/{name} claims more entries than the file holds")
    length = group["param"].shape if "param" in group else None
    found = []
    for slot in range(2):
        values = {name: group[name][slot][None] for name in (*names, *_HEADER, CHECKSUM)}
        if _checksum(values, names)[0] != values[CHECKSUM][0]:
            continue
        variables = {}
        for name in names:
            array = values[name][0]
            along = ["param"] if array.shape == length else [f"{name}_{axis}" for axis in range(np.ndim(array))]
            variables[name] = (along, array)
        state = xr.Dataset(variables, {"step": int(values["step"][0])})
        found.append(SavedState(int(values["sequence"][0]), slot, values["rows"][0], state))
    return found


def newest_state(saved: Sequence[SavedState], n_rows: Sequence[int]) -> xr.Dataset | None:
    """The newest of the states `saved` whose rows, at most `n_rows` of each table, are all committed; or None."""
    committed = [one for one in saved if (one.rows <= n_rows).all()]
    return max(committed, key=lambda one: one.sequence).state if committed else None


def state_names(group: h5py.Group) -> list[str]:
    """Names of the arrays of the state, in the order in which they were declared."""
    members = [(name, member) for name, member in readable_members(group) if isinstance(member, h5py.Dataset)]
    held = [name for name, member in members if dims_of(member)[:1] == ("slot",)]
    return [name for name in held if name not in (*_HEADER, CHECKSUM, "slot")]


def _checksum(values: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return row_checksums(np.asarray(values["step"]), [values[name] for name in (*names, "sequence", "rows")])
