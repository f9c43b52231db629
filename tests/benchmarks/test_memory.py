"""Eigenpairs of a run of 5 GB, read from its file: the peak of memory above that of the imports."""

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

N_PARAMS = 125_000
GIGABYTES = 5.0
LIMIT = 1.0
TOP = 9.0  # the largest eigenvalue of this Hessian, [[3, 0, …], [0, 2, …]] squared


def run_of(model, path: Path, gigabytes: float) -> int:
    """Write a run of that many gigabytes of float32 checkpoints; return how many there are."""
    import landscape

    layout = landscape.ParamLayout.of(model)
    params = layout.flatten_model(model)
    n_checkpoints = int(gigabytes * 1e9 / (4 * layout.n_params))
    with landscape.RunWriter(path, layout, history=["loss"], dtype="float32") as writer:
        for step in range(n_checkpoints):
            writer.append(step, params * (1 + step / n_checkpoints), loss=0.0)
    return n_checkpoints


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(folder: Path, gigabytes: float) -> dict:
    """Runs in a process of its own: linear least squares on two samples, whose Hessian products cost next to nothing."""
    import torch

    import landscape

    torch.set_num_threads(1)
    model = torch.nn.Linear(N_PARAMS, 1, bias=False)
    inputs = torch.zeros(2, N_PARAMS)
    inputs[0, 0], inputs[1, 1] = 3, 2
    objective = landscape.Objective(
        model, lambda outputs, targets, step: ((outputs - targets) ** 2).mean(), inputs, torch.zeros(2, 1)
    )
    n_checkpoints = run_of(model, folder / "run.h5", gigabytes)
    options = {"out": folder / "eigs.h5"} if "out" in inspect.signature(landscape.top_eigenpairs).parameters else {}
    with landscape.open_run(folder / "run.h5") as run:
        landscape.top_eigenpairs(objective, run.checkpoints.isel(step=slice(1)), k=1)  # what is loaded when first used
        before, started = peak(), time.perf_counter()
        eigs = landscape.top_eigenpairs(objective, run.checkpoints, k=1, **options)
        seconds, after = time.perf_counter() - started, peak()
    return {
        "gigabytes": n_checkpoints * N_PARAMS * 4 / 1e9,
        "checkpoints": n_checkpoints,
        "parameters": N_PARAMS,
        "peak_gigabytes": (after - before) / 1e9,
        "seconds": seconds,
        "largest_error": float(abs(eigs.eigenvalue / TOP - 1).max()),
        "all_certified": bool(eigs.certified.all()),
        "written": bool(options),
    }


def test_memory_of_a_large_run(tmp_path, results, quick):
    gigabytes = GIGABYTES / 25 if quick else GIGABYTES
    command = [sys.executable, __file__, str(tmp_path), str(gigabytes)]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    assert done.returncode == 0, done.stderr
    results.memory = json.loads(done.stdout)
    assert results.memory["largest_error"] < 1e-3
    assert results.memory["all_certified"]
    assert results.memory["peak_gigabytes"] <= LIMIT


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
