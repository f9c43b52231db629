"""Closed forms of the objective, chosen where they hold; `landscape.Objective` serves every other model and loss."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from dynloss.kernels.torch_kernels import NetworkObjective
from dynloss.losses import CrossEntropy, SquaredError
from dynloss.models import MLP
from landscape import Objective

MANY_PAIRS = 200
"""With more pairs of an input and a class, which the closed forms take one by one, autograd is faster."""


def fastest_objective(
    model: torch.nn.Module, loss, inputs: torch.Tensor, targets: torch.Tensor, *, kernel: str | None = None
) -> Objective:
    """The fastest objective that computes this loss of this model exactly, or that of one `kernel`.

    Raises
    ------
    ValueError
        If that kernel does not serve this model and loss, or not on this machine.
    """
    kinds = kernels_for(model, loss)
    if kernel is None:
        return next(iter(kinds.values()))(model, loss, inputs, targets)
    if kernel not in kinds:
        numba = "" if find_spec("numba") else "; pip install 'dynloss-landscape[fast]' for those of numba"
        raise ValueError(f"kernel {kernel!r} does not serve here; of this model and loss these do: {[*kinds]}{numba}")
    return kinds[kernel](model, loss, inputs, targets)


def kernels_for(model: torch.nn.Module, loss) -> dict[str, type[Objective]]:
    """The kinds of objective that compute this loss of this model exactly, by their `kernel`, fastest first."""
    kinds: list[type[Objective]] = []
    network = type(model) is MLP and model.is_unchanged and all(p.requires_grad for p in model.parameters())
    if network and any(_computes_as(loss, kind) for kind in (CrossEntropy, SquaredError)):
        weight = model.hidden.weight
        if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64) and find_spec("numba"):
            # Imported only here, as numba takes a while to load; one that is installed but broken raises.
            from dynloss.kernels.numba_kernels import CompiledNetworkObjective

            kinds.append(CompiledNetworkObjective)
        kinds.append(NetworkObjective)
    many = bool(kinds) and (model.hidden.in_features + 1) * model.output.out_features > MANY_PAIRS
    return {kind.kernel: kind for kind in ([Objective, *kinds] if many else [*kinds, Objective])}


def _computes_as(loss, kind: type) -> bool:
    """Whether `loss` is of `kind` or a subclass with nothing but class weights of its own."""
    return isinstance(loss, kind) and (type(loss).terms, type(loss).__call__) == (kind.terms, kind.__call__)
