"""Why the loss changed from one step to the next: the step that was made, or the landscape that moved."""

from __future__ import annotations

import numpy as np
import xarray as xr

from landscape.checkpoints import batches, matched, rows_at_a_time


def loss_change(objective, checkpoints: xr.Dataset) -> xr.Dataset:
    """Change of the loss at each step, split into what the motion did and what the moving landscape did.

    F(θ_t, t) − F(θ_{t−1}, t−1) = [F(θ_t, t−1) − F(θ_{t−1}, t−1)] + [F(θ_t, t) − F(θ_t, t−1)]: the motion part under
    the loss of the step before, and the time part at the state reached. Gradient descent's motion part is negative
    while it is stable, even where F rises; of a static loss the time part is 0.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param), saved at successive steps where the result is wanted; `landscape.replay` recomputes
        states that were not saved.

    Returns
    -------
    xarray.Dataset
        ``change``, ``motion_part``, ``time_part`` (step), in units of the loss, NaN in the first row and where the step
        before was not saved. change = motion_part + time_part up to rounding of F.

    Raises
    ------
    ValueError
        If these are no checkpoints of the objective's model.
    """
    objective, checkpoints = matched(objective, checkpoints)
    steps = checkpoints.step.values
    follows = np.concatenate([[False], np.diff(steps) == 1])
    own, earlier, done = [], [], 0
    for block, params in batches(checkpoints, objective, rows_at_a_time(64, objective.n_params), "loss changes"):
        # The same rows at once, so that a loss that does not depend on the step rounds alike both times.
        before = np.where(follows[done : done + len(block)], block - 1, block)
        own.append(objective.losses(params, block).cpu().numpy())
        earlier.append(objective.losses(params, before).cpu().numpy())
        done += len(block)
    own, earlier = np.concatenate(own), np.concatenate(earlier)
    with np.errstate(invalid="ignore"):  # inf − inf, where a run diverged
        previous = np.concatenate([own[:1], own[:-1]])
        parts = {
            "change": (own - previous, "Change of the loss"),
            "motion_part": (earlier - previous, "Change of the loss by the motion"),
            "time_part": (own - earlier, "Change of the loss by the moving landscape"),
        }
    return xr.Dataset(
        {name: ("step", np.where(follows, part, np.nan), {"long_name": text}) for name, (part, text) in parts.items()},
        {"step": checkpoints.step},
        dict(checkpoints.attrs),
    )
