"""Widths of the valley around each state, along the eigenvectors: how far apart its walls are at a given rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from scipy.optimize import elementwise

from landscape.checkpoints import batches, matched
from landscape.gradient import shared_steps
from landscape.objective import POINTS_PER_BATCH
from landscape.stability import stability_threshold

ROWS_PER_BATCH = 64
GROWTH = 1.3
"""Each step outwards in search of a floor or wall is so much longer than the one before, so none is jumped over."""

RELATIVE_TOLERANCE = 1e-7
"""Of positions along a line; a minimum is known no better than to the square root of rounding."""


def valley_width(
    objective,
    checkpoints: xr.Dataset,
    eigs: xr.Dataset,
    rise: float | Sequence[float] = (0.05, 0.1),
    *,
    half_width: float = 10.0,
) -> xr.Dataset:
    """Distance between the two walls of the valley along each eigenvector, where the loss is `rise` above its floor.

    On the line F(θ + s v_i, t), the floor is the local minimum reached downhill from the checkpoint; the walls are the
    nearest places to its left and right where the loss is floor_loss + ΔF. The walls of a quadratic valley of curvature
    λ are 2√(2ΔF/λ) apart, the harmonic width; at the stability threshold that is the stable width (2√(ηΔF) for gradient
    descent): in a narrower valley the step no longer fits. Floor and walls are searched for in steps that begin
    at a 32nd of the harmonic width and grow by 1.3 outwards; ridges thinner than a step may be stepped over.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param); the rows whose step `eigs` holds too are used.
    eigs : xarray.Dataset
        ``eigenvalue`` (step, mode) and ``eigenvector`` (step, mode, param), as from `top_eigenpairs`.
    rise : float or sequence of float
        Rises ΔF > 0, in units of the loss.
    half_width : float
        The floor is searched for within so far of the checkpoint, and each wall within so far of the floor, in
        parameter distance.

    Returns
    -------
    xarray.Dataset
        ``width`` = ``left`` + ``right``, distances ≥ 0 from the floor to the walls; ``harmonic_width`` (NaN where
        λ_i ≤ 0), ``stable_width`` (NaN where the attrs name no optimiser), all (step, mode, rise); ``floor``, position
        along v_i of the minimum, and ``floor_loss`` (step, mode). What is not found within `half_width` is NaN.

    Raises
    ------
    ValueError
        For a rise or half_width that is not positive, or checkpoints and eigs without a common step.
    """
    rises = np.atleast_1d(np.asarray(rise, dtype=float))
    if rises.ndim != 1 or not (np.isfinite(rises).all() and (rises > 0).all() and len(rises)):
        raise ValueError(f"rise must hold positive numbers, in units of the loss, got {rise}")
    if not 0 < half_width < np.inf:
        raise ValueError(f"half_width must be a positive distance, got {half_width}")
    single = "step" not in eigs.dims
    objective, checkpoints = matched(objective, checkpoints)
    checkpoints, eigs = shared_steps(checkpoints, eigs, objective)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("floor", "floor_loss", "left", "right")}
    done = 0
    for steps, params in batches(checkpoints, objective, ROWS_PER_BATCH, "valley widths"):
        pairs = eigs.isel(step=slice(done, done + len(steps)))
        vectors = objective.as_vectors(pairs.eigenvector.transpose("step", "mode", "param").values)
        loss = _line_loss(objective, params, vectors, steps)
        scale = _first_steps(pairs.eigenvalue.transpose("step", "mode").values.ravel(), rises.min(), half_width)
        for name, values in zip(found, _valleys(loss, scale, rises, half_width), strict=True):
            found[name].append(values.reshape(len(steps), -1, *values.shape[1:]))
        done += len(steps)
    result = _dataset({name: np.concatenate(blocks) for name, blocks in found.items()}, checkpoints, eigs, rises)
    return result.isel(step=0) if single else result


def _line_loss(objective, params: torch.Tensor, vectors: torch.Tensor, steps: np.ndarray) -> Callable:
    """The function (s, line) → F(θ_e + s v_ei, t_e) of arrays of one shape, line = e · k + i."""
    n_modes = vectors.shape[1]
    directions = vectors.flatten(0, 1)

    def loss(s: np.ndarray, line: np.ndarray) -> np.ndarray:
        flat, lines = objective.as_vectors(np.ravel(s)), torch.from_numpy(np.ravel(line).astype(np.int64))
        rows = lines // n_modes
        values = [
            objective.losses(params[rows[part]] + flat[part, None] * directions[lines[part]], steps[rows[part].numpy()])
            for part in torch.arange(len(flat)).split(POINTS_PER_BATCH)
        ]
        values = torch.cat(values).cpu().numpy().astype(float) if values else np.empty(0)
        return np.nan_to_num(values, nan=np.inf).reshape(np.shape(s))

    return loss


def _first_steps(eigenvalue: np.ndarray, rise: float, half_width: float) -> np.ndarray:
    """A small part of each valley, (line,), to begin the searches with."""
    harmonic = np.sqrt(2 * rise / np.maximum(np.abs(eigenvalue), 2 * rise / half_width**2))
    return np.where(np.isfinite(harmonic), harmonic, half_width) / 16


def _valleys(loss: Callable, scale: np.ndarray, rises: np.ndarray, half_width: float):
    """``floor``, ``floor_loss`` (line,) and distances ``left``, ``right`` (line, rise)."""
    lines = np.arange(len(scale), dtype=float)
    walled = _walled(loss, half_width)
    bracket = elementwise.bracket_minimum(
        walled, np.zeros(len(scale)), xl0=-scale, xr0=scale, factor=GROWTH, args=(lines,)
    )
    minimum = elementwise.find_minimum(
        walled, bracket.bracket, args=(lines,), tolerances={"xrtol": RELATIVE_TOLERANCE, "xatol": 1e-9, "fatol": 0}
    )
    there = bracket.success & minimum.success & (np.abs(minimum.x) < (1 - 1e-6) * half_width)
    floor, floor_loss = (np.where(there, values, np.nan) for values in (minimum.x, minimum.f_x))
    walls = [np.full((len(scale), len(rises)), np.nan) for _ in range(2)]
    line, which = (index.ravel() for index in np.indices((len(scale), len(rises))))
    line, which = line[there[line]], which[there[line]]
    for side, wall in zip((-1.0, 1.0), walls, strict=True):
        wall[line, which] = _wall(loss, floor, floor_loss, side, scale, rises, line, which, half_width)
    return floor, floor_loss, *walls


def _wall(loss, floor, floor_loss, side, scale, rises, line, which, half_width) -> np.ndarray:
    """Distances (m,) from the floor to the wall on one side, for m pairs of line and rise; NaN without a wall."""
    if not len(line):
        return np.empty(0)

    def above(distance, line, which):
        at, level = line.astype(int), which.astype(int)
        return loss(floor[at] + side * distance, line) - (floor_loss[at] + rises[level])

    walled = _walled(above, half_width)
    args = (line.astype(float), which.astype(float))
    zero = np.zeros(len(line))
    bracket = elementwise.bracket_root(walled, zero, xr0=scale[line], xmin=zero, factor=GROWTH, args=args)
    ends = tuple(np.where(bracket.success, end, zero) for end in bracket.bracket)
    root = elementwise.find_root(walled, ends, args=args, tolerances={"xrtol": RELATIVE_TOLERANCE, "xatol": 0})
    return np.where(bracket.success & root.success & (root.x <= half_width), root.x, np.nan)


def _walled(function: Callable, half_width: float) -> Callable:
    """`function` up to `half_width`, rising beyond it, so that every search ends.

    With limits of their own, scipy's searches would leap a third of the way to them in one step, over nearer walls.
    """

    def walled(position, *args):
        beyond = np.maximum(np.abs(position) - half_width, 0)
        return function(np.clip(position, -half_width, half_width), *args) + beyond

    return walled


def _dataset(found: dict[str, np.ndarray], checkpoints: xr.Dataset, eigs: xr.Dataset, rises: np.ndarray) -> xr.Dataset:
    eigenvalue = eigs.eigenvalue.transpose("step", "mode").values[..., None]
    curvature = np.where(eigenvalue > 0, eigenvalue, np.nan)
    threshold = stability_threshold(checkpoints.attrs)
    lines, walls = ("step", "mode"), ("step", "mode", "rise")
    return xr.Dataset(
        {
            "width": (walls, found["left"] + found["right"], {"long_name": "Width of the valley"}),
            "left": (walls, found["left"], {"long_name": "Distance from the floor to the left wall"}),
            "right": (walls, found["right"], {"long_name": "Distance from the floor to the right wall"}),
            "harmonic_width": (walls, 2 * np.sqrt(2 * rises / curvature), {"long_name": "Harmonic width"}),
            "stable_width": (
                walls,
                np.broadcast_to(2 * np.sqrt(2 * rises / threshold), found["left"].shape).copy(),
                {"long_name": "Stable width"},
            ),
            "floor": (lines, found["floor"], {"long_name": "Floor of the valley along v_i"}),
            "floor_loss": (lines, found["floor_loss"], {"long_name": "Loss on the floor"}),
        },
        {
            "step": checkpoints.step,
            "mode": eigs.mode,
            "rise": ("rise", rises, {"long_name": "Rise of the loss above the floor"}),
        },
        dict(checkpoints.attrs),
    )
