"""The check that an objective's Hessian products are right, made once, when they are first asked for."""

from __future__ import annotations

import copy
import hashlib
import warnings
from contextlib import nullcontext
from itertools import islice

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from landscape.culprit import derivative_culprit, differentiated, random_culprit
from landscape.finite_differences import Function, asymmetry, defect, scattered, unit_direction
from landscape.model_copy import duplicate, first_line, is_recurrent, twice_differentiable

N_SAMPLES = (8, 2, 2, 2)  # in each try: fewer samples have fewer kinks
MANY_PARAMS = 10_000  # of a model that takes 2 samples from the first try on, so that the check stays quick
N_BATCHES = 8  # compared between two passes over the data
N_EVALUATIONS = 16  # of a loss that draws random numbers


def self_check(objective, params: torch.Tensor, step) -> bool:
    """See that the Hessian products of `objective` near `params` are right; False if nothing there is finite.

    On at most 8 samples of the first batch and a float64 copy of the model: the loss is the same when evaluated again,
    Hv agrees with differences of gradients, the gradient with differences of the loss, ⟨u, Hv⟩ with ⟨v, Hu⟩, also in
    the objective's own type, and stacked params give what single ones give; where they do not, the objective
    evaluates rows one by one from now on. Batches are the same in a second pass. Neither the model nor torch's random
    state is changed.

    Parameters
    ----------
    objective : landscape.Objective
        Its Hessian products are those of ``linearize``.
    params : torch.Tensor
        (n,) or (E, n); the first finite row is used.
    step : int or (E,)
        The step t of F(θ, t).

    Raises
    ------
    ValueError
        In one line that names the module that fails and the remedy.

    Warns
    -----
    UserWarning
        If model or loss cannot be evaluated in float64, so that products were not compared with finite differences.
    """
    rows = params.detach().reshape(-1, objective.n_params)
    finite = rows.isfinite().all(1).nonzero().flatten().tolist()
    batch = next((batch for batch in objective.batches if len(batch[1])), None)
    if not finite or batch is None:
        return False
    point, steps = rows[finite[0]].clone(), np.array(step)
    step = int(steps if steps.ndim == 0 else steps[finite[0]])
    with torch.random.fork_rng(devices=_cuda(objective)), torch.enable_grad():
        _refuse_changing_batches(objective)
        probes = _probes(objective, batch, point, step)
        if not torch.equal(point, rows[finite[0]]):
            raise ValueError("the model writes to its parameters in its forward pass; let it compute with copies")
        mode, doubles = _in_double(probes, point, step)
        generator = torch.Generator().manual_seed(0)
        with mode:
            checked = _refuse_wrong_products(doubles or probes, bool(doubles), point, step, generator)
            objective.vmaps &= _stacks_as_rows((doubles or probes)[-1], point, step, generator)
        if objective.dtype != torch.float64:
            _refuse_asymmetry(probes[0], point, step, generator)
    return checked


def _cuda(objective) -> list[torch.device]:
    return [objective.device] if objective.device.type == "cuda" else []


def _refuse_changing_batches(objective) -> None:
    batches = getattr(objective.batches, "batches", objective.batches)
    if isinstance(batches, (list, tuple)):
        return
    first, second = ([_digest(batch) for batch in islice(iter(batches), N_BATCHES)] for _ in range(2))
    if first != second:
        raise ValueError(
            "the batches are others in a second pass over them, so that the loss is not a function of the parameters "
            "alone; give a DataLoader shuffle=False and no random transforms"
        )


def _digest(batch) -> bytes:
    digest = hashlib.blake2b()
    for tensor in batch:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def _probes(objective, batch, point, step) -> list:
    """Objectives like this one with a model of their own, over a few samples, one for each try."""
    private = copy.copy(objective)
    private.check, private.model = False, duplicate(objective.model)
    if private.product == "auto":  # the other ways are compared with this one
        private.product = "kept graph"
    inputs, targets = batch
    try:
        counts = [2 if objective.n_params > MANY_PARAMS else n for n in N_SAMPLES]
        probes = [_over(private, inputs[:n], targets[:n]) for n in counts]
        for probe in probes[:2]:
            _loss(probe, point, step)
    except Exception:  # what lies along the first dim of this batch are no samples: take all of it
        probes = [_over(private, inputs, targets)] * len(N_SAMPLES)
        _loss(probes[0], point, step)
    return probes


