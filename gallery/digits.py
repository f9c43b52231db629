r"""
A model of your own
===================

A small convolutional network on images of digits, trained by plain PyTorch, with gradient descent and with Adam. Nothing
here knows :mod:`dynloss`: a folder of ``torch.save`` files for the one, a run file written beside the training loop for the
other.
"""

# %%
# Three hundred images of 8 × 8 pixels from scikit-learn; all are used at every step, so that the loss is a function of the
# parameters alone.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from sklearn.datasets import load_digits

import landscape
import viz

images, classes = load_digits(return_X_y=True)
inputs = torch.tensor(images[:300] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
targets = torch.tensor(classes[:300])


def network():
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )


def loss_fn(outputs, targets, step):
    """Mean cross entropy; the step does not matter."""
    return torch.nn.functional.cross_entropy(outputs, targets)


objective = landscape.Objective(network(), loss_fn, inputs, targets)
N_STEPS, EVERY = 600, 15

# %%
# Gradient descent, and files of others
# -------------------------------------
# What most training scripts leave is a folder of state dicts. :func:`landscape.read_state_dicts` takes the steps from their
# names, and reads a file when its row is used; what a state dict does not hold, the learning rate, is added.
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
RATE = 1.0
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
losses = []
for step in range(N_STEPS + 1):
    if step % EVERY == 0:
        torch.save(model.state_dict(), folder / f"step_{step}.pt")
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets, step)
    loss.backward()
    losses.append(loss.item())
    optimizer.step()

descent = landscape.read_state_dicts(folder, objective.layout)
descent = descent.assign_attrs(optimizer="gd", learning_rate=RATE)
print(descent)

# %%
# Adam, recorded while it trains
# ------------------------------
# The threshold of Adam limits the Hessian preconditioned by its second moments, so these are recorded with the parameters:
# ten lines around a training loop.
ADAM_RATE = 0.01
model = network()
optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE)
attrs = {
    "optimizer": "adam",
    "learning_rate": ADAM_RATE,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
}


def second_moment():
    """ν of Adam as a flat vector; zeros before the first update."""
    state = [optimizer.state[p] for p in model.parameters()]
    return objective.layout.flatten(
        [
            s["exp_avg_sq"] if s else torch.zeros_like(p)
            for s, p in zip(state, model.parameters(), strict=True)
        ]
    )


with landscape.RunWriter(
    folder / "adam.h5",
    objective.layout,
    history=["loss"],
    attrs=attrs,
    dtype="float32",
    optimizer_state=["second_moment"],
) as writer:
    for step in range(N_STEPS + 1):
        saved = step % EVERY == 0
        loss = loss_fn(model(inputs), targets, step)
        writer.append(
            step,
            objective.layout.flatten_model(model) if saved else None,
            optimizer_state={"second_moment": second_moment()} if saved else None,
            loss=loss.item(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# Each at its own threshold
# -------------------------
# The sharpness of gradient descent against :math:`2/\eta`, and that of the preconditioned Hessian against Adam's. Where the
# loss of every image falls towards zero, as here, the curvature of the cross entropy falls with it.
run = landscape.open_run(folder / "adam.h5")
sharpness = {
    "gradient descent": landscape.top_eigenpairs(
        objective, descent, k=1, tol=1e-3
    ),
    "Adam": landscape.top_eigenpairs(
        objective,
        run.checkpoints.isel(step=slice(1, None)),
        k=1,
        tol=1e-3,
        preconditioned=True,
    ),
}
with viz.style():
    figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.5), layout="constrained")
    for ax, (name, eigs) in zip(axes, sharpness.items(), strict=True):
        viz.plot_eigenvalues(eigs, ax)
        ax.set_title(name, loc="left")
    axes[1].set_ylabel("Eigenvalue of the\npreconditioned Hessian")
    viz.panel_letters(axes)
plt.show()
for name, eigs in sharpness.items():
    ratio = (eigs.eigenvalue.isel(mode=0) / eigs.threshold).values
    print(
        f"{name}: λ_1 over the threshold {ratio[0]:.2f} at first, then up to {np.nanmax(ratio):.2f}; "
        f"certified {bool(eigs.certified.all())}"
    )
print(
    f"losses at the end: {losses[-1]:.3f} and {float(run.history.loss[-1]):.3f}"
)

# %%
# Both paths on one plane
# -----------------------
# The principal axes of both trajectories together, and the loss on the plane that they span. A projection hides what is
# perpendicular to it: its size is printed below.
both = np.concatenate([descent.params.values, run.checkpoints.params.values])
both = xr.Dataset(
    {"params": (("step", "param"), both)}, {"step": np.arange(len(both))}
)
principal = landscape.pca_directions(both)
last = descent.isel(step=-1)
plane = landscape.plane_slice(
    objective, last, principal, half_width=(9.0, 10.0), n_points=41
)
paths = {
    "gradient descent": landscape.project(objective, descent, plane),
    "Adam": landscape.project(objective, run.checkpoints, plane),
}

# %%
# Beside it, the surface around the end of gradient descent along two random directions with filters as long as those of
# the parameters (Li et al. 2018).
random = landscape.random_directions(last, layout=objective.layout, seed=0)
around = landscape.plane_slice(
    objective,
    last,
    random,
    half_width=tuple(random.length.values),
    n_points=41,
)
with viz.style():
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), layout="constrained")
    viz.plot_plane_slice(plane, axes[0], scale="log", title=False)
    for (name, path), color in zip(
        paths.items(), ("black", "white"), strict=True
    ):
        axes[0].plot(
            path.alpha, path.beta, ".-", color=color, markersize=3, label=name
        )
    axes[0].legend(facecolor="0.6", frameon=True)
    viz.plot_plane_slice(around, axes[1], scale="log", title=False)
    viz.panel_letters(axes)
plt.show()
explained = principal.explained_variance.values
print(
    f"the plane explains {explained[0]:.2f} + {explained[1]:.2f} of the scatter"
)
for name, path in paths.items():
    extent = np.hypot(np.ptp(path.alpha.values), np.ptp(path.beta.values))
    print(
        f"{name}: extent in the plane {extent:.2f}, farthest from it {float(path.off_plane.max()):.2f}"
    )
run.close()
temporary.cleanup()
