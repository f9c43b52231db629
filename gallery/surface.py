r"""
The landscape as a surface
==========================

The loss over the plane of the two sharpest directions, as a surface to turn by hand, with a slider over the phase of
the oscillation. The class weights tilt and squeeze the valley; the states that bounce in it stay where they were.
"""

# %%
# The plane is centred on the state of step 9,050, soon after the onset, along the two leading eigenvectors of its
# Hessian. The loss is linear in the class weights, so its class terms, evaluated once, give the surface at every
# phase: :func:`landscape.reweight` needs no network. Heights and colours are logarithmic.
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import landscape
import viz

center, period = 9050, 5000
with landscape.open_run(dynloss.example_run("cascade")) as run:
    objective = dynloss.objective(run)
    eigs = run.eigenpairs.sel(step=center).load()
    plane = landscape.plane_slice(
        objective,
        run.checkpoints.sel(step=center),
        eigs.isel(mode=[0, 1]),
        half_width=0.7,
        n_points=29,
        terms=True,
    )
    around = run.checkpoints.sel(step=slice(center - 10, center + 9))
    path = landscape.project(objective, around, plane)
    every = run.checkpoints.sel(step=slice(8490, 9490))
    long_path = landscape.project(objective, every, plane)

loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=70, period=period)
phase = np.round(np.linspace(0, 1, 21), 2)
steps = period + np.round(phase * (period - 1)).astype(int)
weights = xr.DataArray(
    loss.class_weights(steps), dims=("phase", "class"), coords={"phase": phase}
)
planes = landscape.reweight(plane, weights)

# %%
# For print
# ---------
# Three of the phases, on common axes and colours.
limits = (float(planes.loss.min()), float(planes.loss.max()))
shown = (0.1, 0.5, 0.8)
with viz.style():
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(7.0, 2.5),
        subplot_kw={"projection": "3d"},
        layout="constrained",
    )
    for ax, at in zip(axes, shown, strict=True):
        one = planes.sel(phase=at, method="nearest")
        viz.plot_surface(
            one,
            ax,
            path=path,
            scale="log",
            limits=limits,
            colorbar=ax is axes[-1],
            title=False,
        )
        ax.set(title=f"phase {at}", zlabel="")
    viz.panel_letters(axes)
plt.show()

# %%
# To turn by hand
# ---------------
# Drag to turn, scroll to come closer; the slider, or the button, runs through one period.
figure = viz.interactive_surface(planes, path, scale="log")
figure

# %%
# Through the cascade
# -------------------
# The same plane under the class weights of steps 8,500 to 9,490, with the states of the last 20 steps: first all in
# one place, then in two, then in four and more. These states are projected: far from step 9,050 they lie off the plane.
steps = np.arange(8500, 9491, 55)
weights = xr.DataArray(
    loss.class_weights(steps), dims=("step", "class"), coords={"step": steps}
)
through = landscape.reweight(plane.drop_vars("step"), weights)
figure = viz.interactive_surface(through, long_path, scale="log", tail=20)
figure

# %%
# What one sees, in numbers
# -------------------------
# The states are those of the 20 steps around the centre, under whose own weights (phase 0.81) they bounce. The lowest
# point of the plane moves away from them towards both ends of the period; that is the landscape's motion alone.
print(f"centre: step {center}, phase {center % period / period:.2f}")
for i in range(2):
    print(
        f"v{i + 1}: eigenvalue {float(eigs.eigenvalue[i]):.3f}"
        f" (threshold {float(eigs.threshold):.3f}),"
        f" residual {float(eigs.residual[i]):.1e}"
    )
off = float(path.off_plane.max())
print(f"states {int(path.step[0])} … {int(path.step[-1])}: off plane ≤ {off:.3f}")
print("phase  smallest loss  at α      β")
for at in (0, 0.1, 0.25, 0.5, 0.8, 0.9, 1):
    one = planes.loss.sel(phase=at, method="nearest")
    low = one.isel(one.argmin(["alpha", "beta"]))
    print(
        f"{at:5.2f} {float(low):14.4f} {float(low.alpha):6.2f} {float(low.beta):6.2f}"
    )
print("step   distance from the plane   loss on it   own loss")
for step in steps[::3]:
    one = long_path.sel(step=step)
    print(
        f"{step} {float(one.off_plane):24.2f} {float(one.plane_loss):12.3f} {float(one.loss):10.3f}"
    )
