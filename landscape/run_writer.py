"""RunWriter: records a training run while it happens."""

from __future__ import annotations

import contextlib
import operator
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from landscape import run_format
from landscape.attributes import to_json
from landscape.failed_writes import abandon, check_room, reason
from landscape.resume import mark_interrupted, open_to_resume
from landscape.row_values import put_checkpoint, put_eigenpairs, put_history
from landscape.run_state import TABLES, StateSlots, newest_state, saved_states
from landscape.run_tables import Table
from landscape.writer_place import WriterPlace

if TYPE_CHECKING:
    from landscape.params import ParamLayout


class RunWriter:
    """Writes a run file: per-step scalars, checkpoints of θ and eigenpairs, readable while it grows.

    Rows wait in memory and are committed block by block: all variables are written and flushed, then `step` is
    extended and flushed, and a row exists only when `step` says so. If the process is killed at any moment, the file
    opens and holds every committed row. Use it as a context manager: on leaving, the last rows are committed and the
    status becomes "complete", or "interrupted" after an exception. After a write that failed, nothing more is written:
    the file is closed as it is, "interrupted" where that can still be said, to be resumed.

    Parameters
    ----------
    path : str or path-like
        The file to create.
    layout : ParamLayout
        Names and shapes of the tensors in θ.
    history : sequence of str, or mapping of str to mapping
        Names of the scalars of each step; as a mapping, ``{"loss": {}, "class_weight": {"class": 3}}`` gives the
        sizes of further dims.
    attrs : mapping, optional
        How the run is trained: optimizer, learning_rate, period, … Analyses read these from ``checkpoints.attrs``.
    config : mapping, optional
        Everything needed to repeat the run; stored as JSON.
    producer : str
        Name of the entry point in the group ``landscape.objectives`` that rebuilds the objective.
    data : mapping, optional
        ``{"training": (inputs, targets), "validation": …}``, arrays or tensors with one row a sample.
    n_modes : int
        Number of eigenpairs of `append_eigenpairs`; 0 for none.
    dtype : str
        Stored type of θ and eigenvectors: "float64" or "float32".
    block_rows : int
        Rows to wait for before they are written together.
    block_seconds : float
        Rows older than this are written with the next one, so slow runs are readable soon too.
    overwrite : bool
        Whether an existing file may be replaced.
    resume : bool
        Whether to go on with the killed or interrupted run that `path` holds; without a file, a run begins. Rows
        that the file already holds are compared with those appended again, and not stored twice.
    state : mapping, optional
        Arrays of the shapes and types of what `save_state` will save, by name.
    optimizer_state : sequence of str
        Names of vectors (n,) of the optimiser that are saved with each checkpoint, such as second_moment.
    buffers : ParamLayout, optional
        Of what the model holds besides θ and is saved with each checkpoint, such as the running statistics of batch
        norms: ``ParamLayout.of_buffers(model)``.

    Attributes
    ----------
    path : Path
        The file.
    status : str
        "running" until the run is finished.
    state : xr.Dataset or None
        In a resumed run, the last state that `save_state` saved, with the coordinate `step`; else None.

    Raises
    ------
    FileExistsError
        If `path` exists, and neither `overwrite` nor `resume` is True.
    FileNotFoundError
        If the folder does not exist.
    BlockingIOError
        If another writer has the file open.
    OSError
        If the file cannot be written: no permission, no space. There is no part of a new file then.
    ValueError
        If an option is out of its range, or a resumed run is finished, damaged or another one.

    Examples
    --------
    >>> import tempfile, torch
    >>> from landscape import ParamLayout, open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> with RunWriter(f"{folder.name}/a.h5", ParamLayout(("w",), ((2,),)), history=["loss"]) as writer:
    ...     for step in range(3):
    ...         writer.append(step, torch.tensor([1.0, 2.0]) / (step + 1), loss=0.5**step)
    >>> with open_run(f"{folder.name}/a.h5") as run:
    ...     run.status, run.history.loss.values, run.checkpoints.params.sel(step=1).values
    ('complete', array([1.  , 0.5 , 0.25]), array([0.5, 1. ]))
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike,
        layout: ParamLayout,
        *,
        history: Sequence[str] | Mapping[str, Mapping[str, int]],
        attrs: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        producer: str = "",
        data: Mapping[str, tuple[Any, Any]] | None = None,
        n_modes: int = 0,
        dtype: str = "float64",
        block_rows: int = 256,
        block_seconds: float = 10.0,
        overwrite: bool = False,
        resume: bool = False,
        state: Mapping[str, Any] | None = None,
        optimizer_state: Sequence[str] = (),
        buffers: ParamLayout | None = None,
    ):
        self.path = Path(path)
        self.layout = layout
        self.status = "running"
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f'dtype must be "float64" or "float32", got {dtype!r}')
        if block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, got {block_rows}")
        if not 0 <= n_modes <= layout.n_params:
            raise ValueError(f"n_modes must be between 0 and the {layout.n_params} parameters, got {n_modes}")
        content = {
            "history": dict(history) if isinstance(history, Mapping) else {name: {} for name in history},
            "attrs": dict(attrs or {}),
            "n_modes": n_modes,
            "dtype": np.dtype(dtype),
            "state": {name: run_format.to_array(example) for name, example in (state or {}).items()},
            "optimizer_state": tuple(optimizer_state),
            "buffers": buffers if buffers is not None and buffers.names else None,
        }
        self._block_seconds = block_seconds
        self._oldest = 0.0
        self.state: xr.Dataset | None = None
        self._place = WriterPlace(self.path)
        try:
            if resume and self.path.exists():
                self._file = open_to_resume(self._place.path, layout, **content)
            elif self.path.exists() and not overwrite:
                raise FileExistsError(f"{self.path} exists; give another path, or overwrite=True to replace it")
            else:
                more = {"config": config or {}, "producer": producer, "data": data or {}, "block_rows": block_rows}
                self._file = self._create(content | more)
            self._place.remember()
            tables = {name: Table(self._file[name], block_rows) for name in TABLES if name in self._file}
            self._history, self._checkpoints = tables["history"], tables["checkpoints"]
            self._eigenpairs = tables.get("eigenpairs")
            self._tables = list(tables.values())
            self._slots = None
            if state:
                self._slots = StateSlots(self._file["state"])
                self.state = newest_state(saved_states(self._file["state"]), self._n_rows())
        except BaseException:
            self._place.release()
            raise

    def append(
        self,
        step: int,
        params: Any = None,
        *,
        optimizer_state: Mapping[str, Any] | None = None,
        buffers: Any = None,
        **history: Any,
    ) -> None:
        """Record one row of the history, and θ where it is given.

        Parameters
        ----------
        step : int
            Number of updates made before; must increase from row to row.
        params : tensor or array, shape (n,), optional
            θ at this step: one row of the checkpoints.
        optimizer_state : mapping of str to tensor or array, shape (n,), optional
            With θ, the vectors of the optimiser that the writer declared.
        buffers : tensor or array, shape (b,), optional
            With θ, the buffers of the model, if the writer declared any: ``layout_of_buffers.flatten_model(model)``.
        **history : float or array-like
            Values of all variables of the history at this step; NaN and inf are kept as they are. None at all: only
            θ is recorded.

        Raises
        ------
        ValueError
            If values are missing or unknown, steps do not increase, θ has another length, or the writer is closed.
        """
        if self.status != "running":
            raise ValueError(f"{self.path} is closed with status {self.status!r}; nothing more can be recorded")
        step = operator.index(step)
        rows, saved, full = self._history, self._checkpoints, False
        if history:
            put_history(rows, history)
        if params is not None:
            put_checkpoint(saved, params, optimizer_state, buffers)
        if history:
            full = rows.push(step)
        if params is not None:
            full |= saved.push(step)
        now = time.monotonic()
        self._oldest = self._oldest or now
        if full or now - self._oldest > self._block_seconds:
            self.commit()

    def append_eigenpairs(self, eigs: xr.Dataset) -> None:
        """Record the rows of `eigs`, a Dataset as `top_eigenpairs` returns it.

        Parameters
        ----------
        eigs : xr.Dataset
            Dims step, mode (at least `n_modes`) and param; variables that it lacks become NaN, flags False.

        Raises
        ------
        ValueError
            If the writer was made with n_modes=0, shapes do not fit, or steps do not increase.
        """
        if self.status != "running":
            raise ValueError(f"{self.path} is closed with status {self.status!r}; nothing more can be recorded")
        table = self._eigenpairs
        if table is None:
            raise ValueError("this writer records no eigenpairs; give n_modes=k to RunWriter")
        for step in put_eigenpairs(table, eigs):
            self._oldest = self._oldest or time.monotonic()
            if table.push(step):
                self.commit()

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Save what training resumes from: it is copied now, and written with the next commit.

        Parameters
        ----------
        step : int
            Step from which training would go on.
        state : mapping of str to tensor or array
            Everything that training depends on besides the code: θ, the optimiser's buffers, random states. Names,
            shapes and types as the writer declared them.

        Raises
        ------
        ValueError
            If the state is not what was declared.
        """
        if self._slots is None:
            raise ValueError("this writer keeps no state; give state={name: array, …} to RunWriter")
        arrays = {name: run_format.to_array(value) for name, value in state.items()}
        self._slots.hold(operator.index(step), arrays, self._n_rows())

    def commit(self) -> None:
        """Write the rows that wait in memory; from then on readers see them, and a killed process keeps them.

        Raises
        ------
        OSError
            If they cannot be written, for example because the disk is full. What was committed before is safe; the
            writer is closed, and the run can be resumed.
        """
        tables = [table for table in self._tables if table.n_buffered]
        try:
            self._place.check()
            for table in tables:
                table.write_rows()
            if self._slots is not None and self._slots.pending:
                self._slots.write()
            self._file.flush()
            for table in tables:
                table.write_steps()
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._fail()
            raise self._failure(error) from error
        self._oldest = 0.0

    def finish(self, status: str = "complete") -> None:
        """Commit the last rows, set the status and close the file.

        Parameters
        ----------
        status : str
            "complete", "diverged" or "interrupted".

        Raises
        ------
        OSError
            As in `commit`.
        """
        if status not in run_format.STATUSES[1:]:
            raise ValueError(f"status must be one of {', '.join(run_format.STATUSES[1:])}, got {status!r}")
        if self.status != "running":
            return
        try:
            self.commit()
            # In place, and flushed on its own: live readers and plain ones both see it.
            self._file.attrs.modify("status", np.bytes_(status))
            self._file.flush()
            self._file.close()
        except BaseException as error:
            if self.status != "running":  # the commit has failed and closed the file
                raise
            self._fail()
            if isinstance(error, (OSError, RuntimeError)):
                raise self._failure(error) from error
            raise
        self.status = status
        self._place.release()

    def close(self) -> None:
        """Finish the run as complete, unless it is finished already."""
        self.finish()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.finish("complete" if kind is None else "interrupted")
        except OSError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def _create(self, content: dict[str, Any]):
        arrays = [part for pair in content["data"].values() for part in pair]
        arrays += [*content["state"].values()] * 2
        texts = len(to_json(content["config"])) + len(self.layout.to_json())
        room = 2**18 + 4 * texts + sum(run_format.to_array(array).nbytes for array in arrays)
        try:
            check_room(self._place.path.parent, room)
            return run_format.create_file(self._place.path, self.layout, **content)
        except (OSError, RuntimeError) as error:
            raise _with_errno(OSError(f"cannot create {self.path}: {reason(error)}"), error) from error

    def _fail(self) -> None:
        """Close the file after a write that failed, so that it is as if the process had been killed."""
        self.status = "interrupted"
        try:
            abandon(self._file)
            with contextlib.suppress(OSError):
                self._place.check()
                mark_interrupted(self._place.path)
        finally:
            self._place.release()

    def _failure(self, error: BaseException) -> OSError:
        return _with_errno(
            OSError(
                f"cannot write to {self.path}: {reason(error)}; what was committed is safe, and the run can be resumed"
            ),
            error,
        )

    def _n_rows(self) -> list[int]:
        return [self._history.n_rows, self._checkpoints.n_rows, self._eigenpairs.n_rows if self._eigenpairs else 0]


def _with_errno(error: OSError, cause: BaseException) -> OSError:
    error.errno = getattr(cause, "errno", None)
    return error
