r"""
Sharpness at the first instability
==================================

Gradient descent on a parabola is stable while its curvature stays below :math:`2/\eta`. Does a network begin to oscillate
there too? Three dynamical losses, five learning rates each, and one detector for all: the sharpness at the first onset
against the learning rate.
"""

# %%
# The members of each loss are trained at once, for 50,000 steps: :func:`dynloss.train_ensemble`.
# :func:`landscape.find_onsets` sees nothing but the norms and cosines of the updates, and
# :func:`landscape.onset_curvature` measures the Hessian of the weighted loss at the midpoint of the two iterates. Width 50,
# seed 0; the period of the oscillation is longer where the learning rate is small. The smallest rates of each loss are so
# small that no onset is expected.
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import landscape
import viz

cross_entropy = dynloss.DynamicalCrossEntropy
squared_error = dynloss.DynamicalSquaredError
rates = {
    "cross entropy": (0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    "squared error, by sample": (0.03, 0.05, 0.1, 0.2, 0.3, 0.5),
    "squared error, by component": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3),
}
losses = {
    "cross entropy": [
        cross_entropy(3, 70, period)
        for period in (10_000, 10_000, 10_000, 10_000, 5000, 2500, 1250)
    ],
    "squared error, by sample": [
        squared_error(3, 20, 10_000 if rate == 0.05 else 5000, weighting="sample")
        for rate in rates["squared error, by sample"]
    ],
    "squared error, by component": [
        squared_error(
            3, 20, 10_000 if rate == 0.02 else 5000, weighting="component"
        )
        for rate in rates["squared error, by component"]
    ],
}
data = dynloss.spiral(n_per_class=100, n_classes=3, seed=0)
model = dynloss.mlp(n_inputs=2, width=50, n_classes=3, seed=0)

found = []
for name in losses:
    trained = dynloss.train_ensemble(
        model,
        losses[name],
        data,
        learning_rate=rates[name],
        n_steps=50_000,
        scalars=["update_norm", "update_cosine"],
        checkpoint_every=499,
    )
    for i, loss in enumerate(losses[name]):
        history, checkpoints = dynloss.member(trained, i)
        first = landscape.find_onsets(history).isel(onset=slice(1))
        objective = dynloss.fastest_objective(
            model, loss, data.inputs, data.targets
        )
        curved = landscape.onset_curvature(objective, checkpoints, first)
        found.append(
            curved.assign_coords(
                loss=("onset", [name] * curved.sizes["onset"]),
                learning_rate=("onset", [rates[name][i]] * curved.sizes["onset"]),
            )
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
    without = sorted(set(rates[name]) - set(curved.learning_rate.values))
    print(
        f"{name}: slope {slope:.3f} ± {error[0]:.3f}, prefactor {np.exp(intercept):.2f} ± "
        f"{np.exp(intercept) * error[1]:.2f}\n"
        f"    λ_1 over the threshold {ratio.min():.3f} … {ratio.max():.3f}, "
        f"overlap {overlap.min():.3f} … {overlap.max():.3f}\n"
        f"    no onset in 50,000 steps at η = {', '.join(map(str, without)) or '–'}"
    )

# %%
# The sharpness at the midpoint stays a few per cent below the threshold: the detector names the first of 20 reversals, and
# while the landscape narrows, the motion begins to reverse a little before the fixed point is unstable. The prefactor
# depends on that convention, the slope does not.
