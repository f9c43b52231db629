"""An oracle that knows nothing of Objective, and a short descent of a small network, for the tests of analyses."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective


@pytest.fixture(scope="session")
def oracle():
    """`oracle(model, loss_fn, inputs, targets, params, step)`: loss, gradient, Hessian by double backward, as numpy."""

    def derivatives(model, loss_fn, inputs, targets, params, step):
        model = copy.deepcopy(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        torch.nn.utils.vector_to_parameters(torch.as_tensor(params), trainable)
        loss = loss_fn(model(inputs), targets, step)
        gradient = flat(torch.autograd.grad(loss, trainable, create_graph=True, materialize_grads=True))
        rows = [
            flat(torch.autograd.grad(entry, trainable, retain_graph=True, materialize_grads=True)) for entry in gradient
        ]
        return loss.detach().numpy(), gradient.detach().numpy(), torch.stack(rows).numpy()

    def flat(tensors):
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    return derivatives


@pytest.fixture(scope="session")
def descent(oracle):
    """A network of 51 parameters, its objective, four checkpoints of its descent by autograd, and a dense Hessian."""
    model, data = dynloss.mlp(2, 8, 3, seed=1), dynloss.spiral(15, 3, seed=0)
    loss_fn = dynloss.DynamicalCrossEntropy(3, amplitude=20, period=40)
    trained, saved = copy.deepcopy(model), []
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    for step in range(31):
        if step % 10 == 0:
            saved.append(torch.nn.utils.parameters_to_vector(trained.parameters()).detach().numpy())
        optimizer.zero_grad()
        loss_fn(trained(data.inputs), data.targets, step).backward()
        optimizer.step()
    objective = Objective(model, loss_fn, *data)
    attrs = {"optimizer": "gd", "learning_rate": 0.5, "layout": objective.layout.to_json()}
    checkpoints = xr.Dataset({"params": (("step", "param"), np.stack(saved))}, {"step": [0, 10, 20, 30]}, attrs)

    class Descent:
        def __init__(self):
            self.model, self.data, self.loss_fn = model, data, loss_fn
            self.objective, self.checkpoints = objective, checkpoints

        def derivatives(self, step):
            return oracle(model, loss_fn, *data, checkpoints.params.sel(step=step).values, step)

    return Descent()
