"""Curvature where a run begins to oscillate, beside its optimiser's stability threshold."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.checkpoints import matched
from landscape.curvature import Curvature
from landscape.dynamics import replay
from landscape.floquet import fixed_point_multiplier, orbit_multiplier
from landscape.hessian import top_eigenpairs
from landscape.stability import stability_threshold

LABELS = {
    "eigenvalue": "Sharpness at the midpoint",
    "eigenvalue_sharper": "Sharpness at the sharper iterate",
    "eigenvalue_flatter": "Sharpness at the flatter iterate",
    "overlap": "Overlap of the motion with v_1",
    "floquet_multiplier": "Floquet multiplier nearest to a flip",
    "threshold": "Stability threshold",
}


def onset_curvature(
    objective,
    checkpoints: xr.Dataset,
    onsets: xr.Dataset,
    *,
    tol: float = 1e-6,
    learning_rate: float | None = None,
    period: int = 1,
) -> xr.Dataset:
    """Sharpness where the motion begins to oscillate, beside the stability threshold.

    At an onset the state alternates between a sharper and a flatter wall; the midpoint (θ_t + θ_{t+1})/2 stands for
    the orbit that has just lost its stability, and all three are returned. For Adam and RMSProp the sharpness is the
    preconditioned one, which their threshold limits (Cohen et al. 2022, arXiv 2207.14484), and the motion is that of
    P^(1/2)θ. States of gradient descent that were not saved are replayed.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param) of a run by any optimiser that the attrs name, gradient descent where they name none;
        for Adam and RMSProp also ``second_moment`` (step, param).
    onsets : xarray.Dataset
        ``onset_step`` (onset), from `landscape.find_onsets`.
    tol : float
        Largest relative residual of the eigenpairs.
    learning_rate : float, optional
        η; that of the checkpoints' attrs by default.
    period : int
        Period p of the orbit whose Floquet multiplier is wanted: 1 for the fixed point that turns into a two-cycle, 2
        for the two-cycle that turns into a four-cycle.

    Returns
    -------
    xarray.Dataset
        All (onset): ``eigenvalue``, λ_1 of F(·, t) at the midpoint; ``eigenvalue_sharper`` and ``eigenvalue_flatter``,
        the larger and the smaller λ_1 of the states θ_t (under F(·, t)) and θ_{t+1} (under F(·, t + 1)); ``overlap``
        |⟨Δ_t, v_1⟩|/‖Δ_t‖ of the motion with v_1 at the midpoint; ``floquet_multiplier``, the multiplier of the orbit
        with the smallest real part (that part), so that it is −1 at a flip: of the map linearised at the midpoint for
        `period` 1, of the product of p such maps at θ_t … θ_{t+p−1} for longer ones. The preconditioner is held
        fixed for it; it is NaN for mini-batches and unknown optimisers, and for Adam and RMSProp beyond period 1.
        ``threshold``, NaN for unknown optimisers; and ``onset_step``, ``onset_phase`` of `onsets`.

    Raises
    ------
    ValueError
        If no state at or before an onset was saved; where states are missing, unless the run was trained by gradient
        descent; where the attrs name no learning rate; for `period` below 1.
    """
    if period < 1:
        raise ValueError(f"period must be at least 1, got {period}")
    objective, checkpoints = matched(objective, checkpoints)
    attrs = _attrs(checkpoints, learning_rate)
    checkpoints = checkpoints.assign_attrs(attrs)
    values: dict[str, list[float]] = {name: [] for name in LABELS}
    for step in onsets.onset_step.values:
        states = _states(objective, checkpoints, int(step), max(period, 2))
        for name, value in _at(objective, states, tol, period).items():
            values[name].append(value)
    curved = xr.Dataset({name: ("onset", np.array(values[name]), {"long_name": LABELS[name]}) for name in LABELS})
    for name in ("onset_step", "onset_phase"):
        if name in onsets:
            curved[name] = onsets[name]
    return curved.assign_attrs(attrs, period_of_orbit=period)


def _at(objective, states: xr.Dataset, tol: float, period: int) -> dict[str, float]:
    """What is measured at one onset, from its consecutive states."""
    attrs, step = states.attrs, int(states.step[0])
    preconditioned = attrs["optimizer"] in ("adam", "rmsprop")
    two = states.isel(step=slice(0, 2))
    midpoint = two.isel(step=[0]).assign(
        params=two.params.isel(step=[0]).copy(data=two.params.mean("step").values[None])
    )
    top = top_eigenpairs(objective, midpoint, k=1, tol=tol, preconditioned=preconditioned).isel(step=0, mode=0)
    sharpness = top_eigenpairs(objective, two, k=1, tol=tol, preconditioned=preconditioned).eigenvalue.values
    motion = two.params.diff("step").values[0]
    if preconditioned:
        scale = next(Curvature(objective, midpoint, preconditioned=True).batches(1, "")).scale
        motion = motion / scale[0].cpu().numpy()
    threshold = stability_threshold(attrs, preconditioned=preconditioned, step=step)
    if period == 1:
        multiplier = fixed_point_multiplier(float(top.eigenvalue), threshold, attrs)
    else:
        multiplier = orbit_multiplier(objective, states.isel(step=slice(0, period)), attrs)
    return {
        "eigenvalue": float(top.eigenvalue),
        "eigenvalue_sharper": sharpness.max(),
        "eigenvalue_flatter": sharpness.min(),
        "overlap": abs(motion @ top.eigenvector.values) / np.linalg.norm(motion),
        "floquet_multiplier": multiplier,
        "threshold": threshold,
    }


def _attrs(checkpoints: xr.Dataset, learning_rate: float | None) -> dict:
    attrs = {"optimizer": "gd"} | checkpoints.attrs
    if learning_rate is not None:
        attrs["learning_rate"] = float(learning_rate)
    if attrs.get("learning_rate") is None:
        raise ValueError("the checkpoints' attrs name no learning_rate; give learning_rate=")
    return attrs


def _states(objective, checkpoints: xr.Dataset, step: int, n: int) -> xr.Dataset:
    """θ_t … θ_{t+n−1}, replayed from the nearest state saved before where they were not saved."""
    wanted, saved = step + np.arange(n), checkpoints.step.values
    if np.isin(wanted, saved).all():
        return checkpoints.sel(step=wanted).load()
    optimizer = checkpoints.attrs["optimizer"]
    if optimizer != "gd":
        raise ValueError(
            f"steps {step} to {wanted[-1]} were not all saved, and {optimizer} cannot be replayed; save every step "
            "around the onset (dynloss.train: windows=)"
        )
    before = saved[saved <= step]
    if not len(before):
        raise ValueError(f"no checkpoint was saved at or before the onset at step {step}; record more of the run")
    path = replay(objective, checkpoints.sel(step=before[-1]), int(wanted[-1] - before[-1]))
    return path.sel(step=wanted)
