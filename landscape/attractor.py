"""Attractors of the frozen descent map θ → θ − η∇F(θ): its bifurcation diagram against phase, rate or amplitude."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from landscape.bifurcation import LONGEST_PERIOD, orbit_periods
from landscape.checkpoints import matched
from landscape.hessian import top_eigenpairs
from landscape.stability import descent_settings, stability_threshold

CHUNK_BYTES, CHUNK_ROWS = 2**26, 64
"""Controls that are iterated at once: so many that θ, velocity, gradient and midpoint take no more than this."""

LABELS = {
    "step": "Step at which the loss is frozen",
    "learning_rate": "Learning rate",
    "class_weights": "Class weights",
}


def attractor_diagram(
    objective,
    checkpoint: xr.Dataset,
    *,
    steps=None,
    learning_rates=None,
    class_weights=None,
    eigs: xr.Dataset | None = None,
    n_transient: int = 200,
    n_keep: int = 64,
    learning_rate: float | None = None,
    rtol: float = 0.03,
    resolution: float = 0.0,
    tol: float = 1e-4,
) -> xr.Dataset:
    """Where the descent map settles when the loss stops moving: its attractor at each value of one control.

    The map θ → θ − η∇F(θ; control), for heavy-ball momentum from rest, is iterated from the checkpoint for all
    controls at once. Exactly one control is given. Against a class weight, phase or learning rate this is the
    bifurcation diagram of a map in the strict sense, of which the live one along a run is a passage at finite speed.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoint : xarray.Dataset
        One row of checkpoints, e.g. ``run.checkpoints.sel(step=8700)``, of gradient descent or heavy-ball momentum.
    steps : array_like of int, optional
        Control: the step t at which F(·, t) is frozen.
    learning_rates : array_like, optional
        Control: η, with F frozen at the checkpoint's own step.
    class_weights : array_like or xarray.DataArray, optional
        Control: Γ, (control, class), for example at several amplitudes. The values of the control are the coordinate of
        the first dim of a DataArray, such as ``amplitude``, otherwise the numbers of the rows.
    eigs : xarray.Dataset, optional
        ``eigenvector`` (step, mode, param): v_1 is that of the last step up to the checkpoint's. By default v_1 is
        computed at the checkpoint.
    n_transient, n_keep : int
        Iterates that are dropped, and that are kept; at least 34 of the latter. Close to a bifurcation the transient
        takes longer, as the multiplier there is close to 1 in modulus.
    learning_rate : float, optional
        η; that of the checkpoint's attrs by default.
    rtol : float
        Relative tolerance of the orbit's period, as in `bifurcation_diagram`; smaller than there, as nothing moves the
        map meanwhile.
    resolution : float
        An orbit whose updates vary by no more than this along v_1 counts as rest, period 1: kinks of the loss, as of
        ReLU, keep the iterates of a stable map jittering by a little.
    tol : float
        Largest relative residual of the eigenpairs.

    Returns
    -------
    xarray.Dataset
        ``projection`` ⟨θ − θ_checkpoint, v_1⟩ and ``loss`` of each kept iterate (control, iterate); ``orbit_period``
        (control) of the projection: 1 to 16, inf for a longer one, 0 for none, and 1 also where the orbit is dying out;
        ``eigenvalue`` (control), λ_1 of the frozen loss on the attractor itself, at the midpoint of the last two
        iterates as in `onset_curvature`, with ``residual`` and ``certified``; ``threshold`` (control), the stability
        threshold; ``diverged`` (control), where an iterate is not finite: all that follows is NaN. Coordinates
        ``control``, ``iterate`` (the number of updates), and ``phase`` (control) where the control is a step and the
        attrs name a period. attrs ``control`` names the control, ``eigenvector_step`` the step of v_1.

    Raises
    ------
    ValueError
        Unless exactly one control is given, from one checkpoint of gradient descent or momentum with a known learning
        rate; for `n_keep` below 34, or eigs without a step up to the checkpoint's.

    Warns
    -----
    UserWarning
        Once, where eigenvalues are not certified.
    """
    if "step" in checkpoint.dims:
        raise ValueError("the map starts from one checkpoint, e.g. checkpoints.sel(step=8700); this has a dim step")
    if n_keep < 2 * LONGEST_PERIOD + 2 or n_transient < 0:
        raise ValueError(
            f"n_keep must be at least {2 * LONGEST_PERIOD + 2} and n_transient at least 0, got {n_keep}, {n_transient}"
        )
    if not 0 < rtol < 1 or not resolution >= 0:
        raise ValueError(f"rtol must lie between 0 and 1, resolution be at least 0, got {rtol}, {resolution}")
    objective, row = matched(objective, checkpoint)
    control = _control(objective, checkpoint, steps, learning_rates, class_weights, learning_rate)
    start = objective.as_params(row.params.values[0])
    direction, direction_step = _direction(objective, checkpoint, eigs, tol)
    size = int(np.clip(CHUNK_BYTES // (4 * start.numel() * start.element_size()), 1, CHUNK_ROWS))
    parts = []
    n_updates = n_transient + n_keep - 1
    with tqdm(total=len(control) * n_updates, desc="attractors", unit="update", delay=1, disable=None) as progress:
        for first in range(0, len(control), size):
            part = control.part(slice(first, first + size))
            kept = _iterate(part, start, direction, n_transient, n_keep, progress)
            parts.append(kept | _curvature(part, kept.pop("midpoint"), tol))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["orbit_period"] = _periods(columns["projection"], rtol, columns["rounding"] + resolution)
    attrs = {"n_transient": n_transient, "rtol": rtol, "resolution": resolution, "eigenvector_step": direction_step}
    return _dataset(columns, control, checkpoint, attrs)


@dataclass(frozen=True)
class _Control:
    """The frozen maps: θ → θ − rate ∇F(θ, step), one a row, in the objective that has these steps."""

    name: str
    objective: object
    values: np.ndarray  # (control,), as shown
    steps: np.ndarray  # (control,)
    rates: np.ndarray  # (control,)
    attrs: dict  # of the optimiser, its learning rate aside

    def __len__(self) -> int:
        return len(self.values)

    def part(self, chosen: slice) -> _Control:
        """Some of the maps."""
        pieces = (self.values[chosen], self.steps[chosen], self.rates[chosen])
        return _Control(self.name, self.objective, *pieces, self.attrs)

    @property
    def thresholds(self) -> np.ndarray:
        """Stability threshold of each map, (control,)."""
        return np.array([stability_threshold(self.attrs | {"learning_rate": rate}) for rate in self.rates])


def _control(objective, checkpoint, steps, learning_rates, class_weights, learning_rate) -> _Control:
    given = {"steps": steps, "learning_rates": learning_rates, "class_weights": class_weights}
    named = [name for name, values in given.items() if values is not None]
    if len(named) != 1:
        what = " and ".join(named) or "none"
        raise ValueError(f"give exactly one control: steps=, learning_rates= or class_weights=; got {what}")
    if learning_rates is not None and learning_rate is None:
        learning_rate = 1.0  # not used
    attrs = descent_settings(checkpoint.attrs, learning_rate, "attractor_diagram", ("gd", "momentum"))
    values = np.asarray(given[named[0]])
    if values.ndim != (2 if class_weights is not None else 1) or not len(values):
        shape = "(control, class)" if class_weights is not None else "(control,)"
        raise ValueError(f"{named[0]} must have shape {shape}, got {values.shape}")
    at, rates = np.full(len(values), int(checkpoint.step)), np.full(len(values), attrs["learning_rate"])
    if steps is not None:
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"steps must be whole numbers, got {values.dtype}")
        return _Control("step", objective, values, values, rates, attrs)
    if learning_rates is not None:
        return _Control("learning_rate", objective, values.astype(float), at, values.astype(float), attrs)
    row = np.arange(len(values))
    name, shown = "class_weights", row
    if isinstance(class_weights, xr.DataArray) and class_weights.dims[0] in class_weights.coords:
        name, shown = class_weights.dims[0], class_weights[class_weights.dims[0]].values
    return _Control(name, objective.reweighted(values), shown, row, rates, attrs)


def _direction(objective, checkpoint: xr.Dataset, eigs: xr.Dataset | None, tol: float) -> tuple[torch.Tensor, int]:
    """v_1 (n,), and the step that it belongs to."""
    step = int(checkpoint.step)
    if eigs is None:
        eigs = top_eigenpairs(objective, checkpoint, k=1, tol=tol)
    eigs = eigs if "step" in eigs.dims else eigs.expand_dims("step")
    eigs = eigs if "mode" in eigs.dims else eigs.expand_dims("mode")
    before = eigs.step.values[eigs.step.values <= step]
    if not len(before):
        raise ValueError(f"eigs begin after the checkpoint's step {step}; leave eigs out, or give earlier ones")
    vector = eigs.eigenvector.sel(step=before.max()).isel(mode=0).values
    return objective.as_params(vector), int(before.max())


def _iterate(
    part: _Control, start: torch.Tensor, direction: torch.Tensor, n_transient: int, n_keep: int, progress: tqdm
) -> dict:
    """The kept iterates: ``projection``, ``loss`` (control, iterate); ``midpoint`` (control, n) of the last two; and
    ``rounding`` (control,), how far apart it may keep the iterates of a fixed point."""
    objective, momentum = part.objective, float(part.attrs.get("momentum") or 0.0)
    params = start.expand(len(part), -1)
    rates, velocity, midpoint = torch.as_tensor(part.rates).to(start)[:, None], torch.zeros_like(params), None
    projection, loss = (np.full((len(part), n_keep), np.nan) for _ in range(2))
    for i in range(n_transient + n_keep):
        losses, gradient = objective.value_and_gradient(params, part.steps)
        kept = i - n_transient
        if kept >= 0:
            finite = torch.isfinite(params).all(-1) & torch.isfinite(losses)
            along = torch.where(finite, (params - start) @ direction, torch.nan)
            projection[:, kept] = along.cpu().numpy()
            loss[:, kept] = torch.where(finite, losses, torch.nan).cpu().numpy()
        if kept == n_keep - 1:
            break
        velocity = momentum * velocity + gradient if momentum else gradient
        before, params = params, params - rates * velocity
        midpoint = (before + params) / 2
        progress.update(len(part))
    rounding = 64 * torch.finfo(params.dtype).eps * params.norm(dim=-1).cpu().numpy()
    return {"projection": projection, "loss": loss, "midpoint": midpoint.cpu().numpy(), "rounding": rounding}


def _curvature(part: _Control, midpoint: np.ndarray, tol: float) -> dict:
    """λ_1 at the midpoints, with its residual and certificate; NaN where they are not finite."""
    finite = np.isfinite(midpoint).all(axis=1)
    found = {"eigenvalue": np.full(len(part), np.nan), "residual": np.full(len(part), np.nan)}
    found["certified"] = np.zeros(len(part), bool)
    if finite.any():
        states = xr.Dataset({"params": (("step", "param"), midpoint[finite])}, {"step": part.steps[finite]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one warning for all controls: `_dataset`
            top = top_eigenpairs(part.objective, states, k=1, tol=tol).isel(mode=0)
        for name, values in found.items():
            values[finite] = top[name].values
    return found


def _periods(projection: np.ndarray, rtol: float, rounding: np.ndarray | float = 0.0) -> np.ndarray:
    """Orbit period of each row; 1 for what dies out steadily, as the approach to a fixed point does."""
    period = orbit_periods(projection, rtol, rounding)
    spread = np.stack([part.std(axis=1) for part in np.array_split(np.diff(projection, axis=1), 4, axis=1)])
    steadily = (spread[1:] < 0.95 * spread[:-1]).all(axis=0)
    # Alternation that shrinks slowly looks like a two-cycle, and what shrinks quickly repeats at no shift.
    dies = steadily & ((period == 2) | (period == 0) & (spread[-1] < 0.5 * spread[0]))
    return np.where(dies, 1.0, period)


def _dataset(columns: dict, control: _Control, checkpoint: xr.Dataset, attrs: dict) -> xr.Dataset:
    n_keep = columns["loss"].shape[1]
    diverged = ~(np.isfinite(columns["loss"]).all(axis=1) & np.isfinite(columns["projection"]).all(axis=1))
    doubtful = int((~columns["certified"] & ~diverged).sum())
    if doubtful:
        remedy = "see residual and certified, and raise tol"
        warnings.warn(
            f"eigenvalues of {doubtful} of {len(control)} attractors are not certified; {remedy}", stacklevel=3
        )
    rate = {} if control.name == "learning_rate" else {"learning_rate": control.attrs["learning_rate"]}
    of_control = {
        "orbit_period": (columns["orbit_period"], "Period of the orbit", "updates"),
        "eigenvalue": (columns["eigenvalue"], "Sharpness on the attractor", None),
        "residual": (columns["residual"], "Relative residual of the eigenpair", None),
        "certified": (columns["certified"], "No larger eigenvalue is missing", None),
        "threshold": (control.thresholds, "Stability threshold", None),
        "diverged": (diverged, "An iterate is not finite", None),
    }
    frozen = xr.Dataset(
        {
            "projection": (("control", "iterate"), columns["projection"], {"long_name": "Projection on v_1"}),
            "loss": (("control", "iterate"), columns["loss"], {"long_name": "Loss"}),
        },
        {
            "control": ("control", control.values, {"long_name": LABELS.get(control.name, control.name.capitalize())}),
            "iterate": (
                "iterate",
                attrs["n_transient"] + np.arange(n_keep),
                {"long_name": "Updates of the frozen map"},
            ),
            "step": int(checkpoint.step),
        },
        dict(checkpoint.attrs) | rate | attrs | {"control": control.name},
    )
    for name, (values, text, units) in of_control.items():
        frozen[name] = ("control", values, {"long_name": text} | ({"units": units} if units else {}))
    period = checkpoint.attrs.get("period")
    if control.name == "step" and period is not None:
        phase = control.values % period / period
        frozen = frozen.assign_coords(phase=("control", phase, {"long_name": "Phase at which the loss is frozen"}))
    return frozen
