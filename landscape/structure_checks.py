"""Checks of what a run file holds besides rows: its groups, its size, the layout of θ, the state and the data sets."""

from __future__ import annotations

import math
import os
import struct

import numpy as np
import xarray as xr

from landscape.findings import Findings
from landscape.netcdf import read_dataset
from landscape.row_checks import BLOCK_BYTES, ERRORS, one_line
from landscape.run import Run
from landscape.run_state import TABLES, saved_states
from landscape.writer_lock import is_being_written

GROUPS = ("layout", "data", "history", "checkpoints")
OPTIONAL = ("eigenpairs", "state")


def check_root(run: Run, found: Findings) -> None:
    """Check the groups of the file and its attributes; whether it is being written is said."""
    members, attrs = run._handle.members("/"), run._handle.file.attrs
    n_before = len(found)
    for name in ("layout", "data"):
        if name not in members:
            found.damaged(name, "is missing")
    more = sorted(set(members) - {*GROUPS, *OPTIONAL})
    if more:
        found.note("file", f"holds what is not of the format: {', '.join(more)}")
    for name in ("n_resumed", "block_rows"):
        if not isinstance(attrs.get(name), np.integer):
            found.damaged("file", f"its attribute {name} is {attrs.get(name)!r}, not an integer; it cannot be resumed")
    if not run.created:
        found.damaged("file", "its attribute created is missing")
    if len(found) == n_before:
        found.ok("file", f"format version {attrs['format_version']}, all groups there")
    if run.status == "running":
        writing = is_being_written(run.path)
        found.note("file", "is being written" if writing else "says running, but no writer on this machine holds it")


def check_size(run: Run, found: Findings) -> None:
    """Check that the file is as long as its first bytes say (HDF5 File Format Specification 3.0, II.A)."""
    with run.path.open("rb") as file:
        block = file.read(48)
        size = os.fstat(file.fileno()).st_size
    if len(block) < 48 or block[8] not in (2, 3):
        found.note("file", "does not begin as landscape writes it: another program rewrote it")
        return
    _, end = struct.unpack("<QQ", block[20:36])
    # Of a file that is being written, or whose writer was killed, the end may be given out and not written yet.
    if size < end and run.status == "interrupted":
        found.note("file", f"ends early, at {size} of {end} bytes, as where a disk was full")
    elif size < end and run.status != "running":
        found.damaged("file", f"is cut short: {size} of {end} bytes")


def check_layout(run: Run, found: Findings) -> None:
    """Check that names and shapes of the tensors agree with each other and with the length of θ."""
    if "layout" not in run._handle or "checkpoints" not in run._handle:
        return
    try:
        tensors = run.tensors
        stored = read_dataset(run._handle, "layout").load()
        sizes = [int(np.prod(shape, dtype=object)) for shape in tensors.values()]
        n_params = run._handle["checkpoints/params"].shape[1:]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))] if len(sizes) < 2**12 else np.cumsum([0, *sizes[:-1]])
        wrong = []
        if stored["name"].values.tolist() != list(tensors):
            wrong.append("names")
        if stored["shape"].values.tolist() != [" ".join(map(str, shape)) for shape in tensors.values()]:
            wrong.append("shapes")
        if stored["size"].values.tolist() != sizes or stored["offset"].values.tolist() != list(offsets):
            wrong.append("sizes or offsets")
        if wrong:
            found.damaged("layout", f"its {', '.join(wrong)} differ from the attribute layout of checkpoints")
        if n_params != (sum(sizes),):
            found.damaged("layout", f"its tensors have {sum(sizes)} entries, θ has shape {n_params}")
        elif not wrong:
            found.ok("layout", f"{len(tensors)} tensors, {sum(sizes)} entries, the length of θ")
    except ERRORS as error:
        found.damaged("layout", f"cannot be read: {one_line(error)}")


def check_state(run: Run, found: Findings) -> None:
    """Check the two slots of the state from which an unfinished run resumes."""
    if "state" not in run._handle:
        return
    try:
        group = run._handle.group("state")
        for name in run._handle.members("state"):
            _ = run._handle[f"state/{name}"]  # raises for links and values kept elsewhere
        n_rows = run._n_rows()
        saved = saved_states(group)
        used = int(np.count_nonzero(group["sequence"][()]))
    except ERRORS as error:
        found.damaged("state", f"cannot be read, and the run cannot be resumed: {one_line(error)}")
        return
    if not used and not saved:
        found.note("state", "none was saved yet; the run would begin anew")
        return
    committed = [one for one in saved if len(one.rows) == len(TABLES) and (one.rows <= n_rows).all()]
    live = run.status == "running"
    if not committed and not live:
        found.damaged("state", "no slot holds a whole state of committed rows; the run cannot be resumed")
    elif len(saved) < used and not live:
        found.damaged("state", f"{used - len(saved)} of {used} slots is damaged; the other one is whole")
    elif not committed:
        found.note("state", "no slot is whole just now, or their rows are not committed yet")
    else:
        newest = max(committed, key=lambda one: one.sequence)
        found.ok("state", f"whole, at step {int(newest.state.step)}, checksum right")


def check_data(run: Run, found: Findings, progress: bool) -> None:
    """Check that the data sets fit and have the right checksums."""
    if "data" not in run._handle:
        return
    try:
        names = run._handle.members("data")
    except ERRORS as error:
        found.damaged("data", f"cannot be read: {one_line(error)}")
        return
    for name in names:
        where = f"data/{name}"
        try:
            stored = read_dataset(run._handle, where)  # its dims and attributes too
            parts = {part: stored[part].variable for part in ("inputs", "targets")}
            lengths = [part.shape[:1] for part in parts.values()]
            if lengths[0] != lengths[1] or not lengths[0]:
                found.damaged(where, f"inputs have {parts['inputs'].shape} entries, targets {parts['targets'].shape}")
                continue
            infinite = {part: _n_infinite(variable) for part, variable in parts.items()}
        except ERRORS as error:
            found.damaged(where, f"cannot be read: {one_line(error)}")
            continue
        found.ok(where, f"{lengths[0][0]} samples, checksums right")
        for part, count in infinite.items():
            if count:
                found.note(where, f"{part}: {count} values not finite")


def _n_infinite(variable: xr.Variable) -> int:
    """Number of values that are not finite, read a block at a time."""
    size = max(1, BLOCK_BYTES // max(1, variable.dtype.itemsize * math.prod(variable.shape[1:])))
    count = 0
    for start in range(0, variable.shape[0], size):
        values = variable[start : start + size].values
        count += int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0
    return count
