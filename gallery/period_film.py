r"""
What is learnt and forgotten in one period: a film
==================================================

The regions that the network gives to each class, and the spectrum of its Hessian, through one period of the
oscillation. While one class dominates the loss its region covers almost the whole plane; towards the end of the
period single eigenvalues pass the stability threshold, and the regions of the other classes grow again.
"""

# %%
# Every 135 steps of the second period of the run: the class with the largest output at each point of the plane, and
# the density of all eigenvalues of the Hessian under that step's class weights.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

with landscape.open_run(dynloss.example_run("cascade")) as run:
    objective = dynloss.objective(run)
    steps = np.arange(5010, 9991, 135)
    states = run.checkpoints.sel(step=steps).load()
    history = run.history.sel(step=slice(5000, 9999)).load()
    samples = run.data["training"].load()
regions = landscape.decision_regions(objective, states, n_points=121)
density = landscape.spectral_density(objective, states)
top = float(density.eigenvalue.max())


# %%
# One frame.
def draw(axes, step):
    viz.plot_regions(regions.sel(step=step), axes["regions"], samples=samples)
    now = history.sel(step=step)
    axes["regions"].set(
        title=f"step {step:,}, accuracy {float(now.accuracy):.2f}"
    )
    spectrum = axes["density"]
    viz.plot_spectral_density(
        density.sel(step=step), spectrum, band=False, legend=False
    )
    threshold = 2 / float(states.attrs["learning_rate"])
    spectrum.axvline(threshold, color="black", linestyle="--", linewidth=0.9)
    spectrum.set(
        xlim=(float(density.eigenvalue.min()), top),
        ylabel="Density",
    )
    viz.plot_history(history, axes["weights"], variable="class_weight")
    axes["weights"].axvline(step, color="black", linewidth=1.2)


layout = {
    "mosaic": [["regions", "density"], ["regions", "weights"]],
    "width_ratios": [1, 1.4],
}
middle = len(steps) // 2
with viz.style():
    figure = plt.figure(figsize=(7.0, 2.9), layout="constrained")
    draw(figure.subplot_mosaic(**layout), steps[middle])
plt.show()

# %%
# The film
# --------
# The dashed line is the stability threshold :math:`2/\eta`, the dotted one the height of a single eigenvalue.
film = viz.save_film(
    draw,
    steps,
    "images/period.webp",
    still=middle,
    text="Regions of the plane that the network gives to each class, and the "
    "Hessian's spectrum, through one period of the class weights.",
    figsize=(7.0, 2.9),
    dpi=85,
    quality=25,
    **layout,
)
film

# %%
# In numbers
# ----------
print("  step  Γ of the emphasised class  accuracy   share of the plane")
for step in steps[::6]:
    now = history.sel(step=step)
    emphasised = int(history.class_weight.max("step").argmax("class"))
    share = float((regions.predicted.sel(step=step) == emphasised).mean())
    weight = float(now.class_weight[emphasised])
    print(f"{step:6d} {weight:26.2f} {float(now.accuracy):9.2f} {share:19.2f}")
print(
    f"spectrum: {density.attrs['n_vectors']} start vectors,"
    f" {density.attrs['n_lanczos']} Lanczos steps, seed {density.attrs['seed']}"
)
