"""What a run recorded against its objective: the loss at saved θ, and the updates between successive checkpoints."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from landscape.findings import Findings
from landscape.row_checks import one_line
from landscape.run import Run

if TYPE_CHECKING:
    from landscape.objective import Objective

GROUP = "landscape.objectives"
"""Entry points of installed packages: run → objective. Nothing else is ever imported on behalf of a file."""

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Relative; other kernels, batch sizes and thread counts than the run's round otherwise."""


def check_dynamics(run: Run, found: Findings, objective: Callable | None, n_samples: int, progress: bool) -> None:
    """Compare recorded losses and updates on up to `n_samples` rows each; says why where it cannot.

    Parameters
    ----------
    run : Run
        The run.
    found : Findings
        What was found before: a damaged file is not evaluated. The result is added.
    objective : callable, optional
        Run → objective; by default what the run's producer names among the installed packages.
    n_samples : int
        Rows to compare; 0 for none.
    progress : bool
        Whether to show a progress bar.
    """
    reason = "not asked for" if not n_samples else "not checked in a damaged file" if found.any_damage else ""
    if not reason and not run.checkpoints.sizes["step"]:
        reason = "no checkpoints"
    if reason:
        found.skipped("update rule", reason)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = (objective or installed_objective(run.producer))(run)
            _check_losses(run, function, found, n_samples, progress)
            _check_updates(run, function, found, n_samples, progress)
    except Exception as error:  # in any installed package: it must not end the checks
        found.skipped("update rule", f"no objective that can be evaluated: {one_line(error)}")


def installed_objective(producer: str) -> Callable:
    """The function run → objective that an installed package registered under the name `producer`.

    Raises
    ------
    LookupError
        If there is none.
    """
    entries = importlib.metadata.entry_points(group=GROUP, name=producer) if producer else ()
    for entry in entries:
        return entry.load()
    raise LookupError(
        f"no installed package registers {producer!r} under {GROUP}" if producer else "the run names no producer"
    )


def _check_losses(run: Run, objective: Objective, found: Findings, n_samples: int, progress: bool) -> None:
    history = run.history
    if "loss" not in history or history["loss"].dims != ("step",):
        found.skipped("loss", "the history holds none")
        return
    steps = np.intersect1d(run.checkpoints["step"].values, history["step"].values)
    steps = _spread(steps, n_samples)
    tolerance, wrong = TOLERANCE[str(run.checkpoints["params"].dtype)], []
    for step in _bar(steps, "verify loss", progress):
        recorded = float(history["loss"].sel(step=step))
        value = float(objective.loss(run.checkpoints["params"].sel(step=step).values, int(step)))
        same = np.isclose(value, recorded, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not same and (np.isfinite(recorded) or np.isfinite(value)):
            wrong.append((int(step), recorded, value))
    rows = np.searchsorted(run.checkpoints["step"].values, [step for step, *_ in wrong])
    if wrong:
        step, recorded, value = wrong[0]
        found.damaged(
            "checkpoints",
            f"the objective gives another loss than was recorded at {len(wrong)} of {len(steps)} steps compared: "
            f"at step {step} {value:.9g}, recorded {recorded:.9g}",
            rows,
        )
    elif len(steps):
        found.ok("loss", f"as recorded at {len(steps)} steps compared")
    else:
        found.skipped("loss", "no step has both a loss and a checkpoint")


def _check_updates(run: Run, objective: Objective, found: Findings, n_samples: int, progress: bool) -> None:
    checkpoints = run.checkpoints
    optimizer, rate = checkpoints.attrs.get("optimizer"), checkpoints.attrs.get("learning_rate")
    steps = checkpoints["step"].values
    pairs = np.flatnonzero(np.diff(steps) == 1)
    if optimizer != "gd" or not isinstance(rate, int | float):
        found.skipped("update rule", f"known for gd at a constant learning_rate, not for {optimizer} at {rate}")
        return
    if not len(pairs):
        found.skipped("update rule", "no two successive steps were saved")
        return
    rows, wrong = _spread(pairs, n_samples), []
    tolerance = TOLERANCE[str(checkpoints["params"].dtype)]
    for row in _bar(rows, "verify updates", progress):
        before, after = checkpoints["params"].isel(step=slice(row, row + 2)).values
        update = rate * objective.gradient(before, int(steps[row])).numpy(force=True)
        scale = np.maximum(1.0, np.abs(before) + np.abs(update))
        off = np.abs(after - (before - update)) / scale
        # A run that diverges may end in values that are not finite: nothing is compared there.
        if np.nanmax(off, initial=0) > tolerance or (np.isfinite(before - update) & ~np.isfinite(after)).any():
            wrong.append((row, float(np.nanmax(off, initial=0))))
    if wrong:
        row, off = max(wrong, key=lambda pair: pair[1])
        found.damaged(
            "checkpoints",
            f"{len(wrong)} of {len(rows)} updates compared do not follow θ − η∇F: from step {steps[row]} to "
            f"{steps[row + 1]}, entries of θ are off by up to {off:.2g}",
            sorted({r for row, _ in wrong for r in (row, row + 1)}),
        )
    else:
        found.ok("update rule", f"{len(rows)} updates compared follow θ − η∇F, of {len(pairs)} saved")


def _spread(values: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of `values`, evenly spread, with the first and the last."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int))]


def _bar(values, label: str, progress: bool):
    return tqdm(values.tolist(), desc=label, unit="step", delay=1, disable=None if progress else True)
