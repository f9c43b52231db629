"""Lyapunov exponents of gradient descent: how fast neighbouring trajectories of a run part."""

from __future__ import annotations

import numpy as np
import xarray as xr
from tqdm import tqdm

from landscape.checkpoints import matched
from landscape.stability import descent_settings

BLOCK = 256
"""States that are read at once."""


def lyapunov_exponents(
    objective,
    dense: xr.Dataset,
    k: int = 2,
    *,
    learning_rate: float | None = None,
    window: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Growth rates of the k fastest growing tangent vectors along a trajectory, per step, largest first.

    Tangent vectors follow J_t = I − ηH(θ_t, t), the Jacobian of the map that made the trajectory, and are
    orthonormalised by QR at every step; the logarithms of the diagonal of R are their growth (Benettin et al. 1980).
    They start at random: the first exponents of a short trajectory still show how they turn.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    dense : xarray.Dataset
        ``params`` (step, param) of gradient descent at consecutive steps, at least two: from `landscape.replay`, or a
        window of a run in which every step was saved.
    k : int
        Number of exponents, 1 … n.
    learning_rate : float, optional
        η; that of the attrs by default.
    window : int, optional
        ``exponent`` averages over that many last steps; by default over all since the beginning.
    seed : int
        Seed of the vectors with which the first step begins.

    Returns
    -------
    xarray.Dataset
        ``exponent`` (step, mode): mean growth per step up to the state at that step, NaN in the first row and where the
        window is not full; ``finite_time_exponent`` (mode): the mean over all steps. −inf where a direction is squeezed
        to nothing, as at a superstable orbit; NaN after a Hessian that is not finite.

    Raises
    ------
    ValueError
        For gaps in the steps, k outside 1 … n, a window that the trajectory does not fill, an unknown learning rate, or
        another optimiser.

    Examples
    --------
    >>> import torch
    >>> from landscape import Objective, replay
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> objective = Objective(model, lambda out, _, step: out.square().sum() / 2, torch.ones(1, 1), torch.ones(1))
    >>> start = xr.Dataset({"params": ("param", [1.0])}, {"step": 0}, {"learning_rate": 0.5})
    >>> lyapunov_exponents(objective, replay(objective, start, 20), k=1).finite_time_exponent.values
    array([-0.69314718])
    """
    objective, dense = matched(objective, dense)
    rate = descent_settings(dense.attrs, learning_rate, "lyapunov_exponents")["learning_rate"]
    steps, n = dense.step.values, objective.n_params
    gaps = steps[1:][np.diff(steps) != 1]
    if len(gaps):
        raise ValueError(
            f"a step is missing before step {gaps[0]}: exponents need every step; landscape.replay has them"
        )
    if len(steps) < 2:
        raise ValueError("exponents need at least two consecutive states, got one; landscape.replay makes more")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and {n}, the number of parameters, got {k}")
    if window is not None and not 1 <= window < len(steps):
        raise ValueError(f"window must lie between 1 and {len(steps) - 1}, the number of steps, got {window}")
    growth = _growth(objective, dense, k, rate, seed)
    with np.errstate(invalid="ignore"):
        total = np.cumsum(growth, axis=0)
    exponent = np.full((len(steps), k), np.nan)
    if window is None:
        exponent[1:] = total / np.arange(1, len(steps))[:, None]
    else:
        exponent[window:] = np.lib.stride_tricks.sliding_window_view(growth, window, axis=0).mean(axis=-1)
    attrs = dict(dense.attrs) | {"learning_rate": rate, "seed": seed} | ({} if window is None else {"window": window})
    named = {"long_name": "Lyapunov exponent", "units": "1/step"}
    return xr.Dataset(
        {
            "exponent": (("step", "mode"), exponent, named),
            "finite_time_exponent": (
                "mode",
                total[-1] / len(growth),
                {**named, "long_name": "Lyapunov exponent, whole"},
            ),
        },
        {"step": dense.step, "mode": np.arange(k)},
        attrs,
    )


def _growth(objective, dense: xr.Dataset, k: int, rate: float, seed: int) -> np.ndarray:
    """Logarithm of the growth of each orthonormal vector in each step, (step, mode)."""
    n_steps, n = dense.sizes["step"] - 1, objective.n_params
    vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]
    growth = np.full((n_steps, k), np.nan)
    with tqdm(total=n_steps, desc="exponents", unit="step", delay=1, disable=None) as progress:
        for first in range(0, n_steps, BLOCK):
            block = dense.isel(step=slice(first, min(first + BLOCK, n_steps)))
            for row, (params, step) in enumerate(
                zip(block.params.values, block.step.values.tolist(), strict=True), first
            ):
                columns = objective.as_vectors(vectors.T.copy())
                moved = columns - rate * objective.linearize(params[None], step)(columns[None])[0]
                moved = moved.cpu().numpy().T.astype(float)
                if not np.isfinite(moved).all():
                    return growth
                vectors, r = np.linalg.qr(moved)
                with np.errstate(divide="ignore"):
                    growth[row] = np.log(np.abs(np.diag(r)))
                progress.update()
    return growth
