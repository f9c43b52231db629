"""Eigenpairs of a run of 5 GB, read from its file and written to another: the peak of memory above the imports'."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

import landscape

N_PARAMS = 125_000
GIGABYTES = 5.0
LIMIT = 1.0  # GB above the imports
SINGULAR_VALUES = 3.0, 2.0  # of the two samples: the Hessian's eigenvalues are 9, 4 and 0


def test_memory_of_a_large_run(tmp_path, results, quick):
    run, eigs = tmp_path / "run.h5", tmp_path / "eigs.h5"
    try:
        n_checkpoints = write_run(run, GIGABYTES / 25 if quick else GIGABYTES)
        command = [sys.executable, __file__, str(run), str(eigs)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    finally:
        for file in (run, eigs):
            file.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["largest_error"] < 1e-3
    assert measured["all_certified"]
    results.memory = {
        "gigabytes": n_checkpoints * 8 * N_PARAMS / 1e9,
        "checkpoints": n_checkpoints,
        "parameters": N_PARAMS,
        "peak_gigabytes": measured["peak_gigabytes"],
        "seconds": measured["seconds"],
    }
    assert measured["peak_gigabytes"] <= LIMIT


def linear_model() -> torch.nn.Module:
    return torch.nn.Linear(N_PARAMS, 1, bias=False, dtype=torch.float64)


def write_run(path: Path, gigabytes: float) -> int:
    """Write a run with so many gigabytes of checkpoints; return how many they are."""
    model = linear_model()
    layout = landscape.ParamLayout.of(model)
    params = layout.flatten_model(model)
    n_checkpoints = int(gigabytes * 1e9 / (8 * N_PARAMS))
    with landscape.RunWriter(path, layout, history=["loss"]) as writer:
        for step in range(n_checkpoints):
            writer.append(step, params * (1 + step / n_checkpoints), loss=0.0)
    return n_checkpoints


def main(path: Path, out: Path) -> dict:
    """In a process of its own: linear least squares on two samples, whose Hessian products cost next to nothing."""
    torch.set_num_threads(1)
    inputs = torch.zeros(2, N_PARAMS, dtype=torch.float64)
    inputs[0, 0], inputs[1, 1] = SINGULAR_VALUES
    objective = landscape.Objective(linear_model(), squared_error, inputs, torch.zeros(2, 1, dtype=torch.float64))
    with landscape.open_run(path) as run:
        checkpoints = run.checkpoints
        before, started = peak(), time.perf_counter()
        eigs = landscape.top_eigenpairs(objective, checkpoints, k=1, out=out)
        seconds, after = time.perf_counter() - started, peak()
    return {
        "peak_gigabytes": (after - before) / 1e9,
        "seconds": seconds,
        "largest_error": float(abs(eigs.eigenvalue / max(SINGULAR_VALUES) ** 2 - 1).max()),
        "all_certified": bool(eigs.certified.all()),
    }


def squared_error(outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    return ((outputs - targets) ** 2).mean()


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
