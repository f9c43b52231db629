"""What runs with dynamical losses show, for seeds that nothing was chosen by; trains for ten seconds a test.

Cross entropy with A = 70 and T = 5000 on the spiral, width 100, η = 1, in the second and third of its periods; and the
first onset of three losses, width 50, at several learning rates.
"""

import numpy as np
import pytest
import xarray as xr

import dynloss
from landscape import (
    attractor_diagram,
    bifurcation_diagram,
    find_onsets,
    gradient_decomposition,
    onset_curvature,
    open_run,
    top_eigenpairs,
    valley_width,
)

PERIOD, N_STEPS, RATE = 5000, 15_000, 1.0
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
        the_orbit_has_period_2_then_4(run.history)


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


def the_orbit_has_period_2_then_4(history):
    orbit = bifurcation_diagram(history.loss).orbit_period.sel(step=slice(2 * PERIOD + PERIOD // 2, None)).values
    two, four = np.flatnonzero(orbit == 2), np.flatnonzero(orbit == 4)
    assert len(two) > 100
    assert len(four) > 20
    assert (orbit[: two[0]] <= 1).mean() > 0.95
    assert two[0] < four[0]


SQUARED = dynloss.DynamicalSquaredError
LOSSES = {
    "DCE": (dynloss.DynamicalCrossEntropy, {"amplitude": 70}),
    "DMSE1": (SQUARED, {"amplitude": 20, "weighting": "sample"}),
    "DMSE2": (SQUARED, {"amplitude": 20, "weighting": "component"}),
}
PERIODS = {
    "DCE": {0.5: 10_000, 1: 5000, 2: 2500, 4: 1250},
    "DMSE1": dict.fromkeys((0.1, 0.2, 0.3), 5000),
    "DMSE2": dict.fromkeys((0.05, 0.1, 0.2, 0.3), 5000),
}
STABLE = {"DCE": 0.1, "DMSE1": 0.03, "DMSE2": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_sharpness_at_the_first_onset_is_the_threshold_of_the_learning_rate(name, tmp_path):
    (kind, options), periods, stable = LOSSES[name], PERIODS[name], STABLE[name]
    rates, curved = [], []
    for seed in (4, 5):
        for rate, period in (periods | {stable: 5000}).items():
            path = dynloss.train(
                dynloss.mlp(2, width=50, n_classes=3, seed=seed),
                kind(3, period=period, **options),
                dynloss.spiral(100, 3, seed=seed),
                record=tmp_path / f"{seed}-{rate}.h5",
                learning_rate=rate,
                n_steps=3 * period,
                checkpoint_every=499,
            )
            with open_run(path) as run:
                onsets = find_onsets(run.history).isel(onset=slice(1))
                if rate == stable:
                    assert not onsets.sizes["onset"]
                elif onsets.sizes["onset"]:
                    rates.append(rate)
                    curved.append(onset_curvature(dynloss.objective(run), run.checkpoints, onsets))
    assert len(rates) >= 2 * len(periods) - 1
    curved = xr.concat(curved, "onset")
    assert (curved.overlap > 0.95).all()
    slope = np.polyfit(np.log(rates), np.log(curved.eigenvalue), 1)[0]
    assert -1.04 <= slope <= -0.96
    assert 1.75 <= np.exp(np.mean(np.log(curved.eigenvalue * rates))) <= 2.05
