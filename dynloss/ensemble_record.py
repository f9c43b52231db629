"""What the members of an ensemble leave while they train, as one Dataset, and one of them as a run has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from dynloss.measures import SCALARS


class EnsembleRecord:
    """Room for the history and the checkpoints of all members; threads fill different members.

    Parameters
    ----------
    like : torch.Tensor, shape (…, n)
        Parameters of some members.
    n_members, n_steps : int
        Size of the ensemble.
    scalars : sequence of str
        Which of `SCALARS` a row of the history holds.
    history_every : int
        Steps between rows of the history.
    checkpoint_every : int, optional
        Steps between saved θ; the first and the last are saved always.
    """

    def __init__(
        self,
        like: torch.Tensor,
        n_members: int,
        n_steps: int,
        scalars: Sequence[str],
        history_every: int,
        checkpoint_every: int | None,
    ):
        self.history_every = history_every
        self.steps = np.arange(0, n_steps, history_every)
        self.saved = [*range(0, n_steps, checkpoint_every or n_steps), n_steps]
        self._row = {step: row for row, step in enumerate(self.saved)}
        self.history = {name: np.full((n_members, len(self.steps)), np.nan) for name in SCALARS if name in scalars}
        self.has_accuracies = not self.history.keys().isdisjoint({"accuracy", "validation_accuracy"})
        self.params = np.full((n_members, len(self.saved), like.shape[-1]), np.nan, like[:0].numpy(force=True).dtype)
        self.last_step = np.full(n_members, n_steps)
        self.is_diverged = np.zeros(n_members, bool)

    def next(self, step: int) -> int:
        """The first step from `step` on of which something is kept."""
        saved = self.saved[np.searchsorted(self.saved, step)] if step <= self.saved[-1] else self.saved[-1]
        return min(-(-step // self.history_every) * self.history_every, saved)

    def row(self, members: np.ndarray, step: int, values: dict[str, torch.Tensor]) -> None:
        """Keep a row of the history of these members."""
        for name in self.history.keys() & values.keys():
            self.history[name][members, step // self.history_every] = values[name].numpy(force=True)

    def checkpoint(self, members: np.ndarray, step: int, params: torch.Tensor) -> None:
        """Keep θ, (E, n), if `step` is one of those to be saved."""
        if step in self._row:
            self.params[members, self._row[step]] = params.numpy(force=True)

    def diverged(self, members: np.ndarray, step: int) -> None:
        """Note the step at which the loss of these members was not finite."""
        self.last_step[members], self.is_diverged[members] = step, True

    def dataset(self, losses: list, learning_rates: list, attrs: dict) -> xr.Dataset:
        """All of it."""
        named = {name: (("member", "step"), rows, {"long_name": SCALARS[name]}) for name, rows in self.history.items()}
        status = np.where(self.is_diverged, "diverged", "complete")
        oscillation = {
            name: ("member", np.array([getattr(loss, name, None) or np.nan for loss in losses], float))
            for name in ("amplitude", "period")
        }
        return xr.Dataset(
            {
                **named,
                "params": (("member", "checkpoint", "param"), self.params, {"long_name": "parameters θ"}),
                "status": ("member", status),
                "last_step": ("member", self.last_step, {"long_name": "updates made"}),
            },
            {
                "step": ("step", self.steps, {"long_name": "step", "units": "updates"}),
                "checkpoint": (
                    "checkpoint",
                    np.array(self.saved),
                    {"long_name": "step of a saved θ", "units": "updates"},
                ),
                "learning_rate": ("member", np.asarray(learning_rates, float), {"long_name": "learning rate"}),
                **oscillation,
            },
            attrs,
        )


def member(trained: xr.Dataset, index: int) -> tuple[xr.Dataset, xr.Dataset]:
    """History and checkpoints of one member of an ensemble, as ``run.history`` and ``run.checkpoints`` have them.

    Parameters
    ----------
    trained : xarray.Dataset
        As `train_ensemble` returns it.
    index : int
        Number of the member.

    Returns
    -------
    history, checkpoints : xarray.Dataset
        The scalars (step), up to the member's last step, and ``params`` (step, param); both with the attrs optimizer,
        learning_rate, amplitude and period.
    """
    one = trained.isel(member=index)
    attrs = {"optimizer": "gd", "learning_rate": float(one.learning_rate)}
    attrs |= {name: float(one[name]) for name in ("amplitude", "period") if np.isfinite(one[name])}
    made = slice(None, int(one.last_step))
    history = one[[name for name in SCALARS if name in one]].sel(step=made).reset_coords(drop=True)
    params = one.params.rename(checkpoint="step").reset_coords(drop=True).sel(step=made)
    layout = {"layout": trained.attrs["layout"]}
    return history.assign_attrs(attrs), xr.Dataset({"params": params}, attrs=attrs | layout)
