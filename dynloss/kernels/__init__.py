"""Closed forms of the objective, chosen where they hold; `landscape.Objective` serves every other model and loss."""

from __future__ import annotations

import torch

from dynloss.kernels.torch_kernels import NetworkObjective
from dynloss.losses import CrossEntropy
from dynloss.models import MLP
from landscape import Objective


def fastest_objective(model: torch.nn.Module, loss, inputs: torch.Tensor, targets: torch.Tensor) -> Objective:
    """The fastest objective that computes this loss of this model exactly."""
    network = type(model) is MLP and model.is_unchanged and all(p.requires_grad for p in model.parameters())
    # A subclass with class weights of its own is served too, one with other terms is not.
    cross_entropy = isinstance(loss, CrossEntropy) and (type(loss).terms, type(loss).__call__) == (
        CrossEntropy.terms,
        CrossEntropy.__call__,
    )
    if network and cross_entropy:
        return NetworkObjective(model, loss, inputs, targets)
    return Objective(model, loss, inputs, targets)
