"""Several runs side by side: class weights, loss, its change and sharpness, a column a run."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from viz.bifurcation import period_entries, plot_bifurcation_diagram
from viz.dataset import coordinate, read
from viz.eigenvalues import plot_eigenvalues
from viz.history import plot_history
from viz.style import DOUBLE_COLUMN, panel_letters, style

SOURCE = "the runs given"


def plot_runs(runs: Mapping[str, Mapping[str, xr.Dataset]]) -> np.ndarray:
    """Runs side by side in a new figure, with common vertical axes: class weights, loss, its change, sharpness.

    Parameters
    ----------
    runs : mapping of str to mapping
        Title of each column → ``history``, as `open_run(…).history` holds it; ``live``, from
        `landscape.bifurcation_diagram` of its loss; ``eigenvalues``, from `landscape.top_eigenpairs`, drawn in units of
        the stability threshold; ``onsets``, from `landscape.find_onsets`.

    Returns
    -------
    numpy.ndarray
        The axes (4, run).
    """
    if not runs:
        raise ValueError("runs must hold at least one run")
    for title, run in runs.items():
        missing = {"history", "live", "eigenvalues", "onsets"} - set(run)
        if missing:
            raise ValueError(f"run {title!r} lacks {', '.join(sorted(missing))}")
    with style():
        figure, axes = plt.subplots(
            4,
            len(runs),
            figsize=(DOUBLE_COLUMN, 5.8),
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        try:
            for column, (title, run) in zip(axes.T, runs.items(), strict=True):
                _draw_column(column, run)
                column[0].set_title(title, fontsize=7)
            _draw_legend(figure, axes, runs)
            panel_letters(axes[0])
            figure.align_ylabels()
        except BaseException:
            plt.close(figure)
            raise
    return axes


def _draw_column(column: np.ndarray, run: Mapping[str, xr.Dataset]) -> None:
    eigs, onsets, options = run["eigenvalues"], run["onsets"], {"legend": False}
    threshold = read(eigs, "threshold", ("step",), source=SOURCE)
    relative = (eigs["eigenvalue"] / threshold).assign_attrs(long_name=r"$\lambda_1$ / threshold")
    relative = eigs.assign(eigenvalue=relative, threshold=threshold / threshold)
    plot_history(run["history"], column[0], variable="class_weight", **options)
    plot_history(run["history"], column[1], variable="loss", onsets=onsets, **options)
    plot_bifurcation_diagram(run["live"], column[2], scale="symlog", onsets=onsets, **options)
    plot_eigenvalues(relative, column[3], modes=[int(coordinate(eigs, "mode")[0])], onsets=onsets, **options)
    step = coordinate(run["history"], "step")
    column[3].set_xticks([step[0], (step[0] + step[-1] + 1) // 2, step[-1] + 1])


def _draw_legend(figure, axes: np.ndarray, runs: Mapping[str, Mapping[str, xr.Dataset]]) -> None:
    """One legend for all panels: classes, onset and threshold, kinds of orbit."""
    entries = {}
    for ax in axes.T.ravel():
        handles, labels = ax.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    entries.pop(r"$\lambda_{1}$", None)
    periods = np.concatenate([np.asarray(run["live"]["orbit_period"], float) for run in runs.values()])
    entries |= {line.get_label(): line for line in period_entries(periods)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=6)
