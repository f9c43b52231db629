"""Checks of a run file: ``python -m landscape verify FILE…`` says what is wrong in it and what is still readable."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from landscape.findings import Finding, Findings

N_SAMPLES = 64


@dataclass(frozen=True)
class Report:
    """What `verify` found; as text, one line a finding.

    Attributes
    ----------
    path : Path
        The file.
    findings : tuple of Finding
        What was checked, in that order.
    """

    path: Path
    status: str
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> tuple[Finding, ...]:
        """The findings that are damage; empty for a sound file."""
        return tuple(finding for finding in self.findings if finding.kind == "damaged")

    def __str__(self) -> str:
        lines = [f"{self.path}: run, {self.status}"]
        lines += [f"  {finding.kind:<8} {finding.where:<15} {finding.text}" for finding in self.findings]
        places = list(dict.fromkeys(finding.place for finding in self.damaged))
        lines.append(f"  damaged: {'; '.join(places)}; all else is readable" if places else "  no damage found")
        return "\n".join(lines)


def verify(
    path: str | os.PathLike, *, objective: Callable | None = None, n_samples: int = N_SAMPLES, progress: bool = True
) -> Report:
    """Report on the run file `path`: every stored row is read and checked, in bounded memory.

    Checked are the structure (groups, dims, scales, types), that all variables hold the committed rows, increasing
    steps, the checksum of every row, that recorded eigenvectors have unit length, and, on a sample of rows, what was
    recorded against the objective: the loss F(θ_t, t), and θ_{t+1} = θ_t − η∇F(θ_t, t) where plain gradient descent
    ("gd") saved two successive checkpoints. Values that are not finite are counted, and are not damage: a diverged
    run holds them.

    Parameters
    ----------
    path : str or path-like
        A run file; it may still be written.
    objective : callable, optional
        Run → `Objective`; by default the entry point in the group ``landscape.objectives`` of installed packages that
        the run's `producer` names, as long as the file has no damage.
    n_samples : int
        Checkpoints, and pairs of them, compared with the objective; 0 for none.
    progress : bool
        Whether a bar on the terminal shows the progress of what takes more than a second.

    Returns
    -------
    Report
        Its `damaged` is empty for a sound file; each `Finding` names the rows.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RunFormatError
        If it is not a run file, of a newer format version, or cannot be opened at all.

    Examples
    --------
    >>> import tempfile
    >>> from landscape import ParamLayout, RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter(f"{folder}/a.h5", ParamLayout(("w",), ((2,),)), history=["loss"]) as writer:
    ...         writer.append(0, [1.0, 2.0], loss=0.5)
    ...     report = verify(writer.path)
    >>> report.damaged
    ()
    """
    if n_samples < 0:
        raise ValueError(f"n_samples must not be negative, got {n_samples}")
    # Here, so that the help text of the command needs none of it.
    from landscape.row_checks import ERRORS, check_table, one_line
    from landscape.run import Run
    from landscape.run_state import TABLES
    from landscape.structure_checks import check_data, check_layout, check_root, check_size, check_state
    from landscape.update_rule import check_dynamics

    with Run(path, check=False) as run:
        found = Findings()
        checks = {
            "file": (check_root, run, found),
            "size": (check_size, run, found),
            "layout": (check_layout, run, found),
            **{name: (check_table, run, name, found, progress) for name in TABLES},
            "state": (check_state, run, found),
            "data": (check_data, run, found, progress),
            "update rule": (check_dynamics, run, found, objective, n_samples, progress),
        }
        for where, (check, *arguments) in checks.items():
            try:
                check(*arguments)
            except ERRORS as error:  # damage in the structure itself; the other checks go on
                found.damaged(where, f"cannot be read: {one_line(error)}")
        return Report(run.path, run.status, tuple(found))


def main(argv: list[str]) -> int:
    """The command `verify`; returns 0 for sound files, 1 for damage, 2 where a file cannot be read at all."""
    parser = argparse.ArgumentParser(
        prog="python -m landscape verify",
        description="Check run files; the exit status is 0 for sound ones, 1 for damage, 2 if one cannot be read.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a run file")
    parser.add_argument(
        "--samples", type=int, default=N_SAMPLES, metavar="N", help=f"rows compared with the objective ({N_SAMPLES})"
    )
    parser.add_argument("--quiet", action="store_true", help="print files with damage only, and no progress")
    options = parser.parse_args(argv)
    if options.samples < 0:
        raise ValueError(f"--samples must not be negative, got {options.samples}")
    worst = 0
    for file in options.files:
        try:
            report = verify(file, n_samples=options.samples, progress=not options.quiet)
        except (ValueError, OSError) as error:
            print(f"landscape: {' '.join(str(error).split())}", file=sys.stderr)
            worst = 2
            continue
        worst = max(worst, int(bool(report.damaged)))
        if report.damaged or not options.quiet:
            print(report, flush=True)
    return worst
