"""A folder of 50 checkpoints of a ResNet-18: how long it takes to look into it, and how much memory to analyse it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "reliability"))

import torch
from memory import forget_peak, peak_bytes, resident_bytes
from networks import FAMILIES

import landscape
from landscape.describe_state_dicts import describe_state_dicts

N_FILES, N_IMAGES = 50, 8


def write(folder: Path, size: str, n_files: int) -> None:
    """State dicts that go from one network to another."""
    model, other = FAMILIES["ResNet-18"](size).model, FAMILIES["ResNet-18"](size).model
    torch.manual_seed(1)
    moved = {name: t.detach() + 0.01 * torch.randn(t.shape) for name, t in other.named_parameters()}
    ends = [model.state_dict(), moved]
    for i in range(n_files):
        mixed = {n: t + i / n_files * (ends[1][n] - t) if n in ends[1] else t for n, t in ends[0].items()}
        torch.save(mixed, folder / f"step_{i}.pt")


def inspect(folder: Path, objective: landscape.Objective) -> None:
    """``python -m landscape inspect``."""
    describe_state_dicts([folder])


def motion(folder: Path, objective: landscape.Objective) -> None:
    """Norms and cosines of the steps from file to file."""
    landscape.motion(landscape.read_state_dicts(folder, objective.layout))


def projection(folder: Path, objective: landscape.Objective) -> None:
    """Every checkpoint's coordinates and loss on a plane with few points."""
    checkpoints = landscape.read_state_dicts(folder, objective.layout)
    random = landscape.random_directions(checkpoints.isel(step=0), layout=objective.layout, seed=0)
    plane = landscape.plane_slice(objective, checkpoints.isel(step=0), random, n_points=3)
    landscape.project(objective, checkpoints, plane)


CALLS = {"inspect": inspect, "motion": motion, "projection": projection}


def measure_folder(size: str, n_files: int = N_FILES) -> dict:
    """Seconds and bytes of each of CALLS, in a process of its own; the files are removed again.

    Raises
    ------
    OSError
        If there is no room for them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, size, 1)
        one = (folder / "step_0.pt").stat().st_size
        free = shutil.disk_usage(folder).free
        if free < 1.2 * n_files * one:
            raise OSError(f"{folder} has {free / 1e9:.1f} GB free, {1.2 * n_files * one / 1e9:.1f} GB are needed")
        write(folder, size, n_files)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        found = {}
        for call in CALLS:
            command = [sys.executable, __file__, name, size, call]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{call} of {n_files} files failed: {done.stderr.strip()[-800:]}")
            found[call] = json.loads(done.stdout.splitlines()[-1])
    return {"files": n_files, "bytes": n_files * one, "bytes_of_one": one, "calls": found}


def main(folder: str, size: str, call: str) -> dict:
    """In the fresh process: seconds, and the largest memory above that before the call."""
    case = FAMILIES["ResNet-18"](size)
    inputs, targets = case.inputs[:N_IMAGES], case.targets[:N_IMAGES]
    objective = landscape.Objective(case.model.eval(), case.loss_fn, inputs, targets)
    for name in ("motion", "project", "plane_slice", "read_state_dicts"):
        getattr(landscape, name)  # loads its code
    before = resident_bytes()
    forget_peak()
    begun = time.perf_counter()
    CALLS[call](Path(folder), objective)
    return {"seconds": time.perf_counter() - begun, "bytes": peak_bytes() - before}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
