"""Update rules of gradient-based optimisers on flat parameters, as PyTorch defines them."""

from __future__ import annotations

import torch

from dynloss.settings import TrainingSettings

State = dict[str, torch.Tensor]


class Optimizer:
    """θ_{t+1} = θ_t − η g_t: plain descent, with the gradient of all samples ("gd") or of a mini-batch ("sgd").

    Attributes
    ----------
    state_names : tuple of str
        Vectors (n,) that the rule carries from step to step.
    saved_names : tuple of str
        Those among them that are saved with each checkpoint, as curvature is measured relative to them.
    """

    state_names: tuple[str, ...] = ()
    saved_names: tuple[str, ...] = ()

    def __init__(self, settings: TrainingSettings):
        self.learning_rate = settings.learning_rate

    def start(self, params: torch.Tensor) -> State:
        """The state before the first update."""
        return {name: torch.zeros_like(params) for name in self.state_names}

    def update(self, params: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> torch.Tensor:
        """θ after the update with `gradient`, of which there were `step` before; `state` is changed in place."""
        return params - self.learning_rate * gradient


class Momentum(Optimizer):
    """Heavy ball, v ← βv + g, θ ← θ − ηv (dampening 0)."""

    state_names = ("velocity",)

    def __init__(self, settings: TrainingSettings):
        super().__init__(settings)
        self.momentum = settings.momentum

    def update(self, params: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> torch.Tensor:
        """θ after the update."""
        state["velocity"] = self.momentum * state["velocity"] + gradient
        return params - self.learning_rate * state["velocity"]


class RMSProp(Optimizer):
    """ν ← αν + (1 − α)g², θ ← θ − ηg/(√ν + ε)."""

    state_names = saved_names = ("second_moment",)

    def __init__(self, settings: TrainingSettings):
        super().__init__(settings)
        self.alpha, self.epsilon = settings.alpha, settings.epsilon

    def update(self, params: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> torch.Tensor:
        """θ after the update."""
        state["second_moment"] = self.alpha * state["second_moment"] + (1 - self.alpha) * gradient**2
        return params - self.learning_rate * gradient / (state["second_moment"].sqrt() + self.epsilon)


class Adam(Optimizer):
    """m ← β1 m + (1 − β1)g, ν ← β2 ν + (1 − β2)g², θ ← θ − η m̂/(√ν̂ + ε) (Kingma and Ba 2015, arXiv 1412.6980)."""

    state_names = ("first_moment", "second_moment")
    saved_names = ("second_moment",)

    def __init__(self, settings: TrainingSettings):
        super().__init__(settings)
        self.beta1, self.beta2, self.epsilon = settings.beta1, settings.beta2, settings.epsilon

    def update(self, params: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> torch.Tensor:
        """θ after the update."""
        state["first_moment"] = self.beta1 * state["first_moment"] + (1 - self.beta1) * gradient
        state["second_moment"] = self.beta2 * state["second_moment"] + (1 - self.beta2) * gradient**2
        mean = state["first_moment"] / (1 - self.beta1 ** (step + 1))
        square = state["second_moment"] / (1 - self.beta2 ** (step + 1))
        return params - self.learning_rate * mean / (square.sqrt() + self.epsilon)


RULES = {"gd": Optimizer, "sgd": Optimizer, "momentum": Momentum, "rmsprop": RMSProp, "adam": Adam}
