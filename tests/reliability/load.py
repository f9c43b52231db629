"""Large runs: how fast they are written, and how much memory it takes to read a part of one.

Run as a script, it records a million steps with 20,000 checkpoints in one file and 10 GB of checkpoints in another,
reads parts of both, each in a process of its own whose peak memory is measured, and opens 100 runs at once. Values
are compared with what was recorded. Bounds on memory are asserted; times are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import summary
from memory import forget_peak, peak_bytes, resident_bytes

from landscape.run import RunWriter, open_run

FIXED = 64e6
"""Bytes that any reading may take beside its result: blocks whose checksums are computed, caches, code."""


@dataclass(frozen=True)
class Size:
    """How large the runs are."""

    n_steps: int
    n_checkpoints: int
    n_params: int

    @property
    def stride(self) -> int:
        """Steps between two checkpoints."""
        return self.n_steps // self.n_checkpoints


BLOCK = 10_000
SMALL = Size(2, 2, 3)


def loss_at(step):
    """What is recorded as the loss of a step, or of many."""
    return 1 / (1.0 + step)


def params_at(row: int, n_params: int) -> np.ndarray:
    """θ of a row of the checkpoints; entry j is (row + 1)·(j + 0.5)."""
    return (row + 1) * (np.arange(n_params) + 0.5)


def record(path: Path, size: Size, history: bool) -> None:
    """Record the run; without a history it holds checkpoints alone."""
    from landscape import ParamLayout  # loads torch, which the reading process does not need

    base = np.arange(size.n_params) + 0.5
    names = ["loss", "accuracy", "gradient_norm"] if history else []
    with RunWriter(path, ParamLayout(("w",), ((size.n_params,),)), history=names) as writer:
        for step in range(size.n_steps):
            row, rest = divmod(step, size.stride)
            params = (row + 1) * base if rest == 0 else None
            if history:
                writer.append(step, params, loss=loss_at(step), accuracy=0.5, gradient_norm=float(step))
            elif params is not None:
                writer.append(step, params)


def read_loss(run, size: Size) -> int:
    """The loss of all steps."""
    loss = run.history.loss.values
    assert loss.shape == (size.n_steps,), f"{loss.shape} losses"
    for start in range(0, size.n_steps, BLOCK):
        steps = np.arange(start, min(start + BLOCK, size.n_steps))
        np.testing.assert_array_equal(loss[steps[0] : steps[-1] + 1], loss_at(steps))
    return 4 * loss.nbytes  # the losses, their steps, the index of the steps, and what is compared


def read_steps(run, size: Size) -> int:
    """Single checkpoints: the first, the last, one in between."""
    for row in (0, size.n_checkpoints // 2, size.n_checkpoints - 1):
        params = run.checkpoints.params.sel(step=row * size.stride).values
        np.testing.assert_array_equal(params, params_at(row, size.n_params))
    return 5 * params.nbytes  # what is expected, and what is compared


def read_parameter(run, size: Size) -> int:
    """One parameter at all checkpoints."""
    j = size.n_params // 3
    values = run.checkpoints.params.isel(param=j).values
    np.testing.assert_array_equal(values, np.arange(1, size.n_checkpoints + 1) * (j + 0.5))
    return 5 * values.nbytes


def read_nothing(run, size: Size) -> int:
    """The run opened, and its numbers of rows."""
    assert run.checkpoints.sizes == {"step": size.n_checkpoints, "param": size.n_params}
    return 0


READS: dict[str, Callable] = {
    "open": read_nothing, "loss": read_loss, "steps": read_steps, "parameter": read_parameter,
}  # fmt: skip


def measure(path: Path, size: Size, reads: list[str]) -> dict[str, dict[str, float]]:
    """Seconds and bytes that some of READS take in a fresh process, and the bytes that they may take."""
    small = path.with_name("small.h5")
    record(small, SMALL, history=True)
    command = [sys.executable, __file__, "--measure", str(path), str(small), *map(str, vars(size).values()), *reads]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    small.unlink()
    if done.returncode:
        raise RuntimeError(f"reading {path.name} failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout)


def measured(path: str, small: str, n_steps: str, n_checkpoints: str, n_params: str, *reads: str) -> None:
    """In the fresh process: print what `measure` returns."""
    size = Size(int(n_steps), int(n_checkpoints), int(n_params))
    with open_run(small) as run:  # loads the code that reading needs
        for what in reads:
            READS[what](run, SMALL)
    found = {}
    # Each in a fork: memory that the one before had and gave back would hide what the next one takes.
    for what in reads:
        source, sink = os.pipe()
        if not os.fork():
            status = 1
            try:
                os.write(sink, json.dumps(_measured(path, size, what)).encode())
                status = 0
            except Exception as error:
                print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        os.close(sink)
        with open(source) as answer:
            found[what] = json.loads(answer.read() or "null")
        if os.wait()[1]:
            sys.exit(1)
    print(json.dumps(found))


def _measured(path: str, size: Size, what: str) -> dict[str, float]:
    before = resident_bytes()
    forget_peak()
    begun = time.perf_counter()
    with open_run(path) as run:
        allowed = READS[what](run, size) + FIXED
    return {"seconds": time.perf_counter() - begun, "bytes": peak_bytes() - before, "allowed": allowed}


def load_one(path: Path, size: Size, reads: list[str], history: bool) -> dict:
    """Record a run, read parts of it, remove it; the measurements by name."""
    begun = time.perf_counter()
    record(path, size, history)
    seconds = time.perf_counter() - begun
    table = {"steps": size.n_steps, "checkpoints": size.n_checkpoints, "parameters": size.n_params}
    table |= {"seconds_writing": seconds, "bytes": path.stat().st_size}
    table["microseconds_a_step"] = 1e6 * seconds / (size.n_steps if history else size.n_checkpoints)
    try:
        table["reads"] = measure(path, size, reads)
    finally:
        path.unlink()
    return table


def load_many(folder: Path, n_runs: int) -> dict:
    """Open `n_runs` runs at once and read them all."""
    size = Size(200, 20, 603)
    first = folder / "run0.h5"
    record(first, size, history=True)
    paths = [first] + [Path(shutil.copy(first, folder / f"run{i}.h5")) for i in range(1, n_runs)]
    expected = loss_at(np.arange(size.n_steps))
    n_before, before = _n_descriptors(), resident_bytes()
    forget_peak()
    begun = time.perf_counter()
    runs = [open_run(path) for path in paths]
    opened = time.perf_counter() - begun
    try:
        n_open = _n_descriptors() - n_before
        right = all(np.array_equal(run.history.loss.values, expected) for run in runs)
        right &= all(run.checkpoints.params.values[7, 5] == 8 * 5.5 for run in runs)
        seconds = time.perf_counter() - begun
        taken = peak_bytes() - before
    finally:
        for run in runs:
            run.close()
    assert right, "a run holds other values than were recorded"
    assert _n_descriptors() == n_before, "closed runs leave files open"
    assert n_open == n_runs, f"{n_runs} runs hold {n_open} files open"
    read = {"seconds": seconds, "bytes": taken, "allowed": FIXED + n_runs * 2**22}  # HDF5's caches
    return {"runs": n_runs, "files_open": n_open, "seconds_opening": opened, "reads": {"all": read}}


def _n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def load(folder: Path, scale: float = 1.0) -> dict[str, dict]:
    """All measurements, of runs `scale` times as long as in full."""
    rows, large = round(1e6 * scale), round(5000 * scale)
    long = Size(rows, round(20_000 * scale), 603)
    needed = 8 * large * 250_000 + 200 * rows
    free = shutil.disk_usage(folder).free
    if free < 1.2 * needed:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, {1.2 * needed / 1e9:.1f} GB are needed; give --folder")
    return {
        "long": load_one(folder / "long.h5", long, ["open", "loss", "steps", "parameter"], history=True),
        "large": load_one(folder / "large.h5", Size(large, large, 250_000), ["open", "steps", "parameter"], False),
        "many": load_many(folder, max(10, round(100 * scale))),
    }


def too_much(table: dict[str, dict]) -> list[str]:
    """Readings that took more memory than they may."""
    return [
        f"{name}, {what}: {read['bytes'] / 1e6:.0f} MB of memory, {read['allowed'] / 1e6:.0f} MB are allowed"
        for name, one in table.items()
        for what, read in one["reads"].items()
        if read["bytes"] > read["allowed"]
    ]


def main() -> int:
    """Measure all; the exit status is 1 where memory is not bounded or a value is wrong."""
    if sys.argv[1:2] == ["--measure"]:
        measured(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="length of the runs, as a fraction (1)")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where the runs are written, and removed again")
    parser.add_argument("--table", type=Path, metavar="FILE", help="JSON file that takes the measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        try:
            table = load(Path(name), options.scale)
        except (AssertionError, RuntimeError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    for name, one in table.items():
        numbers = {key: value for key, value in one.items() if key != "reads"}
        print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:,.4g}" for key, value in numbers.items()))
        for what, read in one["reads"].items():
            print(f"  {what:<10} {read['seconds']:8.3f} s {read['bytes'] / 1e6:8.1f} MB of memory")
    failures = too_much(table)
    for text in failures:
        print(text, file=sys.stderr)
    if options.table:
        summary.write(options.table, "load", {**table, "failures": len(failures)})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
