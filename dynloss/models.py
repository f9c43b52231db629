"""The networks that are trained: one hidden layer of rectified linear units."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch


class MLP(torch.nn.Sequential):
    """Linear(n_inputs, width) – ReLU – Linear(width, n_classes); made by `mlp`."""

    def __init__(self, n_inputs: int, width: int, n_classes: int, dtype: torch.dtype = torch.float64):
        if min(n_inputs, width, n_classes) < 1:
            raise ValueError(f"n_inputs, width, n_classes must be at least 1, got {n_inputs}, {width}, {n_classes}")
        super().__init__(
            OrderedDict(
                hidden=torch.nn.Linear(n_inputs, width, dtype=dtype),
                activation=torch.nn.ReLU(),
                output=torch.nn.Linear(width, n_classes, dtype=dtype),
            )
        )

    @property
    def is_unchanged(self) -> bool:
        """Whether its layers are of the kind that `mlp` made, so that closed forms hold and `config` is enough."""
        layers = [(name, type(layer)) for name, layer in self.named_children()]
        made = [("hidden", torch.nn.Linear), ("activation", torch.nn.ReLU), ("output", torch.nn.Linear)]
        return layers == made and self.hidden.bias is not None and self.output.bias is not None

    def config(self) -> dict:
        """What is needed to build this network again, as JSON-ready values; a name alone where layers were replaced."""
        if not self.is_unchanged:
            return {"name": "changed mlp"}
        return {
            "name": "mlp",
            "n_inputs": self.hidden.in_features,
            "width": self.hidden.out_features,
            "n_classes": self.output.out_features,
        }


def mlp(n_inputs: int, width: int, n_classes: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> MLP:
    """A network with one hidden ReLU layer, initialised as in the 2021 study of dynamical losses.

    Weights are Glorot-normal, N(0, 2/(fan_in + fan_out)) (Glorot and Bengio 2010), and biases N(0, 0.01²).

    Parameters
    ----------
    n_inputs, width, n_classes : int
        Sizes of the input, the hidden layer and the output.
    seed : int
        Seed of the initial parameters. They are drawn in float64 and then rounded to `dtype`, and the global
        random state is left alone.
    dtype : torch.dtype
        Type of the parameters, float64 by default.

    Returns
    -------
    MLP
        A ``torch.nn.Sequential`` with ``hidden``, ``activation`` and ``output``.

    Examples
    --------
    >>> sum(p.numel() for p in mlp(n_inputs=2, width=100, n_classes=3).parameters())
    603
    """
    with torch.random.fork_rng(devices=[]):  # torch's own layers draw parameters, which are replaced below
        model = MLP(n_inputs, width, n_classes, dtype)
    rng = np.random.default_rng(seed)  # numpy's streams do not change with the version of torch, or the device
    with torch.no_grad():
        for layer in (model.hidden, model.output):
            std = (2 / (layer.in_features + layer.out_features)) ** 0.5
            for tensor, scale in ((layer.weight, std), (layer.bias, 0.01)):
                tensor.copy_(torch.from_numpy(scale * rng.standard_normal(tuple(tensor.shape))))
    return model
