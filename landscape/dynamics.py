"""The descent map θ → θ − η∇F(θ, t) itself: a run replayed from a checkpoint."""

from __future__ import annotations

import contextlib
import math
import warnings

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from landscape.checkpoints import matched, rows
from landscape.stability import descent_settings


def replay(
    objective,
    checkpoint: xr.Dataset,
    n_steps: int,
    *,
    learning_rate: float | None = None,
    checkpoints: xr.Dataset | None = None,
) -> xr.Dataset:
    """Every state of a gradient-descent run from one checkpoint on, recomputed: θ_{t+1} = θ_t − η∇F(θ_t, t).

    With the objective and on the machine that trained the run, bit for bit: threads are set to the recorded number
    while it runs.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoint : xarray.Dataset
        One row of checkpoints, e.g. ``run.checkpoints.sel(step=9000)``.
    n_steps : int
        Number of updates, at least 1.
    learning_rate : float, optional
        η; that of the checkpoint's attrs by default.
    checkpoints : xarray.Dataset, optional
        Saved states to compare with wherever the replay passes one.

    Returns
    -------
    xarray.Dataset
        ``params`` (step, param): the checkpoint and the `n_steps` states after it (fewer where they are not finite).
        attrs: ``n_compared`` saved states were met, the largest difference from them in any parameter is
        ``largest_deviation`` (NaN where none was met); ``exact`` is 1 if that is 0, at least one was met, and the
        kernel is the one that trained the run, where the attrs name that; other kernels round otherwise.

    Raises
    ------
    ValueError
        If the run was not trained by gradient descent, no learning rate is known, or `checkpoint` has several rows.
    """
    if "step" in checkpoint.dims:
        raise ValueError("replay begins at one checkpoint, e.g. checkpoints.sel(step=9000); this has a dim step")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    rate = descent_settings(checkpoint.attrs, learning_rate, "replay")["learning_rate"]
    objective, row = matched(objective, checkpoint)
    start, first = objective.as_params(row.params.values[0]), int(checkpoint.step)
    states = np.empty((n_steps + 1, objective.n_params), dtype=start.cpu().numpy().dtype)
    states[0] = start.cpu().numpy()
    params, done = start, n_steps
    with _threads(checkpoint.attrs.get("n_threads")):
        for i in tqdm(range(n_steps), desc="replay", unit="step", delay=1, disable=None):
            params = params - rate * objective.gradient(params, first + i)
            if not torch.isfinite(params).all():
                warnings.warn(f"the replay is not finite after step {first + i}; it ends there", stacklevel=2)
                done = i
                break
            states[i + 1] = params.cpu().numpy()
    path = xr.Dataset(
        {"params": (("step", "param"), states[: done + 1])},
        {"step": first + np.arange(done + 1)},
        {**checkpoint.attrs, "learning_rate": rate},
    )
    path.attrs |= _compare(path, checkpoints, objective)
    return path


@contextlib.contextmanager
def _threads(n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(int(n_threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(path: xr.Dataset, saved: xr.Dataset | None, objective) -> dict:
    shared = np.empty(0, dtype=int)
    if saved is not None:
        saved = rows(saved, objective)
        shared = np.intersect1d(path.step.values[1:], saved.step.values)
    deviations = [np.abs(path.params.sel(step=s).values - saved.params.sel(step=s).values).max() for s in shared]
    same_kernel = path.attrs.get("kernel") in (None, objective.kernel)
    largest = float(max(deviations, default=math.nan))
    return {"n_compared": len(shared), "largest_deviation": largest, "exact": int(largest == 0 and same_kernel)}
