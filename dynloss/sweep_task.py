"""A task of a sweep: some of its runs, trained in one process."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr

from dynloss.data import spiral
from dynloss.ensemble import train_ensemble
from dynloss.kernels import fastest_objective
from dynloss.losses import named_loss
from dynloss.models import mlp
from dynloss.sweep_runs import RECORDED


def train_runs(_, runs: xr.Dataset, settings: dict[str, Any]) -> xr.Dataset:
    """What became of each of `runs` (run), rows of a sweep's table.

    Returns
    -------
    xarray.Dataset
        ``loss``, ``accuracy``, ``validation_accuracy`` (run, step); the same with ``final_`` (run), after the last
        update; ``last_step``, ``diverged`` (run).
    """
    alike: dict[tuple, list[int]] = {}
    for i in range(runs.sizes["run"]):
        alike.setdefault(tuple(runs[name].values[i] for name in ("width", "loss", "weighting")), []).append(i)
    parts = [_together(runs.isel(run=rows), settings) for rows in alike.values()]
    return xr.concat(parts, "run").sel(run=runs.run.values)


def _together(runs: xr.Dataset, settings: dict[str, Any]) -> xr.Dataset:
    """Runs of one width and kind of loss, as one ensemble; those of one seed share their data."""
    rows = [{name: runs[name].values[i] for name in runs.data_vars} for i in range(runs.sizes["run"])]
    n_steps, n_classes, dtype = settings["n_steps"], settings["n_classes"], getattr(torch, settings["dtype"])
    static_from = n_steps - settings["static_steps"] if settings["static_steps"] else None
    sets = {
        seed: [spiral(settings["n_per_class"], n_classes, seed=2 * seed + offset) for offset in range(2)]
        for seed in {int(row["seed"]) for row in rows}
    }
    data, validation = ([sets[int(row["seed"])][offset] for row in rows] for offset in range(2))
    models = [mlp(2, int(row["width"]), n_classes, seed=int(row["seed"])).to(dtype) for row in rows]
    losses = [
        named_loss(
            str(row["loss"]),
            n_classes,
            weighting=str(row["weighting"] or "sample"),
            amplitude=float(row["amplitude"]),
            period=row["period"] if np.isnan(row["period"]) else int(row["period"]),
            static_from=static_from,
        )
        for row in rows
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*members diverged")  # the table says which
        trained = train_ensemble(
            models,
            losses,
            data,
            validation=validation,
            learning_rate=[float(row["learning_rate"]) for row in rows],
            n_steps=n_steps,
            history_every=settings["history_every"],
            scalars=RECORDED,
            n_threads=1,
        )
    found = trained[[*RECORDED, "last_step"]].reset_coords(drop=True).rename(member="run")
    found = found.assign_coords(run=runs.run.values)
    found["diverged"] = ("run", trained.status.values == "diverged")
    return found.assign(_finals(trained, models, losses, data, validation, n_steps))


def _finals(trained, models, losses, data, validation, n_steps: int) -> dict[str, tuple]:
    """Loss and accuracies at θ after the last update; NaN where a run diverged."""
    found = {f"final_{name}": np.full(len(models), np.nan) for name in RECORDED}
    for i, params in enumerate(trained.params.values[:, -1]):
        if np.isfinite(params).all():
            objective = fastest_objective(models[i], losses[i], *data[i])
            found["final_loss"][i] = float(objective.loss(params, n_steps))
            for name, samples in (("accuracy", data[i]), ("validation_accuracy", validation[i])):
                found[f"final_{name}"][i] = float(objective.on(*samples).accuracy(params)[0])
    return {name: ("run", values) for name, values in found.items()}
