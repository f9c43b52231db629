"""The closed forms of the one-hidden-layer network are those of autograd, and are chosen only where they hold."""

from functools import partial

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import NetworkObjective, fastest_objective
from landscape import Objective

N_ROWS, N_VECTORS = 4, 3

SCHEDULES = {
    "triangle": lambda n: dynloss.TriangleSchedule(n, 30, 50),
    "sine": lambda n: dynloss.SineSchedule(n, 30, 50),
    "square": lambda n: dynloss.SquareSchedule(n, 30, 50),
    "random order": lambda n: dynloss.SineSchedule(n, 30, 50, order="random", seed=2),
    "static tail": lambda n: dynloss.StaticTail(dynloss.TriangleSchedule(n, 30, 50), start=40),
    "decaying amplitude": lambda n: dynloss.DecayingAmplitude(dynloss.TriangleSchedule(n, 30, 50), time=30),
    "function": lambda n: dynloss.FunctionSchedule(lambda t: 2 + np.sin(t[..., None] + np.arange(n)), n),
}
DYNAMICAL = {
    "dynamical cross entropy": dynloss.DynamicalCrossEntropy,
    "dynamical squared error by sample": partial(dynloss.DynamicalSquaredError, weighting="sample"),
    "dynamical squared error by component": partial(dynloss.DynamicalSquaredError, weighting="component"),
}
LOSSES = {
    "cross entropy": dynloss.CrossEntropy,
    "squared error by sample": partial(dynloss.SquaredError, weighting="sample"),
    "squared error by component": partial(dynloss.SquaredError, weighting="component"),
    **{name: partial(kind, amplitude=30, period=50) for name, kind in DYNAMICAL.items()},
}
"""Number of classes → loss."""


def case(n_inputs, width, n_classes, loss, dtype=torch.float64):
    """Both objectives of one network, and θ and vectors near its initial parameters."""
    rng = np.random.default_rng([n_inputs, width, n_classes])
    model = dynloss.mlp(n_inputs, width, n_classes, seed=3, dtype=dtype)
    loss = LOSSES[loss](n_classes) if isinstance(loss, str) else loss
    inputs = torch.from_numpy(rng.standard_normal((37, n_inputs)))
    targets = torch.from_numpy(rng.integers(n_classes, size=37))  # classes of unequal size
    objectives = NetworkObjective(model, loss, inputs, targets), Objective(model, loss, inputs, targets)
    n = objectives[0].n_params
    params = objectives[0].layout.flatten_model(model).double() + torch.from_numpy(rng.standard_normal((N_ROWS, n)))
    vectors = torch.from_numpy(rng.standard_normal((N_ROWS, N_VECTORS, n)))
    return *objectives, params.to(dtype), vectors.to(dtype)


sizes = pytest.mark.parametrize(("n_inputs", "width", "n_classes"), [(2, 12, 3), (1, 5, 2), (7, 1, 3), (4, 30, 10)])
losses = pytest.mark.parametrize("loss", LOSSES)


