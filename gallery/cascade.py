r"""
Zoom on one bifurcation cascade
===============================

The end of the second period, step by step. First the loss repeats every step but for a slow drift; then it alternates
between two values, then four, then eight, until no short period is left. It is the period-doubling route of iterated
maps, driven here by the class weights.
"""

# %%
# The recorded signal is enough: :func:`landscape.bifurcation_diagram` finds the period of the orbit in a sliding window
# of 64 steps, :func:`landscape.find_onsets` the step at which the motion begins to reverse.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
zoom = slice(8500, 9499)
history = run.history.load()
onsets = landscape.find_onsets(history)
live = landscape.bifurcation_diagram(history.loss).sel(step=zoom)

with viz.style():
    figure, axes = plt.subplots(
        3, 1, figsize=(6.9, 5.4), sharex=True, layout="constrained"
    )
    viz.plot_history(
        history.sel(step=zoom),
        axes[0],
        variable="loss",
        onsets=onsets,
        linewidth=0.4,
    )
    viz.plot_bifurcation_diagram(live, axes[1], onsets=onsets)
    viz.plot_eigenvalues(run.eigenpairs.sel(step=zoom), axes[2], onsets=onsets)
    for ax in axes[:-1]:
        ax.set_xlabel("")
    viz.panel_letters(axes, start="h")
plt.show()

# %%
# The order of the periods
# ------------------------
# The first step at which each period of the orbit is recognised (the window ends there; a window that still holds
# steps of the regime before is recognised late).
period = live.orbit_period
for value in (1, 2, 4, 8, 0):
    at = period.step.values[period.values == value]
    name = f"period {value}" if value else "no period of up to 32 steps"
    print(
        f"{name:<28} {len(at):4d} steps, the first at step {at[0]}"
        if len(at)
        else f"{name:<28} none"
    )

# %%
# Further eigenvalues at the threshold
# ------------------------------------
# Does each doubling come with another eigenvalue at the threshold? In a two-cycle every eigenvalue alternates between
# the two states, so look at the larger of two successive values.
pairs = run.eigenpairs.sel(step=zoom)
for name, first in (("period 2", 2), ("period 4", 4)):
    begins = int(period.step.values[np.argmax(period.values == first)])
    two = pairs.eigenvalue.sel(step=[begins, begins + 1]) / pairs.threshold.sel(
        step=[begins, begins + 1]
    )
    high, low = two.max("step").values, two.min("step").values
    text = ", ".join(f"{a:.2f} … {b:.2f}" for a, b in zip(low, high, strict=True))
    print(f"{name} at step {begins}: λ_1, λ_2, λ_3 over the threshold: {text}")

# %%
# Other seeds
# -----------
# The third period of 15,000 steps, for four other seeds of data and initial parameters: in which order do the periods of
# the orbit come? Each run is recorded anew; nothing was chosen by these seeds.
import tempfile
from pathlib import Path

loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=70, period=5000)
with (
    tempfile.TemporaryDirectory() as folder,
    viz.style(),
):
    figure, axes = plt.subplots(
        4, 1, figsize=(6.9, 6.4), sharex=True, layout="constrained"
    )
    for seed, ax in zip((1, 2, 3, 4), axes, strict=True):
        path = dynloss.train(
            dynloss.mlp(n_inputs=2, width=100, n_classes=3, seed=seed),
            loss,
            dynloss.spiral(n_per_class=100, n_classes=3, seed=seed),
            record=Path(folder, f"seed{seed}.h5"),
            learning_rate=1.0,
            n_steps=15_000,
            checkpoint_every=5000,
        )
        with landscape.open_run(path) as other:
            signal, starts = (
                other.history.loss.load(),
                landscape.find_onsets(other.history),
            )
        period = landscape.bifurcation_diagram(signal).sel(
            step=slice(13_400, 14_999)
        )
        viz.plot_bifurcation_diagram(
            period, ax, onsets=starts, scale="symlog", legend=seed == 1
        )
        ax.set_title(f"seed {seed}", loc="left")
        first = {
            value: int(
                period.step[np.argmax(period.orbit_period.values == value)]
            )
            for value in (2, 4, 8, 0)
            if (period.orbit_period == value).any()
        }
        print(
            f"seed {seed}: onset at step {starts.onset_step.values[-1]}; "
            + ", ".join(
                f"{f'period {value}' if value else 'no period'} from step {step}"
                for value, step in first.items()
            )
        )
    for ax in axes[:-1]:
        ax.set_xlabel("")
plt.show()
