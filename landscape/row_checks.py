"""Checks of the rows of a run's tables: every one is read, a block at a time, and compared with its checksum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import h5py
import numpy as np
from tqdm import tqdm

from landscape.attributes import read_attrs
from landscape.entries import stored_entries
from landscape.file_handle import RunFormatError
from landscape.findings import Findings, row_text, stretches
from landscape.netcdf import dims_of
from landscape.run import Run
from landscape.run_format import EIGENPAIR_VARIABLES
from landscape.run_tables import CHECKSUM, STEP_CHECK, row_checksums
from landscape.whole_guard import WholeGuard

BLOCK_BYTES = 2**24
"""Bytes of rows in memory at a time; at least one row."""

MOST_FAILURES = 200
"""Failed reads after which the rest of a variable is given up: each may take some hundredths of a second."""

UNIT_TOLERANCE = {"float32": 1e-5, "float64": 1e-8}

ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What h5py raises on damaged objects; RunFormatError is a ValueError."""


@dataclass
class _Table:
    """Variables of a table that can be read at all, and what is found of its rows."""

    n_rows: int
    columns: dict[str, h5py.Dataset] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    """Rows that the file holds of each variable."""
    whole: bool = True
    """Whether all variables are there, so that checksums can be computed."""


def check_table(run: Run, name: str, found: Findings, progress: bool) -> None:
    """Check the structure and every row of the table `name`; eigenpairs need not be there."""
    if name not in run._handle:
        if name != "eigenpairs":
            found.damaged(name, "is missing")
        return
    try:
        read_attrs(run._handle.group(name))
        table = _open(run, name, found)
    except ERRORS as error:
        found.damaged(name, f"cannot be read: {one_line(error)}")
        return
    _check_rows(name, table, found, progress)


def _open(run: Run, name: str, found: Findings) -> _Table:
    """The table, its variables checked without reading them."""
    step = run._handle[f"{name}/step"]
    if step.shape is None or step.ndim != 1 or step.dtype != np.int64:
        raise RunFormatError(f"step is {step.dtype} of shape {step.shape}, not int64 (step)")
    table = _Table(_stored_rows(step))
    if table.n_rows < step.shape[0]:
        found.damaged(name, f"step claims {step.shape[0]} rows, and holds {table.n_rows}")
    longest = 0
    for member in run._handle.members(name):
        try:
            dataset = run._handle[f"{name}/{member}"]
            if member == "step" or not isinstance(dataset, h5py.Dataset):
                continue
            if dims_of(dataset) == (member,):  # a coordinate
                WholeGuard(run._handle, f"{name}/{member}").check()
                continue
            wrong = _wrong_kind(name, member, dataset)
            if wrong:
                raise RunFormatError(wrong)
        except ERRORS as error:
            found.damaged(f"{name}/{member}", f"cannot be read: {one_line(error)}")
            table.whole = False
            continue
        stored = _stored_rows(dataset)
        longest = max(longest, dataset.shape[0])
        if stored < table.n_rows:
            text = f"holds {stored} rows where {table.n_rows} are committed"
            found.damaged(f"{name}/{member}", text, np.arange(stored, table.n_rows))
        table.columns[member], table.held[member] = dataset, stored
    needed = {"checkpoints": {"params"}, "eigenpairs": {"eigenvalue", "eigenvector"}}.get(name, set())
    for missing in sorted((needed | {CHECKSUM, STEP_CHECK}) - set(run._handle.members(name))):
        found.damaged(f"{name}/{missing}", "is missing")
        table.whole = False
    if run.status != "running" and longest > table.n_rows:
        found.note(name, f"{longest - table.n_rows} rows behind the last committed one, which do not count")
    table.columns = {"step": step, **table.columns}
    table.held["step"] = table.n_rows
    return table


def _wrong_kind(name: str, member: str, dataset: h5py.Dataset) -> str:
    """What is wrong with the dims or the type of a variable, or nothing."""
    dims = dims_of(dataset)
    if member in (CHECKSUM, STEP_CHECK):
        expected, types = ("step",), ["u8" if member == CHECKSUM else "i8"]
    elif name == "checkpoints":
        expected, types = ("step", "buffer" if member == "buffers" else "param"), ["f8", "f4"]
    elif name == "eigenpairs" and member in EIGENPAIR_VARIABLES:
        inner, kind, _ = EIGENPAIR_VARIABLES[member]
        expected, types = ("step", *inner), [kind] if kind else ["f8", "f4"]
    else:
        expected, types = ("step", *dims[1:]), ["f8"]
    if dims != expected:
        return f"its dims are {dims}, not {expected}"
    if dataset.dtype not in [np.dtype(kind) for kind in types]:
        return f"its type is {dataset.dtype}, not {' or '.join(str(np.dtype(kind)) for kind in types)}"
    for dim, size in zip(dims[1:], dataset.shape[1:], strict=True):
        if dataset.parent[dim].shape != (size,):
            return f"it has {size} entries along {dim}, whose scale has {dataset.parent[dim].shape}"
    return ""


