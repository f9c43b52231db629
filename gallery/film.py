r"""
The valley narrows until the states bounce: a film
==================================================

The loss along the sharpest direction, and the states of the last 20 steps in it, through the second half of a period.
The walls close in, and once the curvature has passed the stability threshold the states jump from wall to wall.
"""

# %%
# Every 45 steps (an odd number, so that both states of a two-cycle are seen), the loss along the leading eigenvector
# of that step's Hessian, under that step's class weights. The line goes through the mean of the states of the last 20
# steps. A state stands at its own loss, not at that of the line: what lies between them is off the line.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
history = run.history.load()
onsets = landscape.find_onsets(history)
first, last = 7500, 9480
steps = np.arange(first, last + 1, 45)
eigs = run.eigenpairs.sel(step=slice(first, last)).isel(mode=[0]).load()


def section(step, before):
    """The loss along v1, with the states of the last 20 steps beside it."""
    states = run.checkpoints.sel(step=slice(step - 19, step)).load()
    center = states.mean("step", keep_attrs=True).assign_coords(step=step)
    v1 = eigs.eigenvector.sel(step=step, mode=0)
    if before is not None and float(v1 @ before) < 0:
        v1 = -v1
    line = landscape.line_slice(
        objective, center, v1, half_width=0.9, n_points=91
    )
    line.alpha.attrs["long_name"] = "Distance along v1"
    moved = states.params - center.params
    alpha = moved @ v1
    off = np.sqrt((moved**2).sum("param") - alpha**2)
    loss = history.loss.sel(step=states.step)
    return line.assign(
        state_alpha=alpha.rename(step="state"),
        state_loss=loss.rename(step="state"),
        off_line=off.rename(step="state"),
    ), v1


sections, v1 = {}, None
for step in steps:
    sections[step], v1 = section(step, v1)


# %%
# One frame: the section on the left; on the right the eigenvalue against its threshold and the loss, with a mark that
# moves. Curves of earlier frames stay as a trace, so that a still picture tells the same.
def draw(axes, step):
    valley, curvature, loss = (axes[name] for name in ("valley", "λ", "F"))
    for earlier in steps[steps < step][::4]:
        viz.plot_line_slice(
            sections[earlier], valley, color="0.85", linewidth=0.6
        )
    now = sections[step]
    viz.plot_line_slice(now, valley, linewidth=1.4)
    valley.plot(
        now.state_alpha,
        now.state_loss,
        "o",
        color="#D55E00",
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.4,
    )
    valley.set(xlim=(-0.9, 0.9), ylim=(0.05, 0.75))
    valley.set_title(f"step {step:,}, phase {step % 5000 / 5000:.2f}")
    viz.plot_eigenvalues(eigs, curvature, onsets=onsets, legend=False)
    viz.plot_history(
        history.sel(step=slice(first, last)),
        loss,
        variable="loss",
        onsets=onsets,
        linewidth=0.4,
    )
    curvature.set(ylabel=r"$\lambda_1$ (dashed: $2/\eta$)", xlabel="")
    curvature.tick_params(labelbottom=False)
    for ax in (curvature, loss):
        ax.axvline(step, color="#0072B2", linewidth=1.2)
        ax.set_xlim(first, last)


layout = {
    "mosaic": [["valley", "λ"], ["valley", "F"]],
    "width_ratios": [1, 1.2],
}
after = int(np.flatnonzero(steps >= 9000)[0])
with viz.style():
    figure = plt.figure(figsize=(7.0, 2.6), layout="constrained")
    draw(figure.subplot_mosaic(**layout), steps[after])
plt.show()

# %%
# The film
# --------
# :func:`viz.save_film` calls ``draw`` for every frame and writes an animated WebP, with a still for print beside it.
film = viz.save_film(
    draw,
    steps,
    "images/valley.webp",
    still=after,
    text="The loss along the sharpest direction while its valley narrows: "
    "the states rest at its bottom, then jump from wall to wall.",
    figsize=(7.0, 2.6),
    dpi=100,
    quality=25,
    **layout,
)
film

# %%
# In numbers
# ----------
# How far apart the states of the last 20 steps lie along :math:`v_1`, and how far off the line they are at most.
onset = int(onsets.onset_step.values[-1])
print(f"onset at step {onset}, found in the motion alone")
print("  step   λ_1·η/2   extent along v1   off the line   residual")
for step in steps[::6]:
    now, pair = sections[step], eigs.sel(step=step, mode=0)
    ratio = float(pair.eigenvalue / pair.threshold)
    extent = float(np.ptp(now.state_alpha.values))
    off = float(now.off_line.max())
    print(
        f"{step:6d} {ratio:9.2f} {extent:17.4f} {off:14.4f} {float(pair.residual):10.1e}"
    )
