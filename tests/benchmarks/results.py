"""The table of results: one row for each solver and workload, filled round by round, and written as JSON."""

from __future__ import annotations

import importlib
import json
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch


class Results:
    """What one run of the benchmarks measured."""

    def __init__(self):
        self.eigenpairs: dict[tuple, dict] = {}
        self.products: dict[str, dict] = {}
        self.memory: dict = {}
        self.slices: dict[tuple, dict] = {}
        self.reweighting: float | None = None
        self.recording: dict = {}
        self.training: dict[tuple, dict] = {}
        self.two_cores: float | None = None
        self.absent: dict[str, str] = {}
        self.packages = {"torch", "numpy", "scipy"}

    def missing(self, solver) -> str:
        """Why `solver` cannot run here; empty if it can."""
        try:
            importlib.import_module(solver.package[0])
        except Exception as error:  # a package that breaks on import is as absent as one that is not there
            self.absent[solver.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self.packages.add(solver.package[1])
        return self.absent.get(solver.name, "")

    def row(self, workload, solver) -> dict:
        """The row of `solver` on `workload`, to be filled."""
        empty = {
            "workload": workload.name,
            "dtype": workload.dtype,
            "parameters": workload.checkpoints.sizes["param"],
            "samples": len(workload.targets),
            "solver": solver.name,
            "settings": solver.settings,
            "ours": solver.ours,
            "milliseconds": [],  # a checkpoint, in each round
        }
        return self.eigenpairs.setdefault((workload.name, workload.dtype, str(solver)), empty)

    def finished(self) -> list[tuple[tuple, dict]]:
        """The rows whose results were checked."""
        return [(key, row) for key, row in self.eigenpairs.items() if "residual" in row]

    def summary(self) -> list[str]:
        """Median ms a checkpoint of each row, and the median ratio to the first row of the same workload."""
        lines, first = [], {}
        for (name, dtype, solver), row in self.finished():
            base = first.setdefault((name, dtype), row)["milliseconds"]
            ratio = median(a / b for a, b in zip(row["milliseconds"], base, strict=False))
            wrong = "" if row["wrong"] is None else f", {row['wrong']} wrong of {row['pairs']}"
            lines.append(
                f"{name} {dtype} {solver:38} {median(row['milliseconds']):9.2f} ms {ratio:6.1f} ×"
                f" {row['products']:5.1f} products, residual ≤ {row['residual']:.1e}{wrong}"
            )
        for solver, row in self.products.items():
            unit = next(iter(self.products.values()))["milliseconds"]
            ratio = median(a / b for a, b in zip(row["milliseconds"], unit, strict=False))
            lines.append(f"W3 product {solver:38} {median(row['milliseconds']):9.1f} ms {ratio:6.2f} gradients")
        for (name, dtype, solver, n_points), row in self.slices.items():
            peer = self.slices.get(row["compared_with"], row)
            ratio = median(b / a for a, b in zip(row["milliseconds"], peer["milliseconds"], strict=False))
            lines.append(
                f"{name} {dtype} {n_points:3}² {solver:38} {1e3 / median(row['milliseconds']):9.1f} points/s"
                f" {ratio:6.2f} × {peer['solver']}, relative difference ≤ {row['difference']:.0e}"
            )
        for (dtype, solver), row in self.training.items():
            peer = next(other for (kind, _), other in self.training.items() if kind == dtype)
            ratio = median(b / a for a, b in zip(row["microseconds"], peer["microseconds"], strict=False))
            lines.append(
                f"training {dtype} {solver:44} {1e6 / median(row['microseconds']):9.0f} steps/s {ratio:6.2f} ×"
                f" {peer['solver']}"
            )
        if self.two_cores:
            lines.append(f"training on two cores: {self.two_cores:.2f} times as quick as on one")
        if self.reweighting:
            lines.append(f"reweighting a plane: {self.reweighting:.0f} times quicker than computing it")
        if self.memory:
            peak, run = self.memory["peak_gigabytes"], self.memory["gigabytes"]
            lines.append(f"memory: {peak:.2f} GB above the imports for a run of {run:.1f} GB")
        if self.recording:
            for clock, ours in self.recording["microseconds"].items():
                theirs, ratio = self.recording["torch_save_microseconds"][clock], self.recording["ratio"][clock]
                lines.append(
                    f"recording: {ours:.1f} µs a step, torch.save {theirs:.0f} µs, {ratio:.0f} × ({clock} time)"
                )
        return lines

    def write(self, path: Path) -> None:
        """Write the table to `path`."""
        table = {
            "date": date.today().isoformat(),
            "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "cuda": _cuda()},
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in sorted(self.packages)}},
            "absent": self.absent,
            "eigenpairs": [row for _, row in self.finished()],
            "products": list(self.products.values()),
            "memory": self.memory,
            "slices": list(self.slices.values()),
            "reweighting": self.reweighting,
            "recording": self.recording,
            "training": list(self.training.values()),
            "two_cores": self.two_cores,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


def _processor() -> str:
    """The processor's model and clock-independent features that matter here."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _cuda() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "from the source folder"
