"""Slices of the loss by peers: loss-landscapes, and the loop that loads parameters into the model and runs it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from solvers import Solver
from workloads import Workload

LOSS = torch.nn.CrossEntropyLoss()
LOOP, LOSS_LANDSCAPES = "load and run", "loss-landscapes"


def load_and_run(workload: Workload, plane) -> np.ndarray:
    """Losses (alpha, beta): parameters set, the model run without gradients, as plotting scripts do."""
    model = workload.model_at(0)
    center, (first, second), alpha, beta = plane
    losses = np.empty((len(alpha), len(beta)))
    with torch.no_grad():
        for a, x in enumerate(alpha.tolist()):
            for b, y in enumerate(beta.tolist()):
                torch.nn.utils.vector_to_parameters(center + x * first + y * second, model.parameters())
                losses[a, b] = LOSS(model(workload.inputs), workload.targets).item()
    return losses


def loss_landscapes(workload: Workload, plane) -> np.ndarray:
    """Losses (alpha, beta) of a square grid through three models, one of them its corner.

    Its even rows lie one step of β further than its odd ones, which go back through the points that the row before
    has just left. What lies beyond the grid is cut off, and NaN stands for what is missing.
    """
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    center, directions, alpha, beta = plane
    n = len(alpha)
    corner = center + alpha[0] * directions[0] + beta[0] * directions[1]
    ends = [corner + n * (grid[1] - grid[0]) * d for grid, d in zip((alpha, beta), directions, strict=True)]
    models = [copy.deepcopy(workload.model) for _ in range(3)]
    for model, params in zip(models, (corner, *ends), strict=True):
        torch.nn.utils.vector_to_parameters(params.clone(), model.parameters())
    metric = Loss(LOSS, workload.inputs, workload.targets)
    losses = loss_landscapes.planar_interpolation(*models, metric, steps=n)
    losses[::2, 1:] = losses[::2, :-1].copy()
    losses[::2, 0] = np.nan
    return losses


def _prepared(slice_of):
    return lambda workload, plane: lambda: slice_of(workload, plane)


PEERS = [
    Solver(LOSS_LANDSCAPES, "planar_interpolation", _prepared(loss_landscapes), ("loss_landscapes", LOSS_LANDSCAPES)),
    Solver(LOOP, "point by point", _prepared(load_and_run), ("torch", "torch")),
]