def _loss(probe, point, step) -> torch.Tensor:
    return probe.value_and_gradient(point, step)[0]  # with a graph, as some models differentiate by their inputs


def _over(objective, inputs, targets):
    other = copy.copy(objective)
    other.batches = [(inputs, targets)]
    return other


def _in_double(probes: list, point, step):
    """The probes in float64 and the mode to evaluate them in; none, with a warning, if they cannot be evaluated."""
    model, loss_fn = duplicate(probes[0].model).double(), probes[0].loss_fn
    if isinstance(loss_fn, torch.nn.Module):
        loss_fn = copy.deepcopy(loss_fn).double()
    doubles = [copy.copy(probe) for probe in probes]
    for double in doubles:
        double.model, double.loss_fn, double.dtype = model, loss_fn, torch.float64
    if probes[0].dtype == torch.float64:
        return nullcontext(), doubles
    expected, reason = _loss(probes[0], point, step).double(), "its loss is another one there"
    for mode in (nullcontext(), _Double()):
        try:
            with mode:
                loss = _loss(doubles[0], point, step)
            if torch.isclose(loss, expected, 0.05, 1e-3, equal_nan=True):
                return mode, doubles
        except Exception as error:
            reason = first_line(error)
    warnings.warn(
        f"Hessian products were not compared with finite differences, since the model or its loss cannot be evaluated "
        f"in float64 ({reason}); only their symmetry and that the loss repeats itself were checked",
        stacklevel=5,
    )
    return nullcontext(), []


class _Double(TorchFunctionMode):
    """Float64 wherever code asks for a shorter type by name, or by default."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return tree_map(_doubled, func(*args, **kwargs))


def _doubled(leaf):
    if isinstance(leaf, torch.Tensor):
        return leaf.double() if leaf.is_floating_point() else leaf
    return torch.float64 if leaf in (torch.float32, torch.float16, torch.bfloat16) else leaf


def _refuse_wrong_products(probes: list, compare: bool, point, step, generator) -> bool:
    """Whether the products could be checked; ValueError where they, or the loss, are not those of a function."""
    point = point.to(probes[0].dtype)
    _refuse_other_parameters(probes[0], point, step)
    if not all(tensor.isfinite().all() for tensor in probes[0].value_and_gradient(point, step)):
        _refuse_hidden_parameters(probes[0], point, step)
        return False
    _refuse_randomness(probes[0], point, step)
    _refuse_training_differences(probes[0], point, step)
    if not compare:
        return True
    what = defect((_function(probe, step) for probe in probes), point, generator)
    if what:
        raise ValueError(f"Hessian products are wrong: {_blamed(probes[0], point, step, what, generator)}")
    return what is not None


def _function(objective, step) -> Function:
    return Function(
        lambda point: objective.value_and_gradient(point, step),
        lambda point: objective.linearize(point, step),
        _sizes(objective),
    )


def _sizes(objective) -> list[int]:
    return [size for size in objective.layout.sizes if size]


def _refuse_hidden_parameters(probe, point, step) -> None:
    own = copy.copy(probe)
    own.model = _loaded(probe, point)
    if all(tensor.isfinite().all() for tensor in own.value_and_gradient(point, step)):
        raise ValueError(
            "the model reads parameters from elsewhere than its modules; register them (torch.nn.ParameterList), and "
            "switch activation checkpointing off, whose second forward pass reads the model's own"
        )


def _loaded(objective, point) -> torch.nn.Module:
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
    loss = probe.loss_fn(probe.outputs(leaf, _inputs(probe)), probe.as_inputs(probe.batches[0][1]), step)
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if isinstance(getattr(node, "variable", None), torch.nn.Parameter):
            raise ValueError(
                f"the loss depends on a parameter of shape {tuple(node.variable.shape)} that is not the objective's "
                "and stays constant; compute penalties on weights in the forward pass, detach what is fixed"
            )


def _refuse_randomness(probe, point, step) -> None:
    before = _random_state(probe)
    losses = [_loss(probe, point, step) for _ in range(3)]
    if any(not torch.equal(a, b) for a, b in zip(before, _random_state(probe), strict=True)):
        losses += [_loss(probe, point, step) for _ in range(N_EVALUATIONS)]
    if _differ(losses):
        with twice_differentiable(is_recurrent(probe.model)):
            found = random_culprit(_loaded(probe, point), _inputs(probe))
        raise ValueError(
            f"the loss is another one when evaluated again: {found or 'the model or its loss'} draws random numbers "
            "or remembers past evaluations; call model.eval() first, or make it deterministic"
        )


def _random_state(objective) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _cuda(objective))]


def _differ(losses: list[torch.Tensor]) -> bool:
    """Whether losses differ by more than the rounding of several threads."""
    rtol = max(1e-9, 100 * torch.finfo(losses[0].dtype).eps)
    return not all(torch.isclose(loss, losses[0], rtol, 1e-12, equal_nan=True) for loss in losses)


def _inputs(probe) -> torch.Tensor:
    return probe.as_inputs(probe.batches[0][0])


def _refuse_training_differences(probe, point, step) -> None:
    """Modules that are not torch's own and compute something else in training mode."""
    training = [(name, module) for name, module in probe.model.named_modules() if module.training]
    if not training:
        return
    expected, other = _loss(probe, point, step), copy.copy(probe)
    other.model = duplicate(probe.model).eval()
    if not _differ([expected, _loss(other, point, step)]):
        return
    blamed = "the model"
    for name, module in reversed(training):
        module.training = False
        if _differ([expected, _loss(probe, point, step)]):
            blamed = f"{name or 'the model'} ({type(module).__name__})"
            break
    raise ValueError(f"{blamed} computes something else in training mode; call model.eval() first")


