"""``python -m dynloss sweep``: a grid of runs from the command line, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from landscape.command_line import Parser

EPILOG = """\
examples:
  python -m dynloss sweep sweep.h5 --learning-rate 0.5 1 --amplitude 10 70 --period 1000 5000 --seed 0:20
  python -m dynloss sweep sweep.h5 --seed 0:1000 --scheduler tcp://node7:8786
  python -m dynloss sweep sweep.h5 --seed 0:1000 --slurm queue=short cores=8 memory=16GB walltime=01:00:00 --jobs 20

The same command goes on with an interrupted sweep. Every combination of the values is trained; amplitude and period do
not matter for static losses. SLURM jobs are started through dask-jobqueue, one worker a core."""


def main(argv: Sequence[str]) -> int:
    """Sweep as `argv` says; returns 0, or 1 where runs failed."""
    options = _parser().parse_args(list(argv))
    options.seed = [seed for several in options.seed for seed in several]
    from dynloss.sweep import sweep
    from dynloss.sweep_runs import AXES  # torch takes a second to load: only after the arguments were read

    grid = {name: getattr(options, name) for name in AXES}
    settings = {name: getattr(options, name) for name in ("n_steps", "static_steps", "n_per_class", "n_classes")}
    settings |= {name: getattr(options, name) for name in ("history_every", "dtype", "runs_per_task", "overwrite")}
    with _client(options) as client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = sweep(options.out, grid, client=client, **settings)
        except KeyboardInterrupt:
            print("dynloss: interrupted; the same command goes on with what is left", file=sys.stderr)
            raise
    counts = {status: int((found.status == status).sum()) for status in ("complete", "diverged", "failed")}
    print(", ".join(f"{n} {status}" for status, n in counts.items() if n))
    if counts["failed"]:
        print(*(warning.message for warning in caught), sep="\n")
        print(f"{options.out}.part holds the others; the same command tries again")
        return 1
    print(f"The results are in {options.out}: landscape.load_dataset reads them")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m dynloss sweep",
        description="Train a network with one hidden layer on the spiral task for every combination of settings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="file of the results; until all are there, OUT.part")
    grid = parser.add_argument_group("what is varied (several values each; seeds also as FIRST:STOP)")
    grid.add_argument("--loss", nargs="+", default=["dynamical_cross_entropy"], metavar="NAME")
    grid.add_argument("--weighting", nargs="+", default=["sample"], metavar="sample|component")
    grid.add_argument("--amplitude", nargs="+", type=float, default=[70.0], metavar="A")
    grid.add_argument("--period", nargs="+", type=int, default=[5000], metavar="T")
    grid.add_argument("--learning-rate", nargs="+", type=float, default=[1.0], metavar="η")
    grid.add_argument("--width", nargs="+", type=int, default=[100], metavar="N")
    grid.add_argument("--seed", nargs="+", type=_seeds, default=[range(1)], metavar="SEED")
    parser.add_argument("--n-steps", type=int, default=10_000, metavar="N", help="updates of each run (10000)")
    parser.add_argument("--static-steps", type=int, default=0, metavar="N", help="last steps without oscillation (0)")
    parser.add_argument("--n-per-class", type=int, default=100, metavar="N", help="points on each spiral arm (100)")
    parser.add_argument("--n-classes", type=int, default=3, metavar="N", help="spiral arms (3)")
    parser.add_argument("--history-every", type=int, metavar="N", help="steps between rows of the histories (50 rows)")
    parser.add_argument("--dtype", default="float64", help="float64 or float32")
    parser.add_argument("--runs-per-task", type=int, metavar="N", help="what a killed worker costs (at most 32)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another sweep")
    where = parser.add_argument_group("where it runs: without any of these, on the cores of this machine")
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs")
    where.add_argument("--slurm", nargs="+", metavar="KEY=VALUE", help="arguments of dask_jobqueue.SLURMCluster")
    where.add_argument("--jobs", type=int, default=1, metavar="N", help="SLURM jobs to ask for (1)")
    return parser


def _seeds(text: str) -> range:
    """ "3" is one seed, "0:20" are twenty."""
    first, _, stop = text.partition(":")
    try:
        return range(int(first), int(stop) if stop else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are numbers, or FIRST:STOP, got {text!r}") from None


@contextlib.contextmanager
def _client(options: argparse.Namespace) -> Iterator:
    """The cluster that the options ask for; None for processes on this machine."""
    if options.scheduler and options.slurm:
        raise ValueError("give --scheduler or --slurm, not both")
    if not (options.scheduler or options.slurm):
        yield None
        return
    import distributed

    with contextlib.ExitStack() as stack:
        address = options.scheduler
        if options.slurm:
            address = stack.enter_context(slurm_cluster(options.slurm))
            address.scale(jobs=options.jobs)
        try:
            client = stack.enter_context(distributed.Client(address, set_as_default=False))
        except OSError as error:
            raise ValueError(f"no scheduler answers at {address}: {error}") from None
        client.wait_for_workers(1)
        yield client


def slurm_cluster(arguments: Sequence[str]):
    """A `dask_jobqueue.SLURMCluster` from arguments KEY=VALUE; one worker with one thread for each core."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ValueError("--slurm needs dask-jobqueue: pip install dask-jobqueue") from None
    pairs = dict(argument.partition("=")[::2] for argument in arguments)
    if not all(pairs.values()):
        raise ValueError(f"--slurm takes KEY=VALUE, got {' '.join(arguments)}")
    cores = int(pairs.pop("cores", 1))
    return SLURMCluster(cores=cores, processes=cores, **pairs)
