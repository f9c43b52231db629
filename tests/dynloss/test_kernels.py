"""The closed forms of the one-hidden-layer network are those of autograd, in torch and compiled by numba."""

from functools import partial

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import fastest_objective

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


KERNELS = ["closed form, torch", "closed form, numba"]
kernels = pytest.mark.parametrize("kernel", KERNELS)


def objective_of(kernel, model, loss, inputs, targets):
    if kernel == "closed form, numba":
        pytest.importorskip("numba", reason="the compiled closed forms need numba: pip install '.[fast]'")
    return fastest_objective(model, loss, inputs, targets, kernel=kernel)


def case(kernel, n_inputs, width, n_classes, loss, dtype=torch.float64):
    """Both objectives of one network, and θ and vectors near its initial parameters."""
    rng = np.random.default_rng([n_inputs, width, n_classes])
    model = dynloss.mlp(n_inputs, width, n_classes, seed=3, dtype=dtype)
    loss = LOSSES[loss](n_classes) if isinstance(loss, str) else loss
    inputs = torch.from_numpy(rng.standard_normal((37, n_inputs)))
    targets = torch.from_numpy(rng.integers(n_classes, size=37))  # classes of unequal size
    objectives = [objective_of(name, model, loss, inputs, targets) for name in (kernel, "autograd")]
    n = objectives[0].n_params
    params = objectives[0].layout.flatten_model(model).double() + torch.from_numpy(rng.standard_normal((N_ROWS, n)))
    vectors = torch.from_numpy(rng.standard_normal((N_ROWS, N_VECTORS, n)))
    return *objectives, params.to(dtype), vectors.to(dtype)


sizes = pytest.mark.parametrize(
    ("n_inputs", "width", "n_classes"), [(2, 12, 3), (1, 5, 2), (7, 1, 3), (3, 9, 7), (4, 30, 10)]
)
losses = pytest.mark.parametrize("loss", LOSSES)


def assert_equal(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@kernels
@sizes
@losses
def test_closed_forms_are_those_of_autograd(kernel, n_inputs, width, n_classes, loss):
    closed, autograd, params, vectors = case(kernel, n_inputs, width, n_classes, loss)
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


@kernels
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss", DYNAMICAL)
def test_closed_forms_are_those_of_autograd_under_every_schedule(kernel, loss, schedule):
    loss = DYNAMICAL[loss](3, schedule=SCHEDULES[schedule](3))
    closed, autograd, params, vectors = case(kernel, 2, 9, 3, loss)
    steps = np.array([7, 25, 38, 71])
    assert (np.ptp(loss.class_weights(steps).numpy(), axis=1) > 0).any()
    for found, expected in zip(
        closed.value_and_gradient(params, steps), autograd.value_and_gradient(params, steps), strict=True
    ):
        assert_equal(found, expected)
    assert_equal(closed.losses(params, steps), autograd.losses(params, steps))
    assert_equal(closed.hvp(params, vectors, steps), autograd.hvp(params, vectors, steps))
    for step in (0, 63, 64, 1000):
        assert_equal(closed.gradient(params, step), autograd.gradient(params, step))


@losses
@pytest.mark.parametrize("kernel", [*KERNELS, "autograd"])
def test_an_objective_over_other_samples_is_that_of_them_and_the_first_one_stays_as_it_was(loss, kernel):
    first, _, params, vectors = case(kernel, 2, 9, 3, loss)
    rng = np.random.default_rng(1)
    inputs, targets = torch.from_numpy(rng.standard_normal((11, 2))), torch.from_numpy(rng.integers(3, size=11))
    before = [tensor.clone() for tensor in (*first.value_and_gradient(params, 21), first.hvp(params, vectors, 21))]

    other = first.on(inputs, targets)
    assert type(other) is type(first)
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


@pytest.mark.parametrize("kernel", [*KERNELS, "autograd"])
@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=int), "equally many samples, at least one; got 3 and 2"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=int), "at least one; got 0 and 0"),
        (torch.full((1, 2), torch.nan), torch.zeros(1, dtype=int), "NaN or inf"),
    ],
)
def test_other_samples_are_checked_like_the_first(kernel, inputs, targets, message):
    objective = objective_of(kernel, dynloss.mlp(2, 5, 3), dynloss.CrossEntropy(3), *dynloss.spiral(5, 3))
    with pytest.raises(ValueError, match=message):
        objective.on(inputs, targets)


