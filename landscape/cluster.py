"""Tasks on a Dask cluster: sent a few at a time, repeated where a worker died, narrowed down to the row that fails."""

from __future__ import annotations

import contextlib
import heapq
import logging
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

PATIENCE = 8
"""After so many failed rows and no other, the fault is with the call."""

TASKS_PER_WORKER = 2
"""One that runs and one that waits for it; more would only fill memory."""

ALLOWED_DEATHS = 1
"""A task whose worker died once more than this has failed, on the cluster that we start ourselves."""

OF_OUR_OWN = {
    # Dask would keep the last thousand messages, and with them all rows that were sent.
    "distributed.admin.low-level-log-length": 0,
    # Dask also has workers give back freed memory at once (MALLOC_TRIM_THRESHOLD_): new pages for every large tensor
    # cost a third of the time.
    "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1},
}
"""Dask's settings for that cluster."""

# A model in a functional call holds other parameters, which a second thread would see.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    error: Exception
    killed: bool = False


class Part(NamedTuple):
    """Rows start … stop − 1."""

    start: int
    stop: int
    repeated: bool = False
    """One row of a task that failed."""
    suspect: bool = False
    """One row of a task whose worker died."""


@contextlib.contextmanager
def connected(client, n_tasks: int):
    """`client`, or one of a cluster of processes on this machine that is closed at the end."""
    try:
        import dask
        import distributed
        from dask.system import CPU_COUNT
    except ImportError:
        raise ImportError("map_checkpoints needs dask.distributed: pip install 'dynloss-landscape[cluster]'") from None
    if client is not None:
        if not isinstance(client, distributed.Client) or client.asynchronous:
            raise TypeError(f"client must be a distributed.Client (not an asynchronous one), got {client!r}")
        if client.status != "running":
            raise ValueError(f"the client is {client.status}; connect a new one with distributed.Client(…)")
        yield client
        return
    with dask.config.set(OF_OUR_OWN):
        try:
            cluster = distributed.LocalCluster(
                n_workers=min(CPU_COUNT, n_tasks),
                threads_per_worker=1,
                memory_limit=0,  # as in the plain call; Dask would pause or kill workers above their share
                dashboard_address="127.0.0.1:0",  # any free port, if it is shown at all
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={"allowed_failures": ALLOWED_DEATHS},
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"no cluster could be started on this machine ({error}); a script must make this call under "
                'if __name__ == "__main__":, as the worker processes import it'
            ) from None
        with cluster, distributed.Client(cluster, set_as_default=False) as own:
            # Ctrl-C, which a terminal sends to all processes, is left to this one, which ends the others.
            own.run(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None)
            yield own


