"""Which module of a model spoils its evaluation: each is tried by itself on the inputs that it gets from the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.finite_differences import Function
from landscape.model_copy import first_line, parameter_places
from landscape.samples import Inputs, called

N_EVALUATIONS = 64  # of what draws random numbers, until one differs


class Call:
    """A module and the arguments of its first call, detached from the graph of the model."""

    def __init__(self, name: str, module: nn.Module, args: tuple, kwargs: dict):
        self.name, self.module, self.places = name, module, parameter_places(module)
        leaves, self.structure = tree_flatten((args, kwargs))
        self.leaves = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({type(self.module).__name__})"

    def outputs(self, parameters: dict | None = None, leaves: list | None = None) -> list[torch.Tensor]:
        """The floating-point tensors that the module answers with."""
        leaves = self.leaves if leaves is None else leaves
        # Copies, as some modules write to their inputs.
        copies = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(copies, self.structure)
        values = parameters or {}
        placed = {place: values[name] for place, name in self.places.items() if name in values}
        answer = functional_call(self.module, placed, args, kwargs, tie_weights=False)
        return [out for out in tree_flatten(answer)[0] if _is_floating(out)]

    def function(self, generator: torch.Generator) -> tuple[Function, torch.Tensor] | None:
        """A random quadratic of the outputs as a function of parameters and inputs, and the point where it was called.

        None where the outputs depend on neither.
        """
        names = [name for name, p in self.module.named_parameters() if p.requires_grad and p.numel()]
        places = [i for i, leaf in enumerate(self.leaves) if _is_floating(leaf) and leaf.numel()]
        parameters = dict(self.module.named_parameters())
        tensors = [*(parameters[name].detach() for name in names), *(self.leaves[i] for i in places)]
        outputs = [out.detach() for out in self.outputs()]
        weights = [torch.randn((2, *out.shape), generator=generator, dtype=torch.float64).to(out) for out in outputs]
        weights = [
            (linear, quadratic / (1 + out.abs())) for (linear, quadratic), out in zip(weights, outputs, strict=True)
        ]
        if not tensors or not weights:
            return None
        sizes = [tensor.numel() for tensor in tensors]

        def value(point: torch.Tensor) -> torch.Tensor:
            parts = [part.view_as(like) for part, like in zip(point.split(sizes), tensors, strict=True)]
            leaves = list(self.leaves)
            for place, part in zip(places, parts[len(names) :], strict=True):
                leaves[place] = part
            outputs = self.outputs(dict(zip(names, parts, strict=False)), leaves)
            return sum((a * out + b * out**2).sum() for (a, b), out in zip(weights, outputs, strict=True))

        point = torch.cat([tensor.reshape(-1) for tensor in tensors])
        depends = value(point.clone().requires_grad_()).requires_grad
        return (differentiated(value, sizes), point) if depends else None


def differentiated(value: Callable[[torch.Tensor], torch.Tensor], sizes: list[int]) -> Function:
    """`value`, a scalar function of a vector, with its derivatives by double backward."""

    def graph(point, **options):
        point = point.detach().requires_grad_()
        result = value(point)
        return point, result, torch.autograd.grad(result, point, materialize_grads=True, **options)[0]

    def value_and_gradient(point):
        _, result, gradient = graph(point)
        return result.detach(), gradient

    def linearize(point):
        leaf, _, gradient = graph(point, create_graph=True)

        def product(vector):
            if not gradient.requires_grad:
                return torch.zeros_like(leaf)
            return torch.autograd.grad(gradient, leaf, vector, retain_graph=True, materialize_grads=True)[0]

        return product

    return Function(value_and_gradient, linearize, sizes)


def calls(model: nn.Module, inputs: Inputs) -> list[Call]:
    """The first call of each module in an evaluation of `model`, parts before the wholes that hold them."""
    found: dict[str, Call] = {}
    handles = []
    for name, module in model.named_modules():

        def keep(module, args, kwargs, name=name):
            if name not in found:
                found[name] = Call(name, module, args, kwargs)

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        called(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in _parts_first(model) if name in found]


def _parts_first(model: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in model.named_children():
        yield from _parts_first(child, f"{prefix}.{name}" if prefix else name)
    yield prefix


def random_culprit(model: nn.Module, inputs: Inputs) -> Call | None:
    """The smallest module of `model` whose outputs differ from one evaluation to the next."""
    for call in calls(model, inputs):
        first, *others = (call.outputs() for _ in range(N_EVALUATIONS))
        if any(not torch.allclose(a, b, 1e-9, 1e-12) for other in others for a, b in zip(first, other, strict=True)):
            return call
    return None


def derivative_culprit(
    model: nn.Module, inputs: Inputs, wrong: Callable, generator: torch.Generator
) -> tuple[Call, str] | None:
    """The smallest module of `model` of which ``wrong(function, point, generator)`` says something, and what it says.

    `function` is a `Function` made of the module's outputs, `point` where it is called.
    """
    for call in calls(model, inputs):
        try:
            part = call.function(generator)
        except Exception:  # it cannot be called by itself; what is wrong is then found in what it is part of
            continue
        found = part and verdict(call, part, wrong, generator)
        if found:
            return found
    return None


def verdict(name, part: tuple[Function, torch.Tensor], wrong: Callable, generator: torch.Generator):
    """`name` and what ``wrong`` says of a function at a point, or that it has no double backward; None if nothing."""
    try:
        what = wrong(*part, generator)
    except Exception as error:
        what = f"do not exist ({first_line(error)})" if is_missing(error) else ""
    return (name, what) if what else None


def is_missing(error: Exception) -> bool:
    """Whether an operation has no double backward."""
    return any(text in str(error) for text in ("is not implemented", "differentiate twice", "double backward"))


def _is_floating(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
