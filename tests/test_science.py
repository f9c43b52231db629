"""What a run with a dynamical loss shows, for seeds that nothing was chosen by; trains for ten seconds a seed.

Cross entropy with A = 70 and T = 5000 on the spiral, width 100, η = 1; in the second of its periods.
"""

import numpy as np
import pytest
import xarray as xr

import dynloss
from landscape import (
    attractor_diagram,
    find_onsets,
    gradient_decomposition,
    onset_curvature,
    open_run,
    top_eigenpairs,
    valley_width,
)

PERIOD, N_STEPS, RATE = 5000, 10_000, 1.0
DENSE = 9250, 9500
"""Phase 0.85 … 0.90, where every state is saved; elsewhere every 15th."""


# One test a seed, so that two test processes do not both train it.
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_cascade_has_its_onset_its_gradient_and_its_valley(seed, tmp_path):
    path = dynloss.train(
        dynloss.mlp(2, width=100, n_classes=3, seed=seed),
        dynloss.DynamicalCrossEntropy(3, amplitude=70, period=PERIOD),
        dynloss.spiral(100, 3, seed=seed),
        record=tmp_path / "run.h5",
        learning_rate=RATE,
        n_steps=N_STEPS,
        checkpoint_every=15,
        windows=[DENSE],
    )
    with open_run(path) as run:
        objective, checkpoints = dynloss.objective(run), run.checkpoints
        the_motion_doubles_its_period_where_the_sharpness_reaches_the_threshold(objective, checkpoints, run.history)
        the_gradient_leaves_the_bulk_for_the_top_eigenvectors(objective, checkpoints)
        the_valley_widens_in_the_first_half_of_the_period(objective, checkpoints)
        the_frozen_map_has_one_branch_that_splits_where_the_sharpness_reaches_the_threshold(objective, checkpoints)


def the_motion_doubles_its_period_where_the_sharpness_reaches_the_threshold(objective, checkpoints, history):
    onsets = find_onsets(history)
    first = onsets.isel(onset=onsets.onset_step.values // PERIOD == 1).isel(onset=[0])
    assert 0.72 <= first.onset_phase <= 0.88
    curved = onset_curvature(objective, checkpoints, first)
    np.testing.assert_allclose(curved.threshold, 2 / RATE)
    assert 0.86 <= curved.eigenvalue / curved.threshold <= 1.02
    assert curved.eigenvalue_flatter < curved.eigenvalue < curved.eigenvalue_sharper
    assert curved.overlap > 0.95


def the_gradient_leaves_the_bulk_for_the_top_eigenvectors(objective, checkpoints):
    smooth = medians(objective, checkpoints.sel(step=slice(7750, 8250)))  # phase 0.55 … 0.65
    oscillating = medians(objective, checkpoints.sel(step=slice(*DENSE)).isel(step=slice(0, 250, 5)))
    assert smooth.dominant_fraction < 0.35
    assert oscillating.dominant_fraction > 0.9
    assert oscillating.bulk_norm >= 8 * smooth.bulk_norm


def medians(objective, checkpoints: xr.Dataset) -> xr.Dataset:
    """Median gradient parts for k = 2, over at least 25 steps of both parities."""
    odd = checkpoints.step.values % 2 == 1
    assert len(odd) >= 25
    assert min(odd.sum(), (~odd).sum()) >= 12
    eigs = top_eigenpairs(objective, checkpoints, k=2, tol=1e-3)
    return gradient_decomposition(objective, checkpoints, eigs).median("step")


def the_valley_widens_in_the_first_half_of_the_period(objective, checkpoints):
    steps = checkpoints.step.values
    near = [steps[np.abs(steps - (1 + phase) * PERIOD).argmin()] for phase in (0.02, 0.5)]
    eigs = top_eigenpairs(objective, checkpoints.sel(step=near), k=1)
    width = valley_width(objective, checkpoints, eigs, rise=0.1).width.squeeze(["mode", "rise"])
    assert width[1] > 1.5 * width[0]


def the_frozen_map_has_one_branch_that_splits_where_the_sharpness_reaches_the_threshold(objective, checkpoints):
    phases = np.arange(0.5, 0.95, 0.01)
    steps = PERIOD + np.round(PERIOD * phases).astype(int)
    frozen = attractor_diagram(objective, checkpoints.sel(step=8250), steps=steps, resolution=0.02)
    split = np.argmax(frozen.orbit_period.values == 2)
    assert (frozen.orbit_period[:split] == 1).all()
    assert 0.70 <= frozen.phase[split] <= 0.88
    assert 0.85 <= frozen.eigenvalue[split] / frozen.threshold[split] <= 1.02