def outcomes(
    client, objective, work: Callable[[int, int], tuple], n_rows: int, size: int, ahead: float, dim: str = "step"
) -> Iterator[tuple[int, int, tuple[xr.Dataset, list] | Failure]]:
    """(start, stop, (result, warnings) or Failure) of all rows as they end; a Failure is that of one row.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    objective : landscape.Objective
        Held by each worker.
    work : callable
        ``work(start, stop)`` gives analysis, checkpoints, args and options of these rows.
    n_rows, size : int
        Number of rows, and of those in a task.
    ahead : float
        No task begins so many rows beyond the first that has not ended.
    dim : str
        The dim of the rows.

    Raises
    ------
    Exception
        That of the analysis, if it fails at all rows, or at so many before it succeeds that it will at all.
    RuntimeError
        If the cluster is lost.
    """
    import distributed

    # A task, not scattered data: what is scattered dies with the worker that holds it, a task is run again.
    objective = _submit(client, _load, pickled(objective, "the objective"))
    waiting = [Part(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    suspects: deque[Part] = deque()
    in_flight: dict[distributed.Future, Part] = {}
    ended = distributed.as_completed(loop=client.loop)

    def submit(part: Part) -> None:
        task = pickled(work(part.start, part.stop), "the analysis or its arguments")
        future = _submit(client, _analyse, objective, task, dim)
        in_flight[future] = part
        ended.add(future)

    n_succeeded = n_failed = 0
    try:
        while waiting or suspects or in_flight:
            if suspects:
                # All tasks of a worker that dies count as its killers: only one that runs alone is surely guilty.
                if not in_flight:
                    submit(suspects.popleft())
            else:
                room = TASKS_PER_WORKER * max(1, len(client.nthreads())) - len(in_flight)
                first = min(part.start for part in [*waiting[:1], *in_flight.values()])
                while waiting and room > 0 and waiting[0].start < first + ahead:
                    submit(heapq.heappop(waiting))
                    room -= 1
            future = next(ended)
            part = in_flight.pop(future)
            outcome = _outcome(future)
            future.release()
            if not isinstance(outcome, Failure):
                n_succeeded += 1
            elif part.suspect if outcome.killed else part.repeated:
                n_failed += 1
                untried = any(not other.repeated for other in in_flight.values())
                left = waiting or suspects or in_flight
                if not n_succeeded and not untried and (n_failed >= PATIENCE or not left):
                    raise outcome.error
            else:
                for row in range(part.start, part.stop):
                    single = Part(row, row + 1, repeated=True, suspect=outcome.killed)
                    suspects.append(single) if outcome.killed else heapq.heappush(waiting, single)
                continue
            yield part.start, part.stop, outcome
    finally:
        if client.status == "running":
            client.cancel([objective, *in_flight])


def _submit(client, function: Callable, *args, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # it is sent once, and so are rows in memory
        return client.submit(function, *args, pure=False, **options)


def pickled(value, name: str) -> bytes:
    """`value` as bytes, functions by value where a worker could not import them; TypeError if that cannot be done."""
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"{name} cannot be sent to another process ({error}); leave out locks, generators and connections"
        ) from error


def _outcome(future):
    import distributed

    try:
        return future.result()
    except distributed.KilledWorker as killed:
        deaths = killed.allowed_failures + 1
        return Failure(RuntimeError(f"its worker died, {deaths} times" if deaths > 1 else "its worker died"), True)
    except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise RuntimeError(
            f"the cluster was closed, or its scheduler lost, before all tasks had ended: {error}"
        ) from error
    except Exception as error:  # where a worker could not even begin, as for a missing package
        return Failure(error)


def _load(objective: bytes):
    import cloudpickle

    return cloudpickle.loads(objective)


def _analyse(objective, work: bytes, dim: str) -> tuple[xr.Dataset, list[tuple[type, str]]] | Failure:
    """In a worker: the result of `work` and what it warned of. Lazily read files are opened and closed in here."""
    import cloudpickle

    with _ONE_AT_A_TIME, contextlib.redirect_stderr(_Plain(sys.stderr)), _one_thread():
        try:
            analysis, checkpoints, args, options = cloudpickle.loads(work)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                result = analysis(objective, checkpoints, *args, **options)
            _check(result, checkpoints, dim)
            return result.load(), [(warning.category, str(warning.message)) for warning in caught]
        except (Exception, SystemExit) as error:
            return Failure(_sendable(error))


def _check(result, rows: xr.Dataset, dim: str) -> None:
    if not isinstance(result, xr.Dataset) or dim not in result.indexes:
        raise TypeError(f"the analysis must return a Dataset with the coordinate {dim}, got {type(result).__name__}")
    if not np.array_equal(result[dim], rows[dim]):
        raise ValueError(
            f"the analysis must return a row for each it was given: {dim}s {rows[dim].values}; it returned "
            f"{result[dim].values}"
        )


def _sendable(error: BaseException) -> Exception:
    """`error`, or one that says the same, as it arrives in another process; with the traceback as a note."""
    import cloudpickle

    note = "In a worker process:\n" + "".join(traceback.format_exception(error))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
        known = isinstance(error, Exception)
    except Exception:
        known = False
    error = error if known else RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error.with_traceback(None)


@contextlib.contextmanager
def _one_thread():
    """One thread of torch: there is a worker for each core."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


class _Plain:
    """A stream that says it is no terminal, so that progress bars of tasks do not mix with ours."""

    def __init__(self, stream):
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
