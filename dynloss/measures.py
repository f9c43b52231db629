"""What is measured of each step of training, by `dynloss.train` and by ensembles alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

SCALARS = {
    "loss": "loss",
    "accuracy": "training accuracy",
    "validation_accuracy": "validation accuracy",
    "gradient_norm": "norm of the gradient",
    "update_norm": "norm of the update from the step before",
    "update_cosine": "cosine between successive updates",
}
"""Names, and what they are."""


def accuracies_of(objective, sets: dict[str, tuple]) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """A function of θ, (n,) or (E, n): accuracy and validation_accuracy, () or (E,), from one forward pass.

    Parameters
    ----------
    objective : landscape.Objective
        Whose outputs are those of the classes.
    sets : mapping
        Inputs and targets, ``training`` and perhaps ``validation``, whose accuracy is NaN without.
    """
    inputs = objective.as_inputs(torch.cat([inputs for inputs, _ in sets.values()]))
    targets = torch.cat([targets for _, targets in sets.values()]).to(objective.device)
    n_training = len(sets["training"][1])

    def accuracies(params: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            # The first of the largest, as argmax has it, in a tenth of its time.
            right = (objective.outputs(params, inputs).max(-1).indices == targets).to(torch.float64)
        found = {"accuracy": right[..., :n_training].mean(-1)}
        return found | {"validation_accuracy": right[..., n_training:].mean(-1)}  # of nothing: NaN

    return accuracies
