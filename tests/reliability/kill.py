"""Real kills (SIGKILL) of training processes: what was committed is there and right, and the run goes on to its end.

Run as a script, it kills 50 training processes at moments spread over their life, half of them at random times and
half in the middle of creating, committing, recording eigenpairs or finishing; every fourth is killed again while it
resumes. After each kill the file must open with every committed row, equal to that of an undisturbed run, and
`verify` must find no damage; resumed, the run must end bit for bit as the undisturbed one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import summary
import torch
from contents import Contents, contents, differences
from tqdm import tqdm

import dynloss
import dynloss.eigenpairs
from landscape import open_run, run_format, run_writer, verify

PHASES = ("starting", "creating", "training", "committing", "eigenpairs", "finishing")
INTERVENED = PHASES[1:2] + PHASES[3:]
"""Phases that a kill can aim at."""

DATA = dynloss.spiral(n_per_class=20, n_classes=3, seed=0), dynloss.spiral(n_per_class=10, n_classes=3, seed=1)
LOSS = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=10, period=50)
RUNS = {
    "sgd": {"optimizer": "sgd", "batch_size": 7},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "momentum": {"optimizer": "momentum", "batch_size": 16, "learning_rate": 0.05},
}
SETTINGS = {"learning_rate": 0.2, "n_steps": 500, "checkpoint_every": 5, "eigenpairs": 2, "eigenpairs_every": 31}
BLOCK_ROWS = 32
"""Rows that are committed together: fewer than usual, so that short runs have many commits."""


def train(name: str, path: Path) -> None:
    """Train the run `name`, or go on with it."""
    training = importlib.import_module("dynloss.train")  # whose name is that of a function, too
    training.RunWriter = functools.partial(run_writer.RunWriter, block_rows=BLOCK_ROWS)
    model = dynloss.mlp(n_inputs=2, width=10, n_classes=3, seed=0)
    settings = SETTINGS | RUNS[name]
    dynloss.train(model, LOSS, DATA[0], validation=DATA[1], record=path, resume=True, **settings)


class Progress:
    """What a training process last said of itself, in memory that it shares with its parent and that outlives it."""

    def __init__(self):
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = np.frombuffer(self._memory, np.int64)
        self._seconds = np.frombuffer(self._memory, np.float64, offset=1024)

    @property
    def phase(self) -> str:
        """The phase in which it is, or died."""
        return PHASES[self._numbers[0]]

    @property
    def entered(self) -> dict[str, int]:
        """How often it began each phase."""
        return dict(zip(PHASES, self._numbers[8 : 8 + len(PHASES)].tolist(), strict=True))

    @property
    def lengths(self) -> dict[str, float]:
        """Seconds that each phase took on average."""
        return {phase: self._seconds[i] / max(1, self.entered[phase]) for i, phase in enumerate(PHASES)}

    @property
    def n_committed(self) -> list[int]:
        """Rows of each table whose commit had returned."""
        return self._numbers[1:4].tolist()

    def clear(self) -> None:
        """Forget another process."""
        self._numbers[:] = 0

    def watch(self) -> None:
        """Let this process say what it does."""
        writer = run_writer.RunWriter
        run_format.create_file = self._noted("creating", run_format.create_file)
        writer.commit = self._noted("committing", writer.commit, self._count)
        writer.finish = self._noted("finishing", writer.finish, when=lambda writer, *_: writer.status == "running")
        recorder = dynloss.eigenpairs.EigenpairRecorder
        recorder.flush = self._noted("eigenpairs", recorder.flush)
        self._numbers[0] = PHASES.index("starting")

    def _noted(self, phase: str, function, done=None, when=None):
        number = PHASES.index(phase)

        @functools.wraps(function)
        def noted(*arguments, **options):
            if when is not None and not when(*arguments):
                return function(*arguments, **options)
            before, begun = self._numbers[0] or PHASES.index("training"), time.perf_counter()
            self._numbers[8 + number] += 1
            self._numbers[0] = number
            result = function(*arguments, **options)
            if done is not None:
                done(*arguments)
            self._seconds[number] += time.perf_counter() - begun
            self._numbers[0] = before
            return result

        return noted

    def _count(self, writer) -> None:
        self._numbers[1 : 1 + len(writer._tables)] = [table.n_committed for table in writer._tables]


def child(name: str, path: Path, progress: Progress) -> int:
    """A forked process that trains; its id."""
    progress.clear()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("ignore", UserWarning)  # eigenpairs without a certificate
        warnings.simplefilter("error", RuntimeWarning)  # a resumed run that goes on differently
        progress.watch()
        train(name, path)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def wait(process: int) -> int:
    """The exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(process: int, seconds: float) -> bool:
    """Kill a child so many seconds from now; whether it still lived."""
    time.sleep(seconds)
    return _kill(process)


