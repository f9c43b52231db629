r"""
A dynamical loss in your own training loop
==========================================

`DynamicalCrossEntropy` is a loss like any other, called with the step as its third argument, and `RunWriter` records
any loop. Here both stand in plain PyTorch: a data loader with mini-batches, momentum, and a network with two hidden
layers that sees the spiral through 16 random projections, in float32.
"""

# %%
# A model and data
# ----------------
import torch

import dynloss
import landscape

torch.manual_seed(0)
data = dynloss.spiral(n_per_class=200, n_classes=3, seed=0)
inputs = (data.inputs @ torch.randn(2, 16, dtype=torch.float64)).float()
model = torch.nn.Sequential(
    torch.nn.Linear(16, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 3),
)

# %%
# The loop
# --------
# What is recorded is up to you: scalars of each step, and the parameters as often as you like. The attributes tell the
# analyses which optimiser was at work, and so its stability threshold, here :math:`2(1 + \beta)/\eta`.
import tempfile
from pathlib import Path

loss_fn = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=20, period=600)
optimizer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
samples = torch.utils.data.TensorDataset(inputs, data.targets)
loader = torch.utils.data.DataLoader(samples, batch_size=100, shuffle=True)

path = Path(tempfile.mkdtemp()) / "own_loop.h5"
layout = landscape.ParamLayout.of(model)
attrs = {
    "optimizer": "momentum",
    "learning_rate": 0.7,
    "momentum": 0.9,
    "period": 600,
}
options = {"history": ["loss"], "attrs": attrs, "dtype": "float32"}
with landscape.RunWriter(path, layout, **options) as run:
    for epoch in range(300):
        for batch, (x, y) in enumerate(loader):
            step = epoch * len(loader) + batch
            loss = loss_fn(model(x), y, step)
            params = layout.flatten_model(model) if step % 25 == 0 else None
            run.append(step, params, loss=loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

# %%
# The landscape that it moved through
# -----------------------------------
# The analyses know nothing of the loop: they need the model, the loss and the data. Curvature is that of the loss over
# *all* samples at the step of each checkpoint.
import matplotlib.pyplot as plt

import viz

run = landscape.open_run(path)
objective = landscape.Objective(model.eval(), loss_fn, inputs, data.targets)
eigs = landscape.top_eigenpairs(objective, run.checkpoints, k=2, tol=1e-3)

with viz.style():
    figure, axes = plt.subplots(
        2, 1, figsize=(6.9, 3.6), sharex=True, layout="constrained"
    )
    viz.plot_history(run.history, axes[0], variable="loss", linewidth=0.4)
    viz.plot_eigenvalues(eigs, axes[1])
    axes[0].set_xlabel("")
    viz.panel_letters(axes)
plt.show()

print(
    f"{int(eigs.certified.sum())} of {eigs.certified.size} eigenpairs certified"
)

# %%
# On mini-batches the sharpness peaks where the loss does, at the borders between periods, and stays below the
# threshold, which is that of descent on all samples.