def assert_equal(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@sizes
@losses
def test_closed_forms_are_those_of_autograd(n_inputs, width, n_classes, loss):
    closed, autograd, params, vectors = case(n_inputs, width, n_classes, loss)
    steps = np.array([0, 12, 49, 80])
    for found, expected in zip(
        closed.value_and_gradient(params, steps), autograd.value_and_gradient(params, steps), strict=True
    ):
        assert_equal(found, expected)
    assert_equal(closed.gradient(params, 7), autograd.gradient(params, 7))
    assert_equal(closed.losses(params, steps), autograd.losses(params, steps))
    assert_equal(closed.terms(params), autograd.terms(params))
    products, expected = closed.linearize(params, steps), autograd.hvp(params, vectors, steps)
    assert_equal(products(vectors), expected)
    for j in range(N_VECTORS):
        assert_equal(products(vectors[:, j]), expected[:, j])
    inputs = torch.randn(11, n_inputs, dtype=torch.float64)
    assert_equal(closed.outputs(params, inputs), autograd.outputs(params, inputs))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss", DYNAMICAL)
def test_closed_forms_are_those_of_autograd_under_every_schedule(loss, schedule):
    loss = DYNAMICAL[loss](3, schedule=SCHEDULES[schedule](3))
    closed, autograd, params, vectors = case(2, 9, 3, loss)
    steps = np.array([7, 25, 38, 71])
    assert (np.ptp(loss.class_weights(steps).numpy(), axis=1) > 0).any()
    for found, expected in zip(
        closed.value_and_gradient(params, steps), autograd.value_and_gradient(params, steps), strict=True
    ):
        assert_equal(found, expected)
    assert_equal(closed.losses(params, steps), autograd.losses(params, steps))
    assert_equal(closed.hvp(params, vectors, steps), autograd.hvp(params, vectors, steps))


@losses
@pytest.mark.parametrize("kind", [NetworkObjective, Objective])
def test_an_objective_over_other_samples_is_that_of_them_and_the_first_one_stays_as_it_was(loss, kind):
    first = case(2, 9, 3, loss)[0 if kind is NetworkObjective else 1]
    params, vectors = case(2, 9, 3, loss)[2:]
    rng = np.random.default_rng(1)
    inputs, targets = torch.from_numpy(rng.standard_normal((11, 2))), torch.from_numpy(rng.integers(3, size=11))
    before = [tensor.clone() for tensor in (*first.value_and_gradient(params, 21), first.hvp(params, vectors, 21))]

    other = first.on(inputs, targets)
    assert type(other) is kind
    theta = params[1].clone().requires_grad_()
    outputs = torch.func.functional_call(first.model, first.layout.unflatten(theta), (inputs,))
    expected = first.loss_fn(outputs, targets, 21)
    np.testing.assert_allclose(other.loss(params[1], 21), expected.detach(), rtol=1e-12)
    (gradient,) = torch.autograd.grad(expected, theta, create_graph=True)
    assert_equal(other.gradient(params[1], 21), gradient.detach())
    (product,) = torch.autograd.grad(gradient, theta, vectors[1, 0])
    assert_equal(other.hvp(params[1], vectors[1, 0], 21), product)

    after = [*first.value_and_gradient(params, 21), first.hvp(params, vectors, 21)]
    assert all(map(torch.equal, after, before))
    assert first.n_params == other.n_params
    one = other.on(inputs[:1], targets[:1])  # a single sample, of a single class
    assert_equal(one.losses(params, 21), first.on(inputs[[0, 0]], targets[[0, 0]]).losses(params, 21))


@pytest.mark.parametrize("kind", [NetworkObjective, Objective])
@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=int), "equally many samples, at least one; got 3 and 2"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=int), "at least one; got 0 and 0"),
        (torch.full((1, 2), torch.nan), torch.zeros(1, dtype=int), "NaN or inf"),
    ],
)
def test_other_samples_are_checked_like_the_first(kind, inputs, targets, message):
    objective = kind(dynloss.mlp(2, 5, 3), dynloss.CrossEntropy(3), *dynloss.spiral(5, 3))
    with pytest.raises(ValueError, match=message):
        objective.on(inputs, targets)


@sizes
@losses
def test_one_vector_of_params_is_the_first_row_of_a_stack(n_inputs, width, n_classes, loss):
    closed, autograd, params, vectors = case(n_inputs, width, n_classes, loss)
    params, vectors = params[1], vectors[1]
    for found, expected in zip(
        closed.value_and_gradient(params, 13), autograd.value_and_gradient(params, 13), strict=True
    ):
        assert_equal(found, expected)
    assert_equal(closed.loss(params, 13), autograd.loss(params, 13))
    assert_equal(closed.hvp(params, vectors[0], 13), autograd.hvp(params, vectors[0], 13))
    inputs = torch.randn(11, n_inputs, dtype=torch.float64)
    assert_equal(closed.outputs(params, inputs), autograd.outputs(params, inputs))
    assert_equal(closed.hvp(params.numpy(), vectors[0].numpy(), 13), autograd.hvp(params, vectors[0], 13))


@losses
def test_hessian_is_that_of_double_backward_through_the_module(loss):
    closed, _, params, _ = case(2, 6, 3, loss)
    model, ((inputs, targets),) = closed.model, closed.batches

    def value(theta):
        outputs = torch.func.functional_call(model, closed.layout.unflatten(theta), (inputs,))
        return closed.loss_fn(outputs, targets, 21)

    dense = torch.autograd.functional.hessian(value, params[2])
    columns = closed.linearize(params[2:3], 21)(torch.eye(len(dense), dtype=torch.float64)[None])[0]
    assert_equal(columns, dense, 1e-11)


@losses
def test_planes_are_those_of_autograd(loss):
    closed, autograd, params, _ = case(2, 12, 3, loss)
    grid = np.linspace(-1, 1, 7), np.linspace(-2, 0, 6)
    planes = [objective.plane_losses(params[0], params[1:3], *grid, 9) for objective in (closed, autograd)]
    assert_equal(*planes)


