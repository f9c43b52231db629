r"""
The valley, and the states in it
================================

Sections of the loss along the two sharpest directions at five moments of one cascade, each with the 20 states around
it. While stable, the states stay where they are; then they jump between two places on opposite walls, then four, then
many. All panels share their axes (distances in parameter space) and their levels.
"""

# %%
# Each section is centred on the state of its step, along the unit eigenvectors :math:`v_1`, :math:`v_2` of that step's
# Hessian, and shows the loss under that step's class weights.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
moments = (8650, 8850, 9050, 9180, 9350)

planes, paths = [], []
for step in moments:
    checkpoint, eigs = (
        run.checkpoints.sel(step=step),
        run.eigenpairs.sel(step=step),
    )
    plane = landscape.plane_slice(
        objective,
        checkpoint,
        eigs.isel(mode=[0, 1]),
        half_width=0.6,
        n_points=41,
        terms=True,
    )
    around = run.checkpoints.sel(step=slice(step - 10, step + 9))
    planes.append(plane)
    paths.append(landscape.project(objective, around, plane))

lowest = min(float(plane.loss.min()) for plane in planes)
levels = np.geomspace(lowest, lowest * 16, 25)
with viz.style():
    figure, axes = plt.subplots(
        1, 5, figsize=(7.0, 1.75), sharex=True, sharey=True, layout="compressed"
    )
    for i, (ax, plane, path) in enumerate(zip(axes, planes, paths, strict=True)):
        viz.plot_plane_slice(
            plane, ax, levels=levels, scale="log", lines=False, colorbar=i == 4
        )
        viz.plot_path(path, ax, size=8)
        if i:
            ax.set_ylabel("")
    viz.panel_letters(axes)
plt.show()

# %%
# How much of the motion lies in the plane
# ----------------------------------------
# A projection hides what is perpendicular to it, so its size is part of the result: the extent of the 20 states along
# :math:`v_1`, along :math:`v_2`, and their largest distance from the plane; and how far the plane's loss below a state
# is from the state's own.
print("  step   along v1  along v2  off plane   |plane's loss − own|")
for step, path in zip(moments, paths, strict=True):
    extent = [float(np.ptp(path[name].values)) for name in ("alpha", "beta")]
    off = float(path.off_plane.max())
    error = float(abs(path.plane_loss - path.loss).max())
    print(
        f"{step:6d} {extent[0]:10.4f} {extent[1]:9.4f} {off:10.4f} {error:15.4f}"
    )

# %%
# The same section at other phases
# --------------------------------
# The loss is linear in the class weights, so that its class terms, computed once, give the section at every other phase
# of the oscillation: exactly, and without the network.
loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=70, period=5000)
phases = (0.02, 0.25, 0.5, 0.75, 0.98)
with viz.style():
    figure, axes = plt.subplots(
        1, 5, figsize=(7.0, 1.75), sharex=True, sharey=True, layout="compressed"
    )
    turned = [
        landscape.reweight(
            planes[0], loss.class_weights(int(5000 + 5000 * phase))
        )
        for phase in phases
    ]
    lowest = min(float(plane.loss.min()) for plane in turned)
    highest = max(float(plane.loss.max()) for plane in turned)
    for i, (ax, plane, phase) in enumerate(
        zip(axes, turned, phases, strict=True)
    ):
        levels = np.geomspace(lowest, highest, 25)
        viz.plot_plane_slice(
            plane,
            ax,
            levels=levels,
            scale="log",
            lines=False,
            colorbar=i == 4,
            title=False,
        )
        ax.set_title(f"phase {phase}")
        if i:
            ax.set_ylabel("")
    viz.panel_letters(axes)
plt.show()
