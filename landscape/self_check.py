"""The check that an objective's Hessian products are right, made once, when they are first asked for."""

from __future__ import annotations

import copy
import hashlib
import warnings
from contextlib import nullcontext
from itertools import islice

import numpy as np
import torch

from landscape.culprit import derivative_culprit, differentiated, is_missing, verdict
from landscape.double import Double
from landscape.finite_differences import Function, defect, is_asymmetric, scattered, unit_direction
from landscape.model_copy import duplicate, first_line, is_recurrent, twice_differentiable
from landscape.purity import cuda_devices, loaded, loss, plain_loss, refuse_impure, samples
from landscape.samples import called, parts, take

SAMPLES = (slice(8), slice(2), slice(2, 4), slice(4, 6))  # of each try: fewer samples have fewer kinks
MANY_PARAMS = 10_000  # of a model that takes 2 samples from the first try on, so that the check stays quick
N_BATCHES = 8  # compared between two passes over the data
N_TRIES = 3  # for each part of a model that fails


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
    if not finite:
        return False
    point, steps = rows[finite[0]].clone(), np.array(step)
    step = int(steps if steps.ndim == 0 else steps[finite[0]])
    with torch.random.fork_rng(devices=cuda_devices(objective)), torch.enable_grad():
        batch = next((batch for batch in objective.batches if len(batch[1])), None)
        if batch is None:
            return False
        _refuse_changing_batches(objective)
        probes = _probes(objective, batch, point, step)
        if not torch.equal(point, rows[finite[0]]):
            raise ValueError("the model writes to its parameters in its forward pass; let it compute with copies")
        if not refuse_impure(probes[0], point, step):
            return False
        mode, doubles = _in_double(probes, point, step)
        generator = torch.Generator().manual_seed(0)
        with mode:
            checked = not doubles or _refuse_wrong_products(doubles, point, step, generator)
            objective.vmaps &= _stacks_as_rows((doubles or probes)[0], point, step, generator)
        if objective.dtype != torch.float64:
            _refuse_asymmetry(probes[0], point, step, generator)
    return checked


def _refuse_changing_batches(objective) -> None:
    if isinstance(getattr(objective.batches, "batches", objective.batches), (list, tuple)):
        return
    first, second = ([_digest(batch) for batch in islice(iter(objective.batches), N_BATCHES)] for _ in range(2))
    if first != second:
        raise ValueError(
            "the batches are others in a second pass over them, so that the loss is not a function of the parameters "
            "alone; give a DataLoader shuffle=False and no random transforms"
        )


def _digest(batch) -> bytes:
    digest = hashlib.blake2b()
    for tensor in (*parts(batch[0]), batch[1]):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def _probes(objective, batch, point, step) -> list:
    """Objectives like this one with a model of their own, over a few samples, one for each try."""
    private = copy.copy(objective)
    private.check, private.model = False, duplicate(objective.model)
    private.product_ways, private.weight_decay = {}, 0.0
    inputs, targets = batch
    try:
        tries = [part for part in SAMPLES if len(targets[part])]
        tries[0] = slice(2) if objective.n_params > MANY_PARAMS else tries[0]
        probes = [_over(private, take(inputs, part), targets[part]) for part in tries]
        for probe in probes:
            loss(probe, point, step)
    except Exception:  # what lies along the first dim of this batch are no samples: take all of it
        probes = [_over(private, inputs, targets)] * len(SAMPLES)
        loss(probes[0], point, step)
    if objective.product == "auto" and _has_double_backward(probes[-1], point, step):
        for probe in probes:
            probe.product = "kept graph"  # the other ways are compared with this one
    return probes


def _has_double_backward(probe, point, step) -> bool:
    probe = copy.copy(probe)
    probe.product = "kept graph"
    try:
        probe.linearize(point, step)
    except Exception:  # forward mode may still serve
        return False
    return True


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
    expected, reason = loss(probes[0], point, step).double(), "its loss is another one there"
    for mode in (nullcontext(), Double()):
        try:
            with mode:
                found = loss(doubles[0], point, step)
            if torch.isclose(found, expected, 0.05, 1e-3, equal_nan=True):
                return mode, doubles
        except Exception as error:
            reason = first_line(error)
    warnings.warn(
        f"Hessian products were not compared with finite differences, since the model or its loss cannot be evaluated "
        f"in float64 ({reason}); only their symmetry and that the loss repeats itself were checked",
        stacklevel=5,
    )
    return nullcontext(), []


def _function(objective, step) -> Function:
    return Function(
        lambda point: objective.value_and_gradient(point, step),
        lambda point: objective.linearize(point, step),
        _sizes(objective),
    )


def _sizes(objective) -> list[int]:
    return [size for size in objective.layout.sizes if size]


def _refuse_wrong_products(probes: list, point, step, generator) -> bool:
    """Whether products are finite; ValueError where they do not agree with differences and a part is found guilty.

    Where no part of the model is wrong by itself, nor the loss, what differs is rounding: saturated losses and
    vanishing layers have Hessians below that of their gradients. A composition of right parts is right.
    """
    point = point.to(probes[0].dtype)
    try:
        what = defect((_function(probe, step) for probe in probes), point, generator)
    except RuntimeError as error:
        if not is_missing(error):
            raise
        what = f"do not exist ({first_line(error)})"
    if what:
        _blame(probes[0], point, step, lambda *part: defect([part[0]] * N_TRIES, *part[1:]), generator)
        if not _is_double_backward(probes[0], point, step, generator):
            raise ValueError(f"Hessian products are wrong: those of the model and its loss {what}")
    return what is not None


def _refuse_asymmetry(probe, point, step, generator) -> None:
    """ValueError if products in the objective's own type are not symmetric, and a part is found guilty."""

    def wrong(function, point, generator):
        kind = str(point.dtype).removeprefix("torch.")
        return f"are not symmetric in {kind}" if is_asymmetric(function, point, N_TRIES, generator) else ""

    if wrong(_function(probe, step), point, generator):
        _blame(probe, point, step, wrong, generator)


def _blame(probe, point, step, wrong, generator) -> None:
    """Raise ValueError if ``wrong(function, point, generator)`` says so, in words, of a module alone or of the loss."""
    model, (inputs, targets) = loaded(probe, scattered(point, _sizes(probe), generator)), samples(probe)
    with twice_differentiable(is_recurrent(model)):
        found = derivative_culprit(model, inputs, wrong, generator)
        if found is None:
            outputs = probe.answer(called(model, inputs)).detach()
            alone = differentiated(lambda z: probe.loss_fn(z.view_as(outputs), targets, step), [outputs.numel()])
            outputs = outputs / outputs.square().mean().sqrt().clamp(min=1)
            for scale in (1, 1e-2, 1e-4):  # large outputs saturate a loss, and its Hessian is then rounding
                found = verdict("the loss", (alone, scale * outputs.flatten()), wrong, generator)
                if found is None:
                    break
    if found is not None:
        raise ValueError(
            f"Hessian products are wrong: those of {found[0]} {found[1]}; write it with torch operations that can be "
            "differentiated twice, v * (g / v.norm()) for torch._weight_norm"
        )


def _is_double_backward(probe, point, step, generator) -> bool:
    """Whether the objective's products are those of a double backward through model and loss."""
    plain = differentiated(lambda params: plain_loss(probe, params, step), _sizes(probe))
    vector = unit_direction(point, _sizes(probe), generator)
    expected = plain.linearize(point)(vector)
    return bool((probe.linearize(point, step)(vector) - expected).norm() <= 1e-6 * expected.norm())


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
