"""How a run file whose writer was killed, or interrupted, is opened to go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from landscape.attributes import LAYOUTS, to_json
from landscape.failed_writes import abandon
from landscape.file_handle import LOCK
from landscape.run_format import OPEN
from landscape.run_state import TABLES
from landscape.run_tables import allocated_by_a_commit
from landscape.superblock import make_writable

if TYPE_CHECKING:
    from landscape.params import ParamLayout


def open_to_resume(
    path: Path,
    layout: ParamLayout,
    *,
    history: Mapping[str, Mapping[str, int]],
    attrs: Mapping[str, Any],
    n_modes: int,
    dtype: np.dtype,
    state: Mapping[str, np.ndarray],
    optimizer_state: Sequence[str],
    buffers: ParamLayout | None,
) -> h5py.File:
    """The run file `path`, open for appending; the caller holds its lock.

    Nothing in the file is moved or shortened, so that a second kill at any moment does no harm either.

    Raises
    ------
    ValueError
        If the run is finished, or is not the one described by the other arguments.
    RunFormatError
        If it is not a run file, or damaged.
    """
    from landscape.run import Run

    with Run(path) as run:
        if run.status in ("complete", "diverged"):
            raise ValueError(f"{path} is {run.status}; there is nothing to resume. overwrite=True would replace it")
        differences = _differences(run, layout, history, attrs, n_modes, dtype, state, optimizer_state, buffers)
    if differences:
        raise ValueError(f"{path} holds another run, and cannot be resumed as this one: {'; '.join(differences)}")
    file = _open_after_its_writer(path)
    try:
        file.attrs.modify("status", np.bytes_("running"))
        file.attrs.modify("n_resumed", file.attrs["n_resumed"] + 1)
        file.flush()
    except BaseException:
        abandon(file)
        raise
    return file


def mark_interrupted(path: Path) -> None:
    """Let the run file `path`, whose writer has failed, say "interrupted", if it can; the caller holds its lock."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError):
        file = _open_after_its_writer(path)
        try:
            file.attrs.modify("status", np.bytes_("interrupted"))
            file.flush()
            file.close()
        except BaseException:
            abandon(file)
            raise


def _open_after_its_writer(path: Path) -> h5py.File:
    """The run file `path`, whose writer is dead, open for writing once more.

    Readers of it in this process are closed meanwhile, as HDF5 opens no file for writing that it has open for reading.
    """
    from landscape.run import Run

    with LOCK:
        with Run(path) as run:
            block_rows = int(np.clip(run._handle.file.attrs["block_rows"], 1, 2**20))
            groups = [run._handle.group(name) for name in TABLES if name in run._handle]
            reserve = sum(allocated_by_a_commit(group, block_rows) for group in groups)
            readers = run._handle._others()
        make_writable(path, reserve)
        for reader in readers:
            reader.close()
        try:
            return _open_as_swmr_writer(path)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and "already open" not in str(error):
                raise
            raise BlockingIOError(
                f"{path} is open in another program, or outside open_run in this one; close it there to resume the run"
            ) from None
        finally:
            for reader in readers:
                reader._open()


def _open_as_swmr_writer(path: Path) -> h5py.File:
    """The file as a SWMR writer from its first write on: while it were a plain one, readers would be shut out."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    metadata_elements, chunk_slots, _, preemption = access.get_cache()
    access.set_cache(metadata_elements, chunk_slots, OPEN["rdcc_nbytes"], preemption)
    flags = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def _differences(run, layout, history, attrs, n_modes, dtype, state, optimizer_state, buffers) -> list[str]:
    """What the run in the file is, against what it should be; empty where they agree."""
    checkpoints, stored = run.checkpoints, run._handle
    found = []

    def compare(what, theirs, ours):
        if theirs != ours:
            found.append(f"its {what} is {theirs}, not {ours}")

    compare("layout", run.tensors, dict(zip(layout.names, layout.shapes, strict=True)))
    sizes = {name: dict(variable.sizes) for name, variable in run.history.data_vars.items()}
    compare(
        "history",
        {name: {dim: size for dim, size in dims.items() if dim != "step"} for name, dims in sizes.items()},
        {name: dict(dims) for name, dims in history.items()},
    )
    compare("optimizer state", sorted(set(checkpoints.data_vars) - {"params", "buffers"}), sorted(optimizer_state))
    compare("buffers", checkpoints.attrs.get("buffer_layout"), None if buffers is None else buffers.to_json())
    compare("dtype", checkpoints["params"].dtype, dtype)
    pairs = "eigenpairs" in stored
    compare("number of modes", stored["eigenpairs/mode"].shape[0] if pairs else 0, n_modes)
    theirs = {name: value for name, value in checkpoints.attrs.items() if name not in LAYOUTS}
    for name in [*attrs, *(theirs.keys() - attrs.keys())]:
        compare(f"attribute {name}", to_json(theirs.get(name)), to_json(attrs.get(name)))
    compare("state", run._state_shapes(), {name: (array.dtype.name, array.shape) for name, array in state.items()})
    return found
