"""The same analysis over many checkpoints on a Dask cluster; a task that fails costs its own rows and no others."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable

import numpy as np
import xarray as xr
from tqdm import tqdm

from landscape.checkpoints import rows
from landscape.cluster import connected, outcomes
from landscape.joined import Joined

ROWS_PER_TASK, BYTES_PER_TASK = 64, 2**24
"""A task takes at most so many checkpoints, and so many bytes of them: few enough to lose with a worker."""

SHARES = 4
"""At least so many tasks for each worker, where there are rows enough, so that none waits long for the last."""

AHEAD = 8
"""Tasks for each worker that may end before an earlier one, and wait in memory to be written."""


def map_checkpoints(
    analysis: Callable[..., xr.Dataset],
    objective,
    checkpoints: xr.Dataset,
    *args,
    client=None,
    rows_per_task: int | None = None,
    out: str | os.PathLike | None = None,
    **options,
) -> xr.Dataset:
    """What ``analysis(objective, checkpoints, *args, **options)`` returns, computed on a Dask cluster.

    The checkpoints are cut into tasks of a few rows. Those still in a run file are read by the workers, each opening
    the file itself. A task whose worker dies runs again on another; a task that fails is repeated row by row, and a
    row that fails again becomes NaN. Signs and order of eigenvectors are followed over the borders of tasks, so the
    result is that of the plain call, but for rounding.

    Parameters
    ----------
    analysis : callable
        Any function of this package or of your own, as `landscape.top_eigenpairs`, that returns a Dataset with a row
        (dim ``step``) for each checkpoint that does not depend on the other rows.
    objective : landscape.Objective
        The loss F(θ, t); it is sent to each worker once.
    checkpoints : xarray.Dataset
        ``params`` (step, param).
    *args, **options
        Further arguments of `analysis`. Datasets and DataArrays with a dim ``step`` are cut as the checkpoints are, to
        the steps that all of them hold.
    client : distributed.Client, optional
        The cluster to use, for example ``Client(dask_jobqueue.SLURMCluster(…))``. By default one of processes on this
        machine, as many as cores, which is closed at the end; in a script, the call then has to stand under ``if
        __name__ == "__main__":``. Each worker runs one task at a time, on one torch thread; start those of other
        clusters with one thread, and without Dask's ``MALLOC_TRIM_THRESHOLD_``, which slows torch down.
    rows_per_task : int, optional
        Checkpoints in a task; by default at most 64, and so few that each thread gets several tasks.
    out : str or path-like, optional
        Write rows to this file as tasks end, and return the Dataset that reads it lazily; memory is then that of a few
        tasks. An interrupted call leaves ``OUT.part`` with the rows written so far; the next call replaces it.

    Returns
    -------
    xarray.Dataset
        With dim ``step`` first. Rows of failed checkpoints are NaN, flags False and counts 0 in them; the attr
        ``failed_steps`` lists their steps, and is there only if there are any.

    Raises
    ------
    ImportError
        Without dask.distributed.
    ValueError, TypeError
        For checkpoints of another model, arguments without a common step, or an objective that cannot be pickled; and
        whatever `analysis` raises if it fails at all checkpoints, or at 64 (8 where its worker dies) before any other.
    FileNotFoundError
        If the folder of `out` does not exist.

    Warns
    -----
    UserWarning
        Once, naming the steps that failed and why the first did; and what `analysis` warns of, once each.

    Examples
    --------
    >>> eigs = map_checkpoints(top_eigenpairs, objective, run.checkpoints, k=3)  # doctest: +SKIP
    """
    if not callable(analysis):
        raise TypeError(f"analysis must be a function (objective, checkpoints, …), got {type(analysis).__name__}")
    if rows_per_task is not None and rows_per_task < 1:
        raise ValueError(f"rows_per_task must be at least 1, got {rows_per_task}")
    checkpoints, args, options = _at_shared_steps(rows(checkpoints, objective), args, options)
    n_rows, failure = checkpoints.sizes["step"], _failure(analysis, options)

    def work(start: int, stop: int) -> tuple:
        def cut(value):
            return value.isel(step=slice(start, stop)) if _has_steps(value) else value

        share = {} if failure is None else {"failure": failure * (stop - start) / n_rows}
        cut_options = {name: cut(value) for name, value in options.items()}
        return analysis, cut(checkpoints), tuple(map(cut, args)), cut_options | share

    attrs = {} if failure is None else {"failure": failure}
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(contextlib.closing(Joined(checkpoints.step, out, options.get("previous"), attrs)))
        client = stack.enter_context(connected(client, n_rows))
        n_workers = max(1, len(client.nthreads()))
        size = rows_per_task or _rows_per_task(checkpoints, n_workers)
        ahead = np.inf if out is None else AHEAD * n_workers * size
        ended = stack.enter_context(contextlib.closing(outcomes(client, objective, work, n_rows, size, ahead)))
        progress = stack.enter_context(tqdm(total=n_rows, desc=_name(analysis), unit="step", delay=1, disable=None))
        for start, stop, outcome in ended:
            joined.take(start, stop, outcome)
            progress.update(stop - start)
        return joined.finish()


def _has_steps(value) -> bool:
    return isinstance(value, xr.Dataset | xr.DataArray) and "step" in value.dims


def _at_shared_steps(checkpoints: xr.Dataset, args: tuple, options: dict) -> tuple[xr.Dataset, tuple, dict]:
    """All at the steps that the checkpoints and all arguments with a dim step hold, sorted if any holds others."""
    held = [value.step.values for value in [checkpoints, *args, *options.values()] if _has_steps(value)]
    if all(np.array_equal(steps, held[0]) for steps in held):
        return checkpoints, args, options
    shared = functools.reduce(np.intersect1d, held)
    if not len(shared):
        raise ValueError("checkpoints and arguments share no step; compute the arguments for these checkpoints")

    def at_shared(value):
        return value.sel(step=shared) if _has_steps(value) else value

    at_options = {name: at_shared(value) for name, value in options.items()}
    return at_shared(checkpoints), tuple(map(at_shared, args)), at_options


def _failure(analysis: Callable, options: dict) -> float | None:
    """The probability of a wrong certificate that the whole series may have, where the analysis has such an option."""
    with contextlib.suppress(TypeError, ValueError):  # of what has no signature
        parameter = inspect.signature(analysis).parameters.get("failure")
        if parameter is not None:
            failure = options.get("failure", parameter.default)
            return failure if isinstance(failure, float | int) else None
    return None


def _name(analysis: Callable) -> str:
    while isinstance(analysis, functools.partial):
        analysis = analysis.func
    return getattr(analysis, "__name__", type(analysis).__name__)


def _rows_per_task(checkpoints: xr.Dataset, n_workers: int) -> int:
    row_bytes = checkpoints.params.nbytes // checkpoints.sizes["step"]
    evenly = -(-checkpoints.sizes["step"] // (SHARES * n_workers))
    return max(1, min(ROWS_PER_TASK, evenly, BYTES_PER_TASK // max(1, row_bytes)))
