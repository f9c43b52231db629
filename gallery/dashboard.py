r"""
One run, step by step
=====================

All that is known of a stretch of one run on one page: point at a panel or move the slider, and the section, the
spectrum and the parts of the gradient follow. The stretch is the second half of the second period, where the cascade
begins.
"""

# %%
# Each panel is a Dataset of its own: the recorded history and eigenpairs, the gradient decomposition at every saved
# state, and every 45 steps a section along :math:`v_1`, :math:`v_2` with the states of the last 20 steps and the density
# of all eigenvalues.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
onsets = landscape.find_onsets(run.history)
part = slice(7500, 9495)
history = run.history.sel(step=part).load()
states = run.checkpoints.sel(step=slice(7480, 9495)).load()
eigs = run.eigenpairs.sel(step=part).load()
grads = landscape.gradient_decomposition(
    objective, states.sel(step=part), eigs.isel(mode=[0, 1])
)

moments = np.arange(7500, 9496, 45)
planes, paths = [], []
for step in moments:
    plane = landscape.plane_slice(
        objective,
        states.sel(step=step),
        eigs.sel(step=step).isel(mode=[0, 1]),
        half_width=0.6,
        n_points=41,
    )
    last = states.sel(step=slice(step - 19, step))
    planes.append(plane)
    paths.append(landscape.project(objective, last, plane))
density = landscape.spectral_density(objective, states.sel(step=moments))

# %%
# For print
# ---------
# What the page shows of step 9,030, as figures.
at = 9030
nearest = int(np.argmin([abs(int(plane.step) - at) for plane in planes]))
with viz.style():
    figure, axes = plt.subplots(2, 2, figsize=(7.0, 4.4), layout="constrained")
    viz.plot_history(history, axes[0, 0], variable="loss", onsets=onsets)
    viz.plot_eigenvalues(eigs, axes[1, 0], onsets=onsets)
    viz.plot_plane_slice(planes[nearest], axes[0, 1], scale="log", lines=False)
    viz.plot_path(paths[nearest], axes[0, 1])
    viz.plot_gradient_decomposition(
        grads, axes[1, 1], kind="fraction", onsets=onsets
    )
    for ax in (axes[0, 0], axes[1, 0], axes[1, 1]):
        ax.axvline(at, color="#0072B2", linewidth=1.0)
    viz.panel_letters(axes)
plt.show()

# %%
# To move through
# ---------------
# The arrow keys move the slider by one step; the button runs by an odd number of steps, so that both states of a
# two-cycle are seen. ``board.save("run.html")`` writes the page as one file that needs nothing else.
board = viz.dashboard(
    history,
    eigs=eigs,
    grads=grads,
    planes=planes,
    paths=paths,
    spectrum=density,
    onsets=onsets,
    start=at,
)
board

# %%
# What stands behind it
# ---------------------
spread = max(float(path.off_plane.max()) for path in paths)
print(f"""steps {int(history.step[0])} … {int(history.step[-1])},\
 onset at step {int(onsets.onset_step[-1])}
{len(eigs.step)} steps with {eigs.sizes["mode"]} eigenpairs,\
 largest residual {float(eigs.residual.max()):.1e}
{len(planes)} sections, states at most {spread:.2f} off them
{len(density.step)} spectra of {density.attrs["n_vectors"]} start vectors,\
 seed {density.attrs["seed"]}
the page takes {len(board.page.encode()) / 1e6:.2f} MB""")
