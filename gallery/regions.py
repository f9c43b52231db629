r"""
What the network has learnt
===========================

The regions of the plane that a network gives to each class, at eight steps of a run. While one class dominates the loss,
the network answers that class almost everywhere; where the loss is the static one again, the arms come back.
"""

# %%
# The run of the other pages: dynamical cross entropy with :math:`A = 70` and :math:`T = 5000`, two periods. A colour is the
# class with the largest output, points are the training samples. Above each panel stand the step, the training accuracy and
# the largest class weight.
import matplotlib.pyplot as plt

import dynloss
import landscape
import viz


def draw(run, steps, axes):
    """The regions at each of `steps`, in the panels `axes`."""
    states = run.checkpoints.sel(step=list(steps))
    regions = landscape.decision_regions(dynloss.objective(run), states)
    for ax, step in zip(axes, steps, strict=True):
        viz.plot_regions(regions.sel(step=step), ax, samples=run.data["training"])
        row = run.history.sel(step=step)
        emphasised = int(row.class_weight.argmax("class"))
        weight = float(row.class_weight[emphasised])
        ax.set_title(
            f"step {step:,}: {float(row.accuracy):.2f}\n"
            rf"$\Gamma_{emphasised}$ = {weight:.2f}"
        )


steps = (0, 1245, 2490, 4200, 4995, 7500, 9150, 9990)
with (
    landscape.open_run(dynloss.example_run("cascade")) as run,
    viz.style(),
):
    figure, axes = plt.subplots(
        2, 4, figsize=(7.0, 4.3), sharex=True, sharey=True, layout="compressed"
    )
    draw(run, steps, axes.flat)
plt.show()