def _stored_rows(dataset: h5py.Dataset) -> int:
    """Rows of which the file holds the bytes; a damaged shape may claim any number."""
    row = math.prod(dataset.shape[1:])
    return int(min(dataset.shape[0], stored_entries(dataset) // row)) if row else dataset.shape[0]


def _check_rows(name: str, table: _Table, found: Findings, progress: bool) -> None:
    n = table.n_rows
    if not n:
        found.ok(name, "no rows")
        return
    counted = [member for member, dataset in table.columns.items() if dataset.dtype.kind == "f"]
    lost = {member: np.zeros(n, bool) for member in table.columns}
    infinite = {member: [0, np.zeros(n, bool)] for member in counted}
    differing, unlike = np.zeros(n, bool), np.zeros(n, bool)
    steps = np.zeros(n, np.int64)
    for start, stop, values, failed in _blocks(table, name, progress):
        for member, mask in failed.items():
            lost[member][start:stop] = mask
        steps[start:stop] = values["step"]
        for member in counted:
            bad = ~np.isfinite(values[member]).reshape(stop - start, -1)
            if bad.any():
                infinite[member][0] += int(bad.sum())
                infinite[member][1][start:stop] = bad.any(1)
        if table.whole:
            data = [array for member, array in values.items() if member not in ("step", STEP_CHECK, CHECKSUM)]
            differing[start:stop] = row_checksums(values["step"], data) != values[CHECKSUM]
            differing[start:stop] |= values["step"] != ~values[STEP_CHECK]
        if "eigenvector" in values:
            vectors = values["eigenvector"]
            norms = np.sqrt(np.einsum("smp,smp->sm", vectors, vectors, dtype=np.float64))
            unlike[start:stop] = (np.abs(norms - 1) > UNIT_TOLERANCE[str(vectors.dtype)]).any(1)  # NaN is not compared
    _report(name, table, found, steps, lost, differing, unlike)
    for member, (count, rows) in infinite.items():
        rows &= ~(differing | lost[member])
        if rows.all():
            found.note(name, f"{member}: not finite in any row (not recorded?)")
        elif rows.any():
            at = np.flatnonzero(rows)
            text = f"{count} value{'s' * (count > 1)} not finite, at step {steps[at[0]]}"
            found.note(name, f"{member}: {text}" + (f" … {steps[at[-1]]}" if len(at) > 1 else ""), at)


def _report(name, table, found, steps, lost, differing, unlike) -> None:
    n = len(steps)
    unreadable = np.zeros(n, bool)
    for member, rows in lost.items():
        if rows[: table.held[member]].any():  # what is missing at its end has been said
            found.damaged(f"{name}/{member}", f"cannot be read in {_of(rows, n)}", np.flatnonzero(rows))
        unreadable |= rows
    differing &= ~unreadable
    if differing.any():
        others = "no other row is right" if (differing | unreadable).all() else "the others are right"
        found.damaged(name, f"the checksum differs in {_of(differing, n)}: {others}", np.flatnonzero(differing))
    backward = np.flatnonzero(np.diff(steps) <= 0) + 1
    suspect = differing | unreadable
    backward = backward[~(suspect[backward] | suspect[backward - 1])]
    if backward.size:
        found.damaged(name, f"steps do not increase at {row_text(stretches(backward))}", backward)
    unlike &= ~suspect
    if unlike.any():
        found.damaged(name, f"eigenvectors are not of unit length in {_of(unlike, n)}", np.flatnonzero(unlike))
    if not table.whole:
        found.skipped(name, "checksums: they cover all variables, of which not all can be read")
    elif not (suspect.any() or backward.size):
        found.ok(name, f"{n} rows, steps {steps[0]} … {steps[-1]}, checksums right")


def _of(rows: np.ndarray, n: int) -> str:
    return f"{row_text(stretches(np.flatnonzero(rows)))} ({int(rows.sum())} of {n})"


def _blocks(table: _Table, name: str, progress: bool) -> Iterator[tuple[int, int, dict, dict]]:
    """First row, last row plus one, values of each variable and masks of the rows that cannot be read, by block."""
    row = sum(c.dtype.itemsize * int(np.prod(c.shape[1:])) for c in table.columns.values())
    size = max(1, BLOCK_BYTES // row)
    failures = dict.fromkeys(table.columns, 0)
    disable = None if progress else True
    total = row * table.n_rows
    with tqdm(total=total, desc=f"verify {name}", unit="B", unit_scale=True, delay=1, disable=disable) as bar:
        for start in range(0, table.n_rows, size):
            stop = min(start + size, table.n_rows)
            values, failed = {}, {}
            for member, dataset in table.columns.items():
                values[member] = np.zeros((stop - start, *dataset.shape[1:]), dataset.dtype)
                failed[member] = np.zeros(stop - start, bool)
                end = min(stop, table.held[member])
                failed[member][max(0, end - start) :] = True
                if end > start:
                    failures[member] = _read(
                        dataset, start, end, values[member], failed[member], start, failures[member]
                    )
            yield start, stop, values, failed
            bar.update(row * (stop - start))


def _read(dataset, start: int, stop: int, values, failed, origin: int, failures: int) -> int:
    """Read rows into `values`, marking those that cannot be read in `failed`; returns the failed reads so far."""
    here = slice(start - origin, stop - origin)
    if failures >= MOST_FAILURES:
        failed[here] = True
        return failures
    try:
        dataset.read_direct(values, np.s_[start:stop], np.s_[here])
    except ERRORS:
        failures += 1
        if stop - start == 1:
            failed[here] = True
            return failures
        middle = (start + stop) // 2
        failures = _read(dataset, start, middle, values, failed, origin, failures)
        failures = _read(dataset, middle, stop, values, failed, origin, failures)
    return failures


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__
