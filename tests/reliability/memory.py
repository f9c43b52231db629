"""The largest memory that a process had since a moment (Linux)."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """Let `peak_bytes` begin anew with what the process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory so far."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Resident memory now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