def kill_within(process: int, progress: Progress, phase: str, nth: int, seconds: float) -> bool:
    """Kill a child so many seconds after it began a phase for the nth time; whether it still lived."""
    while progress.entered[phase] < nth:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return _kill(process)
        time.sleep(2e-5)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:  # a sleep would be coarser than a commit
        pass
    return _kill(process)


def _kill(process: int) -> bool:
    os.kill(process, signal.SIGKILL)
    return wait(process) == -signal.SIGKILL


class Undisturbed:
    """A run that nobody killed, and how long it took."""

    def __init__(self, name: str, folder: Path, progress: Progress):
        self.name, self.path = name, folder / f"{name}.h5"
        begun = time.perf_counter()
        if wait(child(name, self.path, progress)):
            raise RuntimeError(f"the undisturbed run {name} failed")
        self.seconds = time.perf_counter() - begun
        self.entered, self.lengths = progress.entered, progress.lengths
        self.contents: Contents = contents(self.path)
        with open_run(self.path) as run:
            if run.status != "complete":
                raise RuntimeError(f"the undisturbed run {name} is {run.status}")
            self.tables = {table: getattr(run, table).load() for table in ("history", "checkpoints", "eigenpairs")}

    def check_committed(self, path: Path, at_least: list[int]) -> None:
        """The file of a killed writer: whole, with every committed row, each as it should be."""
        with open_run(path) as run:
            for (table, whole), n in zip(self.tables.items(), at_least, strict=True):
                rows = getattr(run, table)
                n_rows = 0 if rows is None else rows.sizes["step"]
                assert n_rows >= n, f"{n_rows} rows of {table} where {n} had been committed"
                assert n_rows == 0 or rows.identical(whole.isel(step=slice(n_rows))), f"rows of {table} are wrong"
        damage = verify(path, n_samples=0, progress=False).damaged
        assert not damage, f"verify finds damage: {damage[0].text}"

    def check_end(self, path: Path) -> None:
        """The resumed run, bit for bit."""
        wrong = differences(contents(path), self.contents, ignore=("created",))
        assert not wrong, f"the resumed run ended otherwise: {'; '.join(wrong)[:500]}"
        damage = verify(path, n_samples=0, progress=False).damaged
        assert not damage, f"verify finds damage at the end: {damage[0].text}"


