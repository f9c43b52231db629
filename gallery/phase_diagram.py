r"""
Accuracy over amplitude and period
==================================

Where in the plane of amplitude :math:`A` and period :math:`T` do oscillating losses help, and where do they hurt? Sixty-four
points for each loss, at width 20.
"""

# %%
# Forty thousand steps each, the last 1,000 static; three seeds, and the mean of their validation accuracies. The learning
# rate of each loss is fixed. The black line encloses where
# that is better than with the static loss at the same learning rate.
import matplotlib.pyplot as plt
import xarray as xr

import dynloss
import viz

SEEDS = range(200, 203)
amplitudes = [1.5, 2, 5, 10, 20, 30, 50, 70]
periods = [100, 200, 300, 600, 1000, 2000, 3000, 5000]
losses = {
    "DCE": {"loss": "dynamical_cross_entropy", "learning_rate": 1.0},
    "DMSE1": {
        "loss": "dynamical_squared_error",
        "weighting": "sample",
        "learning_rate": 0.3,
    },
    "DMSE2": {
        "loss": "dynamical_squared_error",
        "weighting": "component",
        "learning_rate": 0.2,
    },
}
static = {
    "DCE": {"loss": "cross_entropy", "learning_rate": 1.0},
    "DMSE1": {"loss": "squared_error", "learning_rate": 0.3},
    "DMSE2": {"loss": "squared_error", "learning_rate": 0.2},
}
oscillation = {"amplitude": amplitudes, "period": periods}
everywhere = {"width": 20, "seed": SEEDS}
found = dynloss.sweep(
    "data/phase_diagram.h5",
    [one | oscillation | everywhere for one in losses.values()]
    + [one | everywhere for one in static.values()],
    n_steps=40_000,
    static_steps=1000,
    history_every=4000,
)
table = found.final_validation_accuracy.to_dataframe().reset_index()

planes = {}
for name, one in losses.items():
    of_it = table[
        (table.loss_name == one["loss"])
        & (table.weighting == one.get("weighting", ""))
    ]
    mean = of_it.pivot_table(
        index="amplitude", columns="period", values="final_validation_accuracy"
    )
    base = table[
        (table.loss_name == static[name]["loss"])
        & (table.learning_rate == one["learning_rate"])
    ]
    planes[name] = xr.DataArray(mean).to_dataset(name="accuracy")
    planes[name].accuracy.attrs["long_name"] = "validation accuracy"
    planes[name]["static_accuracy"] = base.final_validation_accuracy.mean()

with viz.style():
    figure, axes = plt.subplots(
        1, 3, figsize=(7.0, 2.5), sharex=True, sharey=True, layout="constrained"
    )
    low = min(float(plane.accuracy.min()) for plane in planes.values())
    high = max(float(plane.accuracy.max()) for plane in planes.values())
    for i, (ax, (name, plane)) in enumerate(
        zip(axes, planes.items(), strict=True)
    ):
        viz.plot_phase_diagram(plane, ax, limits=(low, high), colorbar=i == 2)
        ax.set_title(name, loc="left")
        if i:
            ax.set_ylabel("")
    viz.panel_letters(axes)
plt.show()

# %%
# In numbers
# ----------
for name, plane in planes.items():
    mean, base = plane.accuracy, float(plane.static_accuracy)
    best = mean.where(mean == mean.max(), drop=True)
    print(
        f"{name:5}: static {base:.3f}; above it in {int((mean > base).sum())} of {mean.size} points; "
        f"from {float(mean.min()):.3f} to {float(mean.max()):.3f} at "
        f"A = {float(best.amplitude[0]):g}, T = {float(best.period[0]):g}"
    )

# %%
# What a million runs would take
# ------------------------------
# The rate at which this machine trains, now, and what follows for a million such runs on a cluster: tasks of 32 runs, each
# worker on one core, a row of the results written as each task ends (:func:`dynloss.sweep`, ``python -m dynloss sweep``).
import os
import time

loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=70, period=1000)
data = dynloss.spiral(n_per_class=100, n_classes=3, seed=0)
models = [dynloss.mlp(n_inputs=2, width=20, n_classes=3, seed=0)] * 32
options = {"history_every": 4000, "n_threads": 1}
dynloss.train_ensemble(models, loss, data, n_steps=10, **options)
begun = time.process_time()
dynloss.train_ensemble(models, loss, data, n_steps=4000, **options)
rate = 32 * 4000 / (time.process_time() - begun)

n_runs, n_steps = 1_000_000, 40_000
row = os.path.getsize("data/phase_diagram.h5") / found.sizes["run"]
seconds = n_runs * n_steps / rate
print(
    f"one core trains {rate:,.0f} steps of networks of width 20 a second\n"
    f"{n_runs:,} runs of {n_steps:,} steps: {n_runs // 32:,} tasks of {32 * n_steps / rate:.0f} s, "
    f"{seconds / 3600:,.0f} core hours, {seconds / 3600 / 1000:.1f} hours on 1,000 cores\n"
    f"{row:,.0f} bytes a run here: {n_runs * row / 1e9:.1f} GB of results\n"
    f"on 1,000 cores the scheduler sees {1000 / (32 * n_steps / rate):,.0f} tasks end a second"
)