def _blamed(probe, point, step, what: str, generator) -> str:
    """The module that is wrong by itself, or the loss, and what is wrong with it, as words with the remedy."""
    point = scattered(point, _sizes(probe), generator)
    model, inputs = _loaded(probe, point), _inputs(probe)
    with twice_differentiable(is_recurrent(model)):
        found = derivative_culprit(model, inputs, generator)
        if found is None:
            outputs, targets = model(inputs).detach(), probe.as_inputs(probe.batches[0][1])
            loss = differentiated(lambda z: probe.loss_fn(z.view_as(outputs), targets, step), [outputs.numel()])
            of_loss = defect([loss] * len(N_SAMPLES), outputs.flatten(), generator)
            found = ("the loss", of_loss) if of_loss else ("the model as a whole", what)
    return (
        f"those of {found[0]} {found[1]}; write it with differentiable torch operations "
        "(v * (g / v.norm()) for torch._weight_norm)"
    )


def _stacks_as_rows(probe, point, step, generator) -> bool:
    """Whether gradients of stacked params by vmap are those of each row; ValueError if they are not without it."""
    probe, point = copy.copy(probe), point.to(probe.dtype)
    points = torch.stack([point, scattered(point, _sizes(probe), generator)])
    expected = torch.stack([probe.gradient(p, step) for p in points])
    tolerance = 1e3 * torch.finfo(probe.dtype).eps ** 0.75 * expected.norm() + 1e-12  # 2e-9 of it, 6e-3 in float32
    try:
        if not (probe.gradient(points, step) - expected).norm() > tolerance:
            return True
        probe.vmaps = False
        if not (probe.gradient(points, step) - expected).norm() > tolerance:
            return False
    except Exception:  # said where stacked params are first given
        return True
    raise ValueError("losses of stacked params are not those of each row; the loss's terms do not work under vmap")


def _refuse_asymmetry(probe, point, step, generator) -> None:
    """ValueError if products in the objective's own type are not symmetric at any of several points."""
    function = _function(probe, step)
    for near in (point, *(scattered(point, function.sizes, generator) for _ in range(2))):
        vectors = [unit_direction(near, function.sizes, generator) for _ in range(2)]
        product = function.linearize(near)
        products = [product(vector) for vector in vectors]
        if not asymmetry(function, near, vectors, products) > 1:
            return
    raise ValueError(
        f"Hessian products are not symmetric in {str(probe.dtype).removeprefix('torch.')}, though they are in float64; "
        "give dtype=torch.float64"
    )
