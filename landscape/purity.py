"""Whether a loss is a function of its parameters alone: no randomness, no other parameters, no training mode."""

from __future__ import annotations

import copy

import torch

from landscape.culprit import N_EVALUATIONS, random_culprit
from landscape.model_copy import duplicate, is_recurrent, twice_differentiable
from landscape.samples import Inputs


def refuse_impure(probe, point: torch.Tensor, step: int) -> bool:
    """Whether loss and gradient of `probe` at `point` (n,) are finite; ValueError unless they are those of a function.

    `probe` is an objective over one batch whose model may be used up.
    """
    _refuse_other_parameters(probe, point, step)
    if not all(tensor.isfinite().all() for tensor in probe.value_and_gradient(point, step)):
        _refuse_hidden_parameters(probe, point, step)
        return False
    _refuse_randomness(probe, point, step)
    _refuse_training_differences(probe, point, step)
    return True


def loss(probe, point, step) -> torch.Tensor:
    """The loss at `point`, with a graph on the way, as some models differentiate by their inputs."""
    return probe.value_and_gradient(point, step)[0]


def plain_loss(probe, params: torch.Tensor, step) -> torch.Tensor:
    """The loss at `params` (n,) with its graph."""
    inputs, targets = samples(probe)
    return probe.loss_fn(probe.outputs(params, inputs), targets, step)


def samples(probe) -> tuple[Inputs, torch.Tensor]:
    """Inputs and targets of an objective over one batch."""
    inputs, targets = probe.batches[0]
    return probe.as_inputs(inputs), probe.as_inputs(targets)


def cuda_devices(objective) -> list[torch.device]:
    """The devices but the CPU whose random state matters."""
    return [objective.device] if objective.device.type == "cuda" else []


def _refuse_hidden_parameters(probe, point, step) -> None:
    own = copy.copy(probe)
    own.model = loaded(probe, point)
    if all(tensor.isfinite().all() for tensor in own.value_and_gradient(point, step)):
        raise ValueError(
            "the model reads parameters from elsewhere than its modules; register them (torch.nn.ParameterList), and "
            "switch activation checkpointing off, whose second forward pass reads the model's own"
        )


def loaded(objective, point) -> torch.nn.Module:
    """A copy of the model with these parameters, for evaluations without replacing them."""
    model = duplicate(objective.model)
    values, parameters = objective.layout.unflatten(point), dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return model


def _refuse_other_parameters(probe, point, step) -> None:
    """Parameters of another model in the loss, which would be constants: a penalty on the user's own weights, say."""
    leaf = point.clone().requires_grad_()
    nodes, seen = [plain_loss(probe, leaf, step).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if isinstance(getattr(node, "variable", None), torch.nn.Parameter):
            shape = tuple(node.variable.shape)
            raise ValueError(
                f"the loss depends on a parameter of shape {shape} that is not the objective's and "
                "would stay constant; compute penalties on weights in the model's forward pass, detach what is fixed"
            )


def _refuse_randomness(probe, point, step) -> None:
    before = _random_state(probe)
    losses = [loss(probe, point, step) for _ in range(3)]
    if any(not torch.equal(a, b) for a, b in zip(before, _random_state(probe), strict=True)):
        losses += [loss(probe, point, step) for _ in range(N_EVALUATIONS)]
    if _differ(losses):
        with twice_differentiable(is_recurrent(probe.model)):
            found = random_culprit(loaded(probe, point), samples(probe)[0])
        raise ValueError(
            f"the loss is another one when evaluated again: {found or 'the model or its loss'} draws random numbers "
            "or remembers past evaluations; call model.eval() first, or make it deterministic"
        )


def _random_state(objective) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda_devices(objective))]


def _differ(losses: list[torch.Tensor]) -> bool:
    """Whether losses differ by more than the rounding of several threads."""
    rtol = max(1e-9, 10 * torch.finfo(losses[0].dtype).eps)
    return not all(torch.isclose(loss, losses[0], rtol, 1e-12, equal_nan=True) for loss in losses)


def _refuse_training_differences(probe, point, step) -> None:
    """Modules that are not torch's own and compute something else in training mode."""
    training = [(name, module) for name, module in probe.model.named_modules() if module.training]
    if not training:
        return
    expected, other = loss(probe, point, step), copy.copy(probe)
    other.model = duplicate(probe.model).eval()
    if not _differ([expected, loss(other, point, step)]):
        return
    blamed = "the model"
    for name, module in reversed(training):
        module.training = False
        if _differ([expected, loss(probe, point, step)]):
            blamed = f"{name or 'the model'} ({type(module).__name__})"
            break
    raise ValueError(f"{blamed} computes something else in training mode; call model.eval() first")
