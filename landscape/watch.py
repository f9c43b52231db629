"""A run followed while it trains: ``python -m landscape inspect --watch FILE``."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import deque
from typing import TextIO

from landscape.file_handle import RunFormatError
from landscape.run import Run, open_run
from landscape.writer_lock import is_being_written

COMMITS = 20
"""The rate is that of so many last commits."""

ATTEMPTS = 5
"""So often in a row may a file that changes be unreadable."""


def watch(path: str | os.PathLike, interval: float = 1.0, out: TextIO | None = None) -> None:
    """Say how far the run in the file `path` is, again and again until it ends or Ctrl-C.

    On a terminal a few lines are kept up to date; elsewhere a line is printed when anything is new. The writer is not
    disturbed. A run whose writer was killed is watched on, as it may be resumed.

    Parameters
    ----------
    path : str or path-like
        A run file.
    interval : float
        Seconds between two looks.
    out : text stream, optional
        Where to; standard output by default.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no longer.
    RunFormatError
        If it is not a run file, damaged, or was replaced by another one.
    ValueError
        If the interval is not positive.
    """
    if not interval > 0:
        raise ValueError(f"interval must be positive, got {interval}")
    out = out or sys.stdout
    with contextlib.suppress(KeyboardInterrupt), open_run(path) as run:
        progress = _Progress(run)
        shown: list[str] = []
        while True:
            lines = progress.lines()
            if out.isatty():
                width = shutil.get_terminal_size().columns - 1  # a line that wraps would be two to go up
                lines = [line[:width] for line in lines]
                out.write(f"\x1b[{len(shown)}F\x1b[J" * bool(shown) + "\n".join(lines) + "\n")
            elif lines[:-1] != shown[:-1]:  # the last one, an age, always changes
                out.write("; ".join(" ".join(line.split()) for line in lines) + "\n")
            out.flush()
            shown = lines
            if run.status != "running":
                return
            time.sleep(interval)
            progress.look()


class _Progress:
    """What is said of a run: where it is, and how fast it moves from commit to commit."""

    def __init__(self, run: Run):
        self.run = run
        self.n_steps = _planned_steps(run.config)
        self.commits: deque[tuple[float, int]] = deque(maxlen=COMMITS)
        self.alive = True
        self._note()

    def look(self) -> None:
        """See what was written since."""
        for attempt in range(ATTEMPTS):
            # The lock first: a writer that ends after this look still finds its status read.
            self.alive = is_being_written(self.run.path)
            try:
                self.run.refresh()
                return self._note()
            except RunFormatError:
                if attempt + 1 == ATTEMPTS or not self.run.is_open:
                    raise
                time.sleep(0.1)

    def _note(self) -> None:
        run = self.run
        history, saved = run.history["step"].values, run.checkpoints["step"].values
        # A row of the history comes before the update of its step, and θ after the last one has no such row.
        self.done = max(int(history[-1]) + 1 if len(history) else 0, int(saved[-1]) if len(saved) else 0)
        self.loss = float(run.history["loss"][-1]) if "loss" in run.history and len(history) else None
        self.written = os.stat(run.path).st_mtime
        if not self.commits or self.commits[-1][1] != self.done:
            self.commits.append((self.written, self.done))

    def lines(self) -> list[str]:
        """The lines to show; the last one is the age of the last row."""
        state = self.run.status
        if state == "running" and not self.alive:
            state = "running by its own account, but no writer holds it here (killed, or on another machine)"
        of = f" of {self.n_steps}" if self.n_steps else ""
        lines = [f"{self.run.path.name}  {state}", f"steps     {self.done}{of}"]
        if self.loss is not None:
            lines.append(f"loss      {self.loss:.6g}")
        rate = self._rate()
        if rate and state == "running":
            left = (self.n_steps or 0) - self.done
            lines.append(f"rate      {rate:.3g} steps/s" + (f", {duration(left / rate)} left" if left > 0 else ""))
        return [*lines, f"last row  {duration(max(0.0, time.time() - self.written))} ago"]

    def _rate(self) -> float | None:
        (start, first), (end, last) = self.commits[0], self.commits[-1]
        return (last - first) / (end - start) if end > start else None


def duration(seconds: float) -> str:
    """`seconds` in the units that one would say.

    >>> duration(0.26), duration(75), duration(7260), duration(200_000)
    ('0.3 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // size} {smaller}"
    return f"{whole} s"


def _planned_steps(config: dict) -> int | None:
    """The number of steps that the config of a run names, at its top or, as ours, one level below."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        n_steps = part.get("n_steps")
        if isinstance(n_steps, int) and n_steps > 0:
            return n_steps
    return None