class Trial:
    """One run that is killed, once or twice, and resumed to its end."""

    def __init__(self, undisturbed: Undisturbed, path: Path, progress: Progress, rng: np.random.Generator):
        self.undisturbed, self.path, self.progress, self.rng = undisturbed, path, progress, rng
        self.phases: list[str] = []

    def run(self, aim: str | float, twice: bool) -> None:
        """Kill it within the phase `aim`, or after that fraction of the undisturbed run's time; raises if it fails."""
        self._kill(aim)
        if twice:
            self._kill(float(self.rng.uniform(0, 0.5)))
        status = wait(child(self.undisturbed.name, self.path, self.progress)) if self._is_unfinished() else 0
        assert status == 0, f"the resuming process ended with status {status}"
        self.undisturbed.check_end(self.path)

    def _kill(self, aim: str | float) -> None:
        if not self._is_unfinished():
            return
        process = child(self.undisturbed.name, self.path, self.progress)
        if isinstance(aim, str):
            nth = int(self.rng.integers(1, self.undisturbed.entered[aim] + 1))
            died = kill_within(
                process, self.progress, aim, nth, float(self.rng.uniform(0, self.undisturbed.lengths[aim]))
            )
        else:
            died = kill_after(process, aim * self.undisturbed.seconds)
        if died:
            self.phases.append(self.progress.phase)
        if self.path.exists():
            self.undisturbed.check_committed(self.path, self.progress.n_committed)
        else:
            assert self.progress.phase in ("starting", "creating"), "the file is gone"

    def _is_unfinished(self) -> bool:
        if not self.path.exists():
            return True
        with open_run(self.path) as run:
            return run.status != "complete"


def moments(n: int, rng: np.random.Generator) -> list[str | float]:
    """Aims of `n` kills: fractions of a run's time, one in each of equal parts of it, and phases in turn."""
    n_timed = (n + 1) // 2
    timed = ((rng.permutation(n_timed) + rng.uniform(size=n_timed)) / n_timed).tolist()
    aimed = [INTERVENED[i % len(INTERVENED)] for i in range(n - n_timed)]
    return [aim for pair in zip(timed, [*aimed, None], strict=False) for aim in pair if aim is not None][:n]


def try_all(n: int, seed: int, keep: Path | None = None) -> tuple[Counter, list[str], dict]:
    """Phases in which processes died, failures, and counts."""
    rng = np.random.default_rng(seed)
    died, failed, progress, n_twice = Counter(), [], Progress(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train("sgd", folder / "first.h5")  # loads what training needs, once for all children
        wholes = [Undisturbed(run, folder, progress) for run in RUNS]
        for i, aim in enumerate(moments(n, rng)):
            whole, path = wholes[i % len(wholes)], folder / f"trial{i}.h5"
            trial = Trial(whole, path, progress, rng)
            try:
                trial.run(aim, twice=i % 4 == 3)
            except Exception as error:
                text = " ".join(str(error).split())[:600]
                failed.append(
                    f"kill {i} of {whole.name}, in {' and '.join(trial.phases)}: {type(error).__name__}: {text}"
                )
                if keep is not None and path.exists():
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep)
            died.update(trial.phases)
            n_twice += len(trial.phases) > 1
            path.unlink(missing_ok=True)
    return died, failed, {"killed twice": n_twice}


def main() -> int:
    """Kill them all; the exit status is 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="number of runs to kill (50)")
    parser.add_argument("--steps", type=int, default=SETTINGS["n_steps"], metavar="N", help="steps of each run (500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the files of runs that failed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="JSON file that takes the counts")
    options = parser.parse_args()
    SETTINGS["n_steps"] = options.steps
    torch.set_num_threads(1)  # a process with threads must not fork
    tqdm.monitor_interval = 0  # nor one with the thread that watches over progress bars
    start = time.monotonic()
    died, failed, counts = try_all(options.kills, options.seed, options.keep)
    seconds = time.monotonic() - start
    for text in failed:
        print(text, file=sys.stderr)
    where = ", ".join(f"{died[phase]} {phase}" for phase in PHASES)
    twice = counts["killed twice"]
    print(f"{options.kills} runs killed ({where}; {twice} of them twice) and resumed in {seconds:.0f} s:", end=" ")
    print(f"{options.kills - len(failed)} ended as if undisturbed")
    if options.table:
        counted = {"runs": options.kills, "failures": len(failed), "phases": {phase: died[phase] for phase in PHASES}}
        summary.write(options.table, "kill", {**counted, **counts, "seconds": round(seconds), "seed": options.seed})
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
