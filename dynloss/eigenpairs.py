"""Eigenpairs recorded while training: collected a few steps at a time, as one batched computation serves all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from dynloss.checks import check_same_run
from landscape import open_run, top_eigenpairs

EIGENPAIR_ROWS = 8
"""Eigenpairs are computed for so many steps at once."""


class EigenpairRecorder:
    """Collects states, and records their eigenpairs a few at a time; nothing where none are asked for."""

    def __init__(self, writer, objective, settings, attrs, previous: xr.Dataset | None):
        self.writer, self.objective, self.settings, self.attrs = writer, objective, settings, attrs
        self.steps: list[int] = []
        self.params: list[np.ndarray] = []
        self.uncertified: list[int] = []
        # A run's certificates are wrong with a probability of at most 1e-6 in all.
        self.failure = 1e-6 / max(1, settings.n_steps)
        self.previous = previous

    def add(self, step: int, params: torch.Tensor) -> None:
        """Take θ at `step`; a full batch is computed and recorded at once."""
        self.steps.append(step)
        self.params.append(params.cpu().numpy())
        if len(self.steps) == EIGENPAIR_ROWS:
            self.flush()

    def flush(self) -> None:
        """Compute and record what waits."""
        if not self.steps:
            return
        checkpoints = xr.Dataset({"params": (("step", "param"), np.stack(self.params))}, {"step": self.steps})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one warning for the whole run: `warn`
            eigs = top_eigenpairs(
                self.objective,
                checkpoints.assign_attrs(self.attrs),
                self.settings.eigenpairs,
                tol=self.settings.tol,
                failure=self.failure * len(self.steps),
                batch_rows=EIGENPAIR_ROWS,
                previous=self.previous,
                seed=self.settings.seed,
            )
        self.writer.append_eigenpairs(eigs)
        self.uncertified += eigs.step.values[~eigs.certified.all("mode").values].tolist()
        self.previous = eigs.isel(step=-1)
        self.steps, self.params = [], []

    def warn(self) -> None:
        """Warn once, at the end of the run, of steps without a certificate."""
        if self.uncertified:
            warnings.warn(
                f"eigenpairs of {len(self.uncertified)} steps are not certified (the first at step "
                f"{self.uncertified[0]}); see residual and certified in run.eigenpairs",
                stacklevel=3,
            )


def eigenpairs_before_resuming(record, config: dict, sets: dict, params: torch.Tensor) -> xr.Dataset | None:
    """The last row of eigenpairs before the step from which the run in `record` would resume; it must be this run."""
    if not Path(record).exists():
        return None
    with open_run(record) as run:
        if run.status in ("complete", "diverged"):  # nothing to resume, as the writer will say
            return None
        check_same_run(run, config, sets, params)
        if run.eigenpairs is None or run.state is None:
            return None
        earlier = run.eigenpairs.sel(step=slice(None, int(run.state.step) - 1))
        return earlier.isel(step=-1).load() if earlier.sizes["step"] else None
