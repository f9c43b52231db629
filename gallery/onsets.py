r"""
Sharpness at the first instability
==================================

Gradient descent on a parabola is stable while its curvature stays below :math:`2/\eta`. Does a network begin to oscillate
there too? Three dynamical losses, five learning rates each, and one detector for all: the sharpness at the first onset
against the learning rate.
"""

# %%
# Each run is recorded until its first onset, for five periods at most; :func:`landscape.find_onsets` sees nothing but
# the norms and cosines of the updates, and :func:`landscape.onset_curvature` measures the Hessian of the weighted loss at the
# midpoint of the two iterates. Width 50, seed 0; the periods are longer where the learning rate is small. The smallest
# rates of each loss are so small that no onset is expected.
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import landscape
import viz

losses = {
    "cross entropy": dynloss.DynamicalCrossEntropy,
    "squared error, by sample": partial(
        dynloss.DynamicalSquaredError, weighting="sample"
    ),
    "squared error, by component": partial(
        dynloss.DynamicalSquaredError, weighting="component"
    ),
}
amplitudes = dict(zip(losses, (70, 20, 20), strict=True))
periods = {  # by learning rate
    "cross entropy": {
        0.02: 10_000,
        0.1: 10_000,
        0.25: 10_000,
        0.5: 10_000,
        1.0: 5000,
        2.0: 2500,
        4.0: 1250,
    },
    "squared error, by sample": {
        0.03: 5000,
        0.05: 10_000,
        0.1: 5000,
        0.2: 5000,
        0.3: 5000,
        0.5: 5000,
    },
    "squared error, by component": {
        0.01: 5000,
        0.02: 10_000,
        0.05: 5000,
        0.1: 5000,
        0.2: 5000,
        0.3: 5000,
    },
}


def first_onset(loss, learning_rate, seed=0):
    """What is measured at the first onset; nothing where there is none."""
    for n_periods in (1, 2, 5):
        with tempfile.TemporaryDirectory() as folder:
            path = dynloss.train(
                dynloss.mlp(2, width=50, n_classes=3, seed=seed),
                loss,
                dynloss.spiral(100, 3, seed=seed),
                record=Path(folder, "run.h5"),
                learning_rate=learning_rate,
                n_steps=n_periods * loss.period,
                checkpoint_every=499,
            )
            with landscape.open_run(path) as run:
                onsets = landscape.find_onsets(run.history).isel(onset=slice(1))
                if onsets.sizes["onset"] or n_periods == 5:
                    curved = landscape.onset_curvature(
                        dynloss.objective(run), run.checkpoints, onsets
                    )
                    return curved.assign_coords(
                        learning_rate=(
                            "onset",
                            [learning_rate] * curved.sizes["onset"],
                        )
                    )


found = []
for name, kind in losses.items():
    for rate, period in periods[name].items():
        curved = first_onset(kind(3, amplitudes[name], period), rate)
        found.append(
            curved.assign_coords(loss=("onset", [name] * curved.sizes["onset"]))
        )
found = xr.concat(found, "onset")

with viz.style():
    figure, ax = plt.subplots(figsize=(3.4, 2.8), layout="constrained")
    viz.plot_onset_sharpness(found, ax, by="loss")
plt.show()

# %%
# The straight line
# -----------------
# Theory says :math:`\lambda_1 = 2\,\eta^{-1}`. Here are slope and prefactor of the straight line through the logarithms, with
# their standard errors; then the range of the sharpness over the threshold, and of the overlap of the motion with
# :math:`v_1`.
for name in losses:
    curved = found.isel(onset=found.loss.values == name)
    x, y = np.log(curved.learning_rate), np.log(curved.eigenvalue)
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    error = np.sqrt(np.diag(covariance))
    ratio, overlap = curved.eigenvalue / curved.threshold, curved.overlap
    without = sorted(set(periods[name]) - set(curved.learning_rate.values))
    print(
        f"{name}: slope {slope:.3f} ± {error[0]:.3f}, prefactor {np.exp(intercept):.2f} ± "
        f"{np.exp(intercept) * error[1]:.2f}\n"
        f"    λ_1 over the threshold {ratio.min():.3f} … {ratio.max():.3f}, "
        f"overlap {overlap.min():.3f} … {overlap.max():.3f}\n"
        f"    no onset within five periods at η = {', '.join(map(str, without)) or '–'}"
    )

# %%
# The sharpness at the midpoint stays a few per cent below the threshold: the detector names the first of 20 reversals, and
# while the landscape narrows, the motion begins to reverse a little before the fixed point is unstable. The prefactor
# depends on that convention, the slope does not.
