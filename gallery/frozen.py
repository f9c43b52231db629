r"""
The frozen map
==============

Stop the oscillation: hold the class weights where they stand at one phase, and let gradient descent go on with that
loss. What it settles on is the attractor of the map :math:`\theta \to \theta - \eta \nabla F(\theta, t)` with *t*
frozen. Phase by phase this is a bifurcation diagram in the strict sense; the run itself passes through it at a finite
speed.
"""

# %%
# :func:`landscape.attractor_diagram` starts from one recorded state, here that in the middle of the second period, when
# its class is emphasised most. It iterates the maps of all later phases at once, drops 200 iterates and keeps 64. The
# sharpness is measured on the attractor itself, at the midpoint of its last two iterates. ReLU has kinks, on which even
# a stable map keeps jittering by a little: orbits whose updates vary by less than 0.02 count as rest.
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
onsets = landscape.find_onsets(run.history)


def diagram(state, every, n_transient=200):
    """The attractors of the second half of period 1, from the state at one step."""
    return landscape.attractor_diagram(
        objective,
        run.checkpoints.sel(step=state),
        steps=np.arange(7500, 10_000, every),
        eigs=run.eigenpairs,
        n_transient=n_transient,
        resolution=0.02,
    )


frozen = diagram(7500, every=10)

with viz.style():
    figure, axes = plt.subplots(
        2, 1, figsize=(6.9, 4.6), sharex=True, layout="constrained"
    )
    viz.plot_attractor_diagram(frozen, axes[0], against="phase")
    viz.plot_attractor_diagram(
        frozen, axes[1], variable="eigenvalue", against="phase", legend=False
    )
    axes[1].legend(handles=axes[1].lines[-1:], loc="lower right")
    viz.panel_letters(axes)
plt.show()

# %%
# Where the branch splits
# -----------------------
# One branch becomes two where the sharpness on the attractor comes up to the stability threshold :math:`2/\eta`, then
# four, as in the run itself.
phase, ratio = frozen.phase.values, (frozen.eigenvalue / frozen.threshold).values
for value in (1, 2, 4, 8, 0):
    at = frozen.orbit_period.values == value
    name = f"period {value}" if value else "no period of up to 32 updates"
    where = f", from phase {phase[at].min():.3f} on" if at.any() else ""
    print(f"{name:<29} at {at.sum():3d} of {len(at)} phases{where}")
live = onsets.onset_phase.values[onsets.onset_step.values >= 5000]
print(f"live onset in this period: phase {live[0]:.3f}")

# %%
# The place of the split is not a property of the phase alone. The run goes on descending into a sharper valley, and so
# does the frozen map along its flat directions, long after the oscillation has settled: a later state, or a longer
# transient, moves the split to an earlier phase. The sharpness there hardly changes.
for state, n_transient in ((7500, 200), (7500, 1000), (8250, 200), (8700, 200)):
    other = diagram(state, 50, n_transient)
    split = int(np.argmax(other.orbit_period.values == 2))
    print(
        f"state of step {state}, {n_transient:4d} updates dropped: two branches from phase "
        f"{float(other.phase[split]):.3f} on, λ_1 there "
        f"{float(other.eigenvalue[split] / other.threshold[split]):.3f} of the threshold"
    )

# %%
# Do neighbouring trajectories part?
# ----------------------------------
# :func:`landscape.lyapunov_exponents` follows tangent vectors along the recorded run, in which every step was saved
# around the cascade: their growth per step, here over the last 64 steps. In 603 dimensions most directions are neutral,
# so the largest exponents are close to zero until the motion becomes irregular.
zoom = slice(8500, 9499)
growth = landscape.lyapunov_exponents(
    objective, run.checkpoints.sel(step=zoom), k=3, window=64
)
cascade = landscape.bifurcation_diagram(run.history.loss, window=64)

with viz.style():
    figure, axes = plt.subplots(
        2, 1, figsize=(6.9, 3.8), sharex=True, layout="constrained"
    )
    viz.plot_bifurcation_diagram(cascade.sel(step=zoom), axes[0], onsets=onsets)
    viz.plot_lyapunov_exponents(growth, axes[1], onsets=onsets)
    viz.panel_letters(axes)
plt.show()

# %%
# In numbers
# ----------
largest = growth.exponent.isel(mode=0)
orbit = cascade.orbit_period.sel(step=growth.step)
for value in (1, 2, 4, 8, 0):
    at = largest.values[(orbit.values == value) & np.isfinite(largest.values)]
    name = f"period {value}" if value else "no period of up to 32 steps"
    if len(at):
        print(
            f"{name:<28} largest exponent {np.median(at):+.4f} per step (median of {len(at)} steps)"
        )
whole = growth.finite_time_exponent.values
print("over the whole window: " + ", ".join(f"{value:+.4f}" for value in whole))

# %%
# The flip of the two-cycle
# -------------------------
# A two-cycle turns into a four-cycle where its Floquet multiplier, the factor by which two steps stretch a small
# displacement, passes −1. :func:`landscape.onset_curvature` measures it on the recorded states.
first = int(growth.step.values[np.argmax(orbit.values == 4)])
steps = np.arange(int(onsets.onset_step[-1]) + 2, first, 20)
cycle = landscape.onset_curvature(
    objective,
    run.checkpoints,
    xr.Dataset({"onset_step": ("onset", steps)}),
    period=2,
)
multiplier = cycle.floquet_multiplier.values
for i in range(0, len(steps), 4):
    print(f"step {steps[i]}: multiplier {multiplier[i]:+.2f}")
flip = steps[np.argmax(multiplier < -1)]
print(
    f"below −1 from step {flip} on; period 4 is recognised from step {first} on"
)
