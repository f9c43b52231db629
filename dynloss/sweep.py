"""Sweeps: grids of training runs on a Dask cluster, which go on where they were interrupted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from tqdm import tqdm

from dynloss.sweep_file import SweepFile
from dynloss.sweep_runs import table_of
from dynloss.sweep_task import train_runs
from landscape.cluster import Failure, connected, outcomes

RUNS_PER_TASK = 32
"""A task trains at most so many runs: what a killed worker costs."""

SHARES = 4
"""At least so many tasks for each worker, where there are runs enough."""


def sweep(
    out: str | os.PathLike,
    grids: Mapping | Sequence[Mapping],
    *,
    n_steps: int,
    static_steps: int = 0,
    n_per_class: int = 100,
    n_classes: int = 3,
    history_every: int | None = None,
    dtype: str = "float64",
    client=None,
    runs_per_task: int | None = None,
    overwrite: bool = False,
) -> xr.Dataset:
    """Train a network with one hidden layer on the spiral task for every combination of settings, on a Dask cluster.

    Runs are grouped into tasks, and those of one width and kind of loss are trained together by
    `dynloss.train_ensemble`. Results are written as tasks end. An interrupted sweep goes on when it is called again
    with the same arguments; a worker that dies costs its task, which runs again. The seed of a run is that of its
    initial parameters; its data have the seed 2·seed, its validation set 2·seed + 1.

    Parameters
    ----------
    out : path-like
        The file of the results; while the sweep runs they stand in ``OUT.part``.
    grids : mapping, or sequence of mappings
        What is varied: ``loss`` (cross_entropy, squared_error, dynamical_cross_entropy, dynamical_squared_error),
        ``weighting``, ``amplitude``, ``period``, ``learning_rate``, ``width``, ``seed``: each one value or several, of
        which every combination is trained. Several grids are trained one after another, a run that two of them share
        once.
    n_steps : int
        Updates of each run.
    static_steps : int
        Number of last steps in which dynamical losses are static.
    n_per_class, n_classes : int
        Points on each spiral arm, and arms.
    history_every : int, optional
        Steps between rows of the histories; by default 50 rows.
    dtype : str
        "float64" or "float32".
    client : distributed.Client, optional
        The cluster, as for `landscape.map_checkpoints`; by default processes on this machine.
    runs_per_task : int, optional
        Runs in a task; by default at most 32, and so few that each worker gets several tasks.
    overwrite : bool
        Whether results of another sweep may be replaced.

    Returns
    -------
    xarray.Dataset
        ``loss``, ``accuracy``, ``validation_accuracy`` (run, step), evaluated before the update of that step;
        ``final_loss``, ``final_accuracy``, ``final_validation_accuracy`` (run), after the last one; ``status`` (run),
        "complete", "diverged" or "failed"; ``last_step`` (run). What was varied are coordinates of the runs, the loss
        as ``loss_name``.

    Raises
    ------
    ValueError
        For settings out of range; and whatever training raises if all runs that are left fail.
    FileExistsError
        If `out` holds another sweep and `overwrite` is False.
    ImportError
        Without dask.distributed.

    Warns
    -----
    UserWarning
        Once, naming the runs that failed; they are tried again when the sweep is called again.

    Examples
    --------
    >>> grids = {"loss": "cross_entropy", "learning_rate": [0.5, 1.0], "seed": range(20)}
    >>> found = sweep("sweep.h5", grids, n_steps=10_000)  # doctest: +SKIP
    """
    history_every = history_every or max(1, n_steps // 50)
    least = {"n_steps": (n_steps, 1), "static_steps": (static_steps, 0), "n_per_class": (n_per_class, 1)}
    least |= {"n_classes": (n_classes, 2), "history_every": (history_every, 1)}
    for name, (value, at_least) in least.items():
        if not isinstance(value, int) or value < at_least:
            raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")
    if dtype not in ("float64", "float32"):
        raise ValueError(f'dtype must be "float64" or "float32", got {dtype!r}')
    if runs_per_task is not None and runs_per_task < 1:
        raise ValueError(f"runs_per_task must be at least 1, got {runs_per_task}")
    settings = {"n_steps": n_steps, "static_steps": static_steps, "n_per_class": n_per_class, "n_classes": n_classes}
    settings |= {"history_every": history_every, "dtype": dtype}
    runs = table_of(grids)
    file = SweepFile(out, runs, settings, np.arange(0, n_steps, history_every), overwrite)
    pending = _alike_together(runs, file.pending)
    failures = _train(file, runs.isel(run=pending), settings, client, runs_per_task) if len(pending) else {}
    if failures:
        shown = ", ".join(map(str, sorted(failures)[:8])) + (", …" if len(failures) > 8 else "")
        warnings.warn(f"{len(failures)} runs failed ({shown}): {next(iter(failures.values()))}", stacklevel=2)
    return file.finish()


def _alike_together(runs: xr.Dataset, rows: np.ndarray) -> np.ndarray:
    """`rows` in an order in which a task holds runs that can be trained together, and share data."""
    keys = [runs[name].values[rows] for name in ("learning_rate", "seed", "width", "weighting", "loss")]
    return rows[np.lexsort(keys)]


def _train(
    file: SweepFile, runs: xr.Dataset, settings: dict, client, runs_per_task: int | None
) -> dict[int, Exception]:
    """Train `runs`, and write what comes back; returns the errors of those that failed."""
    numbers, n_runs, failures = runs.run.values, runs.sizes["run"], {}

    def work(start: int, stop: int) -> tuple:
        return train_runs, runs.isel(run=slice(start, stop)), (settings,), {}

    with connected(client, n_runs) as connection:
        n_workers = max(1, len(connection.nthreads()))
        size = runs_per_task or min(RUNS_PER_TASK, -(-n_runs // (SHARES * n_workers)))
        done = {"total": len(file.state), "initial": len(file.state) - n_runs}
        with tqdm(**done, desc="sweep", unit="run", delay=1, disable=None) as progress:
            for start, stop, outcome in outcomes(connection, None, work, n_runs, size, np.inf, "run"):
                if isinstance(outcome, Failure):
                    file.fail(numbers[start:stop])
                    failures |= dict.fromkeys(numbers[start:stop].tolist(), outcome.error)
                else:
                    file.write(numbers[start:stop], outcome[0])
                progress.update(stop - start)
    return failures
