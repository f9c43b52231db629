"""The table of what the harnesses counted: one JSON file, in which each replaces its own part."""

from __future__ import annotations

import json
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import h5py


def write(path: Path, name: str, counted: dict) -> None:
    """Put what the harness `name` `counted` into the table at `path`, with the day and the versions."""
    table = json.loads(path.read_text()) if path.exists() else {}
    versions = {package: _version(package) for package in ("h5py", "numpy", "torch", "xarray")}
    versions |= {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version}
    table[name] = {"date": date.today().isoformat(), **counted, "versions": dict(sorted(versions.items()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(table.items())), indent=1, allow_nan=False) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