@kernels
@sizes
@losses
def test_one_vector_of_params_is_the_first_row_of_a_stack(kernel, n_inputs, width, n_classes, loss):
    closed, autograd, params, vectors = case(kernel, n_inputs, width, n_classes, loss)
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


@kernels
@losses
def test_hessian_is_that_of_double_backward_through_the_module(kernel, loss):
    closed, _, params, _ = case(kernel, 2, 6, 3, loss)
    model, ((inputs, targets),) = closed.model, closed.batches

    def value(theta):
        outputs = torch.func.functional_call(model, closed.layout.unflatten(theta), (inputs,))
        return closed.loss_fn(outputs, targets, 21)

    dense = torch.autograd.functional.hessian(value, params[2])
    columns = closed.linearize(params[2:3], 21)(torch.eye(len(dense), dtype=torch.float64)[None])[0]
    assert_equal(columns, dense, 1e-11)


@kernels
@losses
def test_gauss_newton_product_is_that_of_the_dense_jacobian_of_the_outputs(kernel, loss):
    closed, _, params, vectors = case(kernel, 2, 6, 3, loss)
    ((inputs, targets),) = closed.batches

    def outputs(theta):
        return torch.func.functional_call(closed.model, closed.layout.unflatten(theta), (inputs,)).flatten()

    for e, step in enumerate([0, 12, 49, 80]):
        jacobian = torch.autograd.functional.jacobian(outputs, params[e])
        curvature = torch.autograd.functional.hessian(
            lambda o, step=step: closed.loss_fn(o.view(len(targets), -1), targets, step), outputs(params[e])
        )
        dense = jacobian.T @ curvature @ jacobian
        assert_equal(closed.gauss_newton(params[e], step)(vectors[e, 0]), dense @ vectors[e, 0])
        assert_equal(closed.gauss_newton(params, step)(vectors)[e], vectors[e] @ dense)


@kernels
@losses
def test_planes_are_those_of_autograd(kernel, loss):
    closed, autograd, params, _ = case(kernel, 2, 12, 3, loss)
    grid = np.linspace(-1, 1, 7), np.linspace(-2, 0, 6)
    planes = [objective.plane_losses(params[0], params[1:3], *grid, 9) for objective in (closed, autograd)]
    assert_equal(*planes)


@kernels
@sizes
@pytest.mark.parametrize("loss", DYNAMICAL)
def test_float32_agrees_to_its_own_precision(kernel, n_inputs, width, n_classes, loss):
    closed, _, params, vectors = case(kernel, n_inputs, width, n_classes, loss, torch.float32)
    _, autograd, *_ = case(kernel, n_inputs, width, n_classes, loss)
    steps = [0, 12, 49, 80]
    for found, expected in [
        (closed.gradient(params, steps), autograd.gradient(params.double(), steps)),
        (closed.losses(params, steps), autograd.losses(params.double(), steps)),
        (closed.hvp(params, vectors, steps), autograd.hvp(params.double(), vectors.double(), steps)),
    ]:
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@kernels
@losses
def test_a_saturated_network_has_no_nan(kernel, loss):
    closed, autograd, params, vectors = case(kernel, 2, 12, 3, loss)
    params = 300 * params  # outputs of some 1e5, probabilities of exactly 0 and 1
    assert_equal(closed.losses(params, 5), autograd.losses(params, 5))
    assert_equal(closed.gradient(params, 5), autograd.gradient(params, 5))
    assert closed.hvp(params, vectors, 5).isfinite().all()


@kernels
@pytest.mark.parametrize(("params", "vectors"), [(0, (4,)), (0, (4, 3, 1)), (None, (5, 3)), (None, (3,))])
def test_vectors_that_do_not_fit_are_refused(kernel, params, vectors):
    closed, _, theta, _ = case(kernel, 2, 12, 3, "dynamical cross entropy")
    theta = theta if params is None else theta[params]
    with pytest.raises(ValueError, match="do not fit params"):
        closed.hvp(theta, torch.zeros(*vectors[:-1], vectors[-1]), 0)
