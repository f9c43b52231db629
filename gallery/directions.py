r"""
Four planes through one run
===========================

What a section shows depends on the directions that span it. Here the same period of a run is seen on four planes: along
the two sharpest directions, along two random ones (scaled filter by filter as the network is), along the principal
axes of the trajectory, and through three of its states. The dots are the states of the period, from the ring to the
square, projected; the loss is that under the class weights of step 8700.
"""

# %%
# :func:`landscape.plane_slice` takes any of them. Its axes are distances along unit vectors in all four, so that they
# can be compared; ``length`` keeps how long the directions were, which for the random ones is the length of the step
# that changes every filter by its own norm.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
step = 8700
center, eigs = run.checkpoints.sel(step=step), run.eigenpairs.sel(step=step)
trajectory = run.checkpoints.sel(step=slice(5000, 10_000))
period = trajectory.isel(step=trajectory.step.values % 60 == 0)

random = landscape.random_directions(center, seed=0)
principal = landscape.pca_directions(period)
three = landscape.interpolation_directions(
    run.checkpoints.sel(step=[5010, 7500, 9990])
)
spans = {
    "sharpest": (landscape.eigenvector_directions(eigs), 1.0),
    "random": (random, tuple(0.5 * random.length.values)),
    "principal": (principal, 12.0),
    "three states": (three, 12.0),
}
planes = {
    name: landscape.plane_slice(
        objective,
        center,
        directions,
        half_width=half_width,
        n_points=61,
    )
    for name, (directions, half_width) in spans.items()
}
paths = {
    name: landscape.project(objective, period, plane)
    for name, plane in planes.items()
}

lowest = min(float(plane.loss.min()) for plane in planes.values())
levels = np.geomspace(lowest, lowest * 100, 25)
with viz.style():
    figure, axes = plt.subplots(2, 2, figsize=(5.6, 5.0), layout="constrained")
    for i, (ax, name) in enumerate(zip(axes.flat, planes, strict=True)):
        viz.plot_plane_slice(
            planes[name],
            ax,
            levels=levels,
            scale="log",
            lines=False,
            colorbar=i % 2 == 1,
            title=False,
        )
        viz.plot_path(paths[name], ax, size=6, line=False)
        ax.set_title(name)
    viz.panel_letters(axes.flat)
plt.show()

# %%
# What the planes hold of the motion
# ----------------------------------
# A projection hides what is perpendicular to it. Of how far the states lie from their mean, this much is within each plane,
# and so far off is the plane's loss from their own.
states = period.params.values
spread = np.linalg.norm(states - states.mean(0))
print("plane          within   largest distance off   |loss − own|, median")
for name, plane in planes.items():
    inside = (states - states.mean(0)) @ plane.direction.values.T
    share = np.linalg.norm(inside) ** 2 / spread**2
    error = abs(paths[name].plane_loss - paths[name].loss)
    print(
        f"{name:14s} {share:6.1%} {float(paths[name].off_plane.max()):14.2f} "
        f"{float(np.nanmedian(error)):22.3f}"
    )
print(
    f"explained by the principal axes: {principal.explained_variance.values.round(3)}"
)

# %%
# One line, every phase
# ---------------------
# Along :math:`v_1` and along a random direction through the same state, while the class weights go through the second
# half of the period. The class losses are evaluated once; each phase is their weighted sum. Only along the sharp
# direction is there a valley that narrows.
phases = np.linspace(0.5, 1, 6)
steps = (5000 + 5000 * phases).astype(int) - 1
lines = {
    "along $v_1$": landscape.line_slice(
        objective, center, eigs.isel(mode=0), n_points=201, steps=steps
    ),
    "along a random direction": landscape.line_slice(
        objective, center, random.isel(axis=0), n_points=201, steps=steps
    ),
}
with viz.style():
    figure, axes = plt.subplots(
        1, 2, figsize=(7.0, 2.4), sharey=True, layout="constrained"
    )
    for ax, (name, line) in zip(axes, lines.items(), strict=True):
        for i, phase in enumerate(phases):
            viz.plot_line_slice(
                line.isel(step=i),
                ax,
                log=True,
                color=plt.cm.viridis(0.9 * i / (len(phases) - 1)),
                label=f"{phase:.1f}",
            )
        ax.set_title(name)
    axes[1].set_ylabel("")
    axes[0].legend(title="Phase", ncols=3)
    viz.panel_letters(axes)
plt.show()
