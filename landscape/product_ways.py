"""The ways to multiply curvature matrices with vectors: the same products at different costs.

With g = ∇F, a Hessian product is a derivative of ⟨g, v⟩ (backward through the graph of g) or of g along v (forward
mode). In units of a gradient that costs 2 to 2.8 and 2 to 6, depending on the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch

from landscape.forms import Forms


class Way(NamedTuple):
    """A method and the number of rows that share a graph; None is all of them. As words, "kept graph by 4"."""

    method: str
    rows: int | None = None

    def __str__(self) -> str:
        return self.method if self.rows is None else f"{self.method} by {self.rows}"

    @classmethod
    def parse(cls, words: str) -> Way:
        """The way of that name."""
        method, by, rows = str(words).partition(" by ")
        if method not in HESSIAN or (by and not (rows.isdecimal() and int(rows) > 0)):
            names = ", ".join(f'"{name}"' for name in HESSIAN)
            raise ValueError(f'product must be "auto" or one of {names}, or e.g. "kept graph by 4", got {words!r}')
        return cls(method, int(rows) if by else None)


class Part(NamedTuple):
    """The loss of a few rows, summed, over one batch of samples, as a function of their parameters.

    These are (n,) for one row, whose loss then is called as it is, and (rows, n) for several.
    """

    objective: object
    steps: torch.Tensor
    class_weights: torch.Tensor | None  # schedules are not to be evaluated while torch.func transforms what they do
    inputs: torch.Tensor
    targets: torch.Tensor
    weight: float

    def outputs(self, point: torch.Tensor) -> torch.Tensor:
        """Outputs of the model, (P, …) or (rows, P, …)."""
        return self.objective.outputs(point, self.inputs)

    def loss_of(self, outputs: torch.Tensor) -> torch.Tensor:
        """The loss as a function of the outputs."""
        if len(self.steps) == 1:
            loss = self.objective.loss_fn(outputs, self.targets, int(self.steps))
        else:
            loss = self.objective._losses_of(outputs, self.targets, self.steps, self.class_weights).sum()
        return loss if self.weight == 1 else self.weight * loss

    def loss(self, point: torch.Tensor) -> torch.Tensor:
        """The loss as a function of the parameters."""
        return self.loss_of(self.outputs(point))

    def forms(self) -> Forms:
        """Cheap forms of the model's layers, as a context."""
        return Forms(batched=len(self.steps) > 1)


class Linear(NamedTuple):
    """A symmetric linear map of vectors of the shape of a point, or of many stacked along a first dim."""

    one: Callable[[torch.Tensor], torch.Tensor]
    many: Callable[[torch.Tensor], torch.Tensor]


def _pullback(values: torch.Tensor, leaf: torch.Tensor) -> Linear:
    """v ↦ ∂⟨values, v⟩/∂leaf through a graph that is kept; zero where there is none."""
    if not values.requires_grad:  # e.g. the gradient of a loss that is linear in θ

        def zeros(vectors):
            return leaf.new_zeros(*vectors.shape[: vectors.ndim - values.ndim], *leaf.shape)

        return Linear(zeros, zeros)

    def backward(vectors, batched=False):
        return torch.autograd.grad(
            values, leaf, vectors, retain_graph=True, materialize_grads=True, is_grads_batched=batched
        )[0]

    return Linear(backward, lambda vectors: backward(vectors, batched=True))


def _gradient(value: torch.Tensor, leaf: torch.Tensor, cotangent: torch.Tensor | None = None) -> torch.Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(value, leaf, cotangent, create_graph=True, materialize_grads=True)[0]


def _hessian_by_graph(part: Part, point: torch.Tensor, forms=nullcontext) -> Linear:
    with torch.enable_grad(), forms():
        leaf = point.clone().requires_grad_()
        gradient = _gradient(part.loss(leaf), leaf)
    return _pullback(gradient, leaf)


def _hessian_by_lean_graph(part: Part, point: torch.Tensor) -> Linear:
    return _hessian_by_graph(part, point, part.forms)


def _hessian_by_linearize(part: Part, point: torch.Tensor) -> Linear:
    return _traced(torch.func.grad(part.loss), point)


def _hessian_by_jvp(part: Part, point: torch.Tensor) -> Linear:
    return _forward(torch.func.grad(part.loss), point)


def _traced(function: Callable, point: torch.Tensor) -> Linear:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch warns of the constants that it folds
        product = torch.func.linearize(function, point)[1]
    return Linear(product, torch.vmap(product))


def _forward(function: Callable, point: torch.Tensor) -> Linear:
    _load_forward_mode()

    def product(vector):
        return torch.func.jvp(function, (point,), (vector,))[1]

    return Linear(product, torch.vmap(product))


@cache
def _load_forward_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself when it loads the formulas
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def _gauss_newton_by_graph(part: Part, point: torch.Tensor, forms=nullcontext, tangent=None) -> Linear:
    """Jᵀ S J v: J v by `tangent`, or as the derivative in w of ⟨Jᵀw, v⟩; S by double backward of the loss alone."""
    with torch.enable_grad(), forms():
        leaf = point.clone().requires_grad_()
        outputs = part.outputs(leaf)
        if not (isinstance(outputs, torch.Tensor) and outputs.is_floating_point()):
            kind = outputs.dtype if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ValueError(
                f"gauss_newton needs a model that answers with one floating-point tensor, got {kind}; wrap the model "
                "in a module that picks one"
            )
        at = outputs.detach().requires_grad_()
        curved = _pullback(_gradient(part.loss_of(at), at), at)
        back = _pullback(outputs, leaf)
        if tangent is None:
            cotangent = torch.zeros_like(at, requires_grad=True)
            tangent = _pullback(_gradient(outputs, leaf, cotangent), cotangent)
    return Linear(*(lambda v, i=i: back[i](curved[i](tangent[i](v))) for i in range(2)))


def _gauss_newton_by_lean_graph(part: Part, point: torch.Tensor) -> Linear:
    return _gauss_newton_by_graph(part, point, part.forms)


def _gauss_newton_by_linearize(part: Part, point: torch.Tensor) -> Linear:
    return _gauss_newton_by_graph(part, point, tangent=_traced(part.outputs, point))


def _gauss_newton_by_jvp(part: Part, point: torch.Tensor) -> Linear:
    return _gauss_newton_by_graph(part, point, tangent=_forward(part.outputs, point))


HESSIAN = {
    "kept graph": _hessian_by_graph,
    "lean graph": _hessian_by_lean_graph,
    "linearize": _hessian_by_linearize,
    "jvp": _hessian_by_jvp,
}
GAUSS_NEWTON = {
    "kept graph": _gauss_newton_by_graph,
    "lean graph": _gauss_newton_by_lean_graph,
    "linearize": _gauss_newton_by_linearize,
    "jvp": _gauss_newton_by_jvp,
}
MATRICES = {"hessian": HESSIAN, "gauss_newton": GAUSS_NEWTON}


def part(objective, points: torch.Tensor, steps: torch.Tensor, batch) -> tuple[Part, torch.Tensor]:
    """The loss of these rows over a batch, and the point at which it stands."""
    return Part(objective, steps, objective._weights_of(steps), *batch), points[0] if len(points) == 1 else points
