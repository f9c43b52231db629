r"""
Figures for a manuscript, surfaces for ParaView
===============================================

A figure two columns wide whose text stays text, and the same section of the loss as files for viewers of surfaces in
three dimensions.
"""

# %%
# :func:`viz.style` takes the width of the journal's column, or a number of mm; text has 8 points, numbers on axes 7.
# :func:`viz.save_figure` writes the figure at this very size: nothing is cropped or scaled.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import landscape
import viz

with landscape.open_run(dynloss.example_run("cascade")) as run:
    objective = dynloss.objective(run)
    eigs = run.eigenpairs.sel(step=slice(8500, 9499)).load()
    plane = landscape.plane_slice(
        objective,
        run.checkpoints.sel(step=9050),
        eigs.sel(step=9050).isel(mode=[0, 1]),
        half_width=0.7,
        n_points=61,
        terms=True,
    )
    around = run.checkpoints.sel(step=slice(9040, 9059))
    path = landscape.project(objective, around, plane)

with viz.style(width="double", height=62):
    figure, (left, right) = plt.subplots(1, 2, width_ratios=[1.5, 1])
    viz.plot_eigenvalues(eigs, left)
    viz.plot_plane_slice(plane, right, scale="log", title=False)
    viz.plot_path(path, right)
    viz.panel_letters([left, right])
plt.show()

# %%
# The files
# ---------
# Lines of thousands of points, and surfaces in three dimensions, are pixels inside of the vector graphics.
folder = Path(tempfile.mkdtemp())
for file in viz.save_figure(
    figure, folder / "figure1", formats=["pdf", "svg", "png"]
):
    print(f"{file.name:12} {file.stat().st_size / 1000:6.0f} kB")

# %%
# For ParaView
# ------------
# One file is a surface with the loss and the classes' own losses as fields, another the states as a line. A plane with
# a further dim, here five phases of the oscillation, becomes numbered files, which ParaView opens as an animation.
loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=70, period=5000)
phase = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
weights = xr.DataArray(
    loss.class_weights(5000 + (5000 * phase).astype(int)),
    dims=("phase", "class"),
    coords={"phase": phase},
)
files = viz.save_vtk(plane, folder / "section.vtk", states=path, scale="log")
files += viz.save_vtk(
    landscape.reweight(plane, weights), folder / "phases.vtk", scale="log"
)
for file in files:
    print(f"{file.name:20} {file.stat().st_size / 1000:6.0f} kB")