@sizes
@pytest.mark.parametrize("loss", DYNAMICAL)
def test_float32_agrees_to_its_own_precision(n_inputs, width, n_classes, loss):
    closed, _, params, vectors = case(n_inputs, width, n_classes, loss, torch.float32)
    _, autograd, *_ = case(n_inputs, width, n_classes, loss)
    steps = [0, 12, 49, 80]
    for found, expected in [
        (closed.gradient(params, steps), autograd.gradient(params.double(), steps)),
        (closed.losses(params, steps), autograd.losses(params.double(), steps)),
        (closed.hvp(params, vectors, steps), autograd.hvp(params.double(), vectors.double(), steps)),
    ]:
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@losses
def test_a_saturated_network_has_no_nan(loss):
    closed, autograd, params, vectors = case(2, 12, 3, loss)
    params = 300 * params  # outputs of some 1e5, probabilities of exactly 0 and 1
    assert_equal(closed.losses(params, 5), autograd.losses(params, 5))
    assert_equal(closed.gradient(params, 5), autograd.gradient(params, 5))
    assert closed.hvp(params, vectors, 5).isfinite().all()


@pytest.mark.parametrize(("params", "vectors"), [(0, (4,)), (0, (4, 3, 1)), (None, (5, 3)), (None, (3,))])
def test_vectors_that_do_not_fit_are_refused(params, vectors):
    closed, _, theta, _ = case(2, 12, 3, "dynamical cross entropy")
    theta = theta if params is None else theta[params]
    with pytest.raises(ValueError, match="do not fit params"):
        closed.hvp(theta, torch.zeros(*vectors[:-1], vectors[-1]), 0)


class OtherLoss(dynloss.CrossEntropy):
    """Twice a cross entropy, so that the closed form would be wrong for it."""

    def terms(self, outputs, targets):
        return 2 * super().terms(outputs, targets)


class OtherCall(dynloss.DynamicalSquaredError):
    """A squared error and something more."""

    def __call__(self, outputs, targets, step):
        return super().__call__(outputs, targets, step) + outputs.mean()


def frozen():
    model = dynloss.mlp(2, 6, 3)
    model.hidden.bias.requires_grad_(False)
    return model


def with_tanh():
    model = dynloss.mlp(2, 6, 3)
    model.activation = torch.nn.Tanh()
    return model


def without_bias():
    model = dynloss.mlp(2, 6, 3)
    model.output = torch.nn.Linear(6, 3, bias=False, dtype=torch.float64)
    return model


def with_dropout():
    return dynloss.mlp(2, 6, 3).append(torch.nn.Dropout(0.5)).eval()


def sequential():
    return torch.nn.Sequential(*dynloss.mlp(2, 6, 3))


def plain_cross_entropy(outputs, targets, step):
    return torch.nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (frozen(), dynloss.CrossEntropy(3)),
        (with_tanh(), dynloss.CrossEntropy(3)),
        (without_bias(), dynloss.CrossEntropy(3)),
        (with_dropout(), dynloss.CrossEntropy(3)),
        (sequential(), dynloss.CrossEntropy(3)),
        (dynloss.mlp(2, 6, 3), plain_cross_entropy),
        (dynloss.mlp(2, 6, 3), OtherLoss(3)),
        (dynloss.mlp(2, 6, 3), OtherCall(3, 5, 10)),
        (with_tanh(), dynloss.DynamicalSquaredError(3, 5, 10, weighting="component")),
    ],
    ids=[
        *["frozen bias", "tanh", "no bias", "a layer more", "sequential", "function as loss", "other terms"],
        *["other call", "tanh, squared error"],
    ],
)
def test_every_other_model_or_loss_gets_the_generic_objective_and_its_own_values(model, loss):
    data = dynloss.spiral(9, 3, seed=0)
    objective = fastest_objective(model, loss, *data)
    assert type(objective) is Objective
    expected = torch.autograd.grad(
        loss(model(data.inputs), data.targets, 0), [p for p in model.parameters() if p.requires_grad]
    )
    found = objective.gradient(objective.layout.flatten_model(model), 0)
    assert_equal(found, torch.cat([tensor.reshape(-1) for tensor in expected]))


class OtherWeights(dynloss.CrossEntropy):
    """A cross entropy that counts the first class only."""

    def class_weights(self, step):
        return torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64).expand(*torch.as_tensor(step).shape, 3)


def test_a_cross_entropy_with_class_weights_of_its_own_gets_the_closed_form_with_them():
    model, data = dynloss.mlp(2, 6, 3), dynloss.spiral(9, 3, seed=0)
    closed = fastest_objective(model, OtherWeights(3), *data)
    assert type(closed) is NetworkObjective
    params = closed.layout.flatten_model(model)
    first = data.inputs[data.targets == 0], data.targets[data.targets == 0]
    assert_equal(closed.gradient(params, 5), Objective(model, plain_cross_entropy, *first).gradient(params, 5))


@losses
def test_the_network_gets_the_closed_form_for_every_loss_of_this_package(loss):
    objective = fastest_objective(dynloss.mlp(2, 6, 3), LOSSES[loss](3), *dynloss.spiral(9, 3, seed=0))
    assert type(objective) is NetworkObjective
    assert objective.kernel != Objective.kernel
