r"""
Two trainings of one network
============================

From which step on do two trainings end in the same valley? A network on MNIST-1D (Greydanus and Kobak 2024, arXiv
2011.14439), ten classes of noisy signals, is copied after some common steps; both copies go on with the same data in
another order. On the straight line between their ends the loss shows a barrier or none (Frankle et al. 2020, arXiv
1912.05671). Plain PyTorch; nothing here knows :mod:`dynloss`.
"""

# %%
# The data set is made by its own package, in a second; nothing is downloaded.
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from mnist1d.data import get_dataset_args, make_dataset

import landscape
import viz

made = make_dataset(get_dataset_args())
inputs, targets = torch.tensor(made["x"]).float(), torch.tensor(made["y"])
test_inputs = torch.tensor(made["x_test"]).float()
test_targets = torch.tensor(made["y_test"])

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(40, 100),
    torch.nn.ReLU(),
    torch.nn.Linear(100, 100),
    torch.nn.ReLU(),
    torch.nn.Linear(100, 10),
)


def loss_fn(outputs, targets, step):
    """Mean cross entropy; the step does not matter."""
    return torch.nn.functional.cross_entropy(outputs, targets)


# %%
# Trained in common, then apart
# -----------------------------
# Momentum on batches of 100 samples, 2000 steps in all. The common part is trained once; from each of six of its
# steps two copies go on, which differ in nothing but the order of their batches.
N_STEPS, COMMON = 2000, (0, 50, 100, 200, 400, 800)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def trained(model, optimizer, steps, seed):
    """Train `model` for `steps` on batches whose order `seed` decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (100,), generator=generator)
        optimizer.zero_grad()
        loss_fn(model(inputs[batch]), targets[batch], 0).backward()
        optimizer.step()


layout = landscape.ParamLayout.of(model)
optimizer, done, ends = optimizer_of(model), 0, {}
for common in COMMON:
    trained(model, optimizer, common - done, seed=common)
    done, ends[common] = common, []
    for seed in (1, 2):
        twin = copy.deepcopy(model)
        of_twin = optimizer_of(twin)
        of_twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        trained(twin, of_twin, N_STEPS - common, seed)
        ends[common].append(layout.flatten_model(twin).numpy())

# %%
# The line between the ends
# -------------------------
# On the training set and on 1000 samples that were not trained on. The lines reach a quarter of the distance beyond the
# ends, which are marked.
objectives = {
    "training": landscape.Objective(model, loss_fn, inputs, targets),
    "test": landscape.Objective(model, loss_fn, test_inputs, test_targets),
}
lines = {}
for common, pair in ends.items():
    pair = xr.Dataset({"params": (("step", "param"), np.stack(pair))})
    between = landscape.interpolation_directions(pair)
    middle = xr.Dataset({"params": between.center}, {"step": N_STEPS})
    for name, objective in objectives.items():
        line = landscape.line_slice(
            objective,
            middle,
            between.direction[0],
            half_width=0.75 * float(between.distance[0]),
            n_points=61,
        )
        lines[common, name] = line.assign(
            distance=between.distance[0], end=between.point[:, 0]
        )

with viz.style():
    figure, axes = plt.subplots(
        2, 3, figsize=(6.9, 3.9), sharey=True, layout="constrained"
    )
    for ax, common in zip(axes.flat, COMMON, strict=True):
        for name, style in (("training", "-"), ("test", ":")):
            line = lines[common, name]
            viz.plot_line_slice(line, ax, log=True, linestyle=style, label=name)
        for end in lines[common, "training"].end.values:
            ax.axvline(end, color="0.8", linewidth=0.6, zorder=0.5)
        ax.set_title(f"{common} common steps", loc="left")
        if ax not in axes[:, 0]:
            ax.set_ylabel("")
        if ax not in axes[1]:
            ax.set_xlabel("")
    axes[0, 0].legend()
plt.show()

# %%
# The barrier: how much higher the loss is on the line, at its highest, than the mean of both ends.
barriers = {name: [] for name in objectives}
print("common  distance   training          test")
print(" steps   of ends   loss barrier   loss barrier")
for common in COMMON:
    row = f"{common:6} {float(lines[common, 'training'].distance):9.2f} "
    for name in objectives:
        line = lines[common, name]
        at_ends = line.loss.interp(alpha=line.end.values).values
        inside = line.loss.where(abs(line.alpha) <= line.distance / 2)
        barriers[name].append(float(inside.max()) - at_ends.mean())
        row += f" {at_ends.mean():6.3f} {barriers[name][-1]:7.3f}"
    print(row)

# %%
# The barrier of the training loss is lower after each further common step, and the ends are closer to each other. The test
# loss, a hundred times as large, hardly shows it.

# %%
# Where they end
# --------------
# The sharpness of the two ends, and their share of right answers on the test set.
print("common   sharpness of   right on the")
print(" steps   the two ends   test set, %   certified")
for common in COMMON:
    both = xr.Dataset(
        {"params": (("step", "param"), np.stack(ends[common]))}, {"step": [1, 2]}
    )
    eigs = landscape.top_eigenpairs(objectives["training"], both, k=1, tol=1e-3)
    accuracy = objectives["test"].accuracy(both.params.values)
    first, second = eigs.eigenvalue.values[:, 0]
    print(
        f"{common:6} {first:7.1f} {second:6.1f} {100 * accuracy[0]:6.1f} {100 * accuracy[1]:6.1f}"
        f"   {bool(eigs.certified.all())}"
    )
