"""The descent map θ → θ − η∇F(θ, t) itself: a run replayed from a checkpoint, and the curvature where it bifurcates."""

from __future__ import annotations

import contextlib
import math
import warnings

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from landscape.checkpoints import rows
from landscape.hessian import top_eigenpairs
from landscape.stability import stability_threshold


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
        ``largest_deviation`` (NaN where none was met); ``exact`` is 1 if that is 0 and at least one was met.

    Raises
    ------
    ValueError
        If the run was not trained by gradient descent, no learning rate is known, or `checkpoint` has several rows.
    """
    if "step" in checkpoint.dims:
        raise ValueError("replay begins at one checkpoint, e.g. checkpoints.sel(step=9000); this has a dim step")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    rate = _learning_rate(checkpoint.attrs, learning_rate)
    start, first = objective.as_params(rows(checkpoint, objective).params.values[0]), int(checkpoint.step)
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


def _learning_rate(attrs, given: float | None) -> float:
    if attrs.get("optimizer", "gd") != "gd":
        raise ValueError(f"replay knows gradient descent only, and this run was trained by {attrs['optimizer']!r}")
    rate = attrs.get("learning_rate") if given is None else given
    if rate is None:
        raise ValueError("the checkpoints' attrs name no learning_rate; give learning_rate=")
    return float(rate)


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
    largest = float(max(deviations, default=math.nan))
    return {"n_compared": len(shared), "largest_deviation": largest, "exact": int(largest == 0)}


def onset_curvature(
    objective, checkpoints: xr.Dataset, onsets: xr.Dataset, *, tol: float = 1e-6, learning_rate: float | None = None
) -> xr.Dataset:
    """Sharpness where the motion begins to oscillate, beside the stability threshold.

    At an onset the state alternates between a sharper and a flatter wall; the midpoint (θ_t + θ_{t+1})/2 stands for
    the orbit that has just lost its stability, and all three are returned. States that were not saved are replayed.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param) of a gradient-descent run.
    onsets : xarray.Dataset
        ``onset_step`` (onset), from `landscape.find_onsets`.
    tol : float
        Largest relative residual of the eigenpairs.
    learning_rate : float, optional
        η; that of the checkpoints' attrs by default.

    Returns
    -------
    xarray.Dataset
        All (onset): ``eigenvalue``, λ_1 of F(·, t) at the midpoint; ``eigenvalue_sharper`` and ``eigenvalue_flatter``,
        the larger and the smaller λ_1 of the states θ_t (under F(·, t)) and θ_{t+1} (under F(·, t + 1)); ``overlap``
        |⟨Δ_t, v_1⟩|/‖Δ_t‖ of the motion with v_1 at the midpoint; ``floquet_multiplier``, the factor by which two
        steps stretch a displacement along v_1, ⟨v_1, (I − ηH_{t+1})(I − ηH_t) v_1⟩ (its eigenvalue itself may be
        complex, where v_1 mixes with a neighbour); ``threshold``; and ``onset_step``, ``onset_phase`` of `onsets`.

    Raises
    ------
    ValueError
        If no state at or before an onset was saved, or the run was not trained by gradient descent.
    """
    checkpoints = rows(checkpoints, objective)
    rate = _learning_rate(checkpoints.attrs, learning_rate)
    names = ("eigenvalue", "eigenvalue_sharper", "eigenvalue_flatter", "overlap", "floquet_multiplier")
    values: dict[str, list[float]] = {name: [] for name in names}
    for step in onsets.onset_step.values:
        states = _two_states(objective, checkpoints, int(step), rate)
        midpoint = states.isel(step=[0]).copy(data={"params": states.params.mean("step", keepdims=True).values})
        top = top_eigenpairs(objective, midpoint, k=1, tol=tol).isel(step=0, mode=0)
        sharpness = top_eigenpairs(objective, states, k=1, tol=tol).eigenvalue.values
        motion = states.params.diff("step").values[0]
        direction = top.eigenvector.values
        values["eigenvalue"].append(float(top.eigenvalue))
        values["eigenvalue_sharper"].append(sharpness.max())
        values["eigenvalue_flatter"].append(sharpness.min())
        values["overlap"].append(abs(motion @ direction) / np.linalg.norm(motion))
        values["floquet_multiplier"].append(_floquet_multiplier(objective, states, rate, direction))
    labels = {
        "eigenvalue": "Sharpness at the midpoint",
        "eigenvalue_sharper": "Sharpness at the sharper iterate",
        "eigenvalue_flatter": "Sharpness at the flatter iterate",
        "overlap": "Overlap of the motion with v_1",
        "floquet_multiplier": "Floquet multiplier along v_1",
    }
    threshold = stability_threshold({"optimizer": "gd", "learning_rate": rate})
    curved = xr.Dataset({name: ("onset", np.array(values[name]), {"long_name": labels[name]}) for name in names})
    curved["threshold"] = ("onset", np.full(curved.sizes["onset"], threshold), {"long_name": "Stability threshold"})
    for name in ("onset_step", "onset_phase"):
        if name in onsets:
            curved[name] = onsets[name]
    return curved.assign_attrs(checkpoints.attrs)


def _two_states(objective, checkpoints: xr.Dataset, step: int, rate: float) -> xr.Dataset:
    """θ_t and θ_{t+1}, replayed from the nearest state saved before where they were not saved."""
    steps = checkpoints.step.values
    if np.isin([step, step + 1], steps).all():
        return checkpoints.sel(step=[step, step + 1]).load()
    before = steps[steps <= step]
    if not len(before):
        raise ValueError(f"no checkpoint was saved at or before the onset at step {step}; record more of the run")
    path = replay(objective, checkpoints.sel(step=before[-1]), step + 1 - int(before[-1]), learning_rate=rate)
    return path.sel(step=[step, step + 1])


def _floquet_multiplier(objective, states: xr.Dataset, rate: float, direction: np.ndarray) -> float:
    """⟨v, (I − ηH_{t+1})(I − ηH_t) v⟩ for the unit vector v = `direction`."""
    vector = objective.as_vectors(direction)
    moved = vector
    for params, step in zip(states.params.values, states.step.values.tolist(), strict=True):
        moved = moved - rate * objective.hvp(params, moved, step)
    return float(vector @ moved)
