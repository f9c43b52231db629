"""The closed forms of the one-hidden-layer network are those of autograd, and are chosen only where they hold."""

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import NetworkObjective, fastest_objective
from landscape import Objective

N_ROWS, N_VECTORS = 4, 3


def case(n_inputs, width, n_classes, dynamical, dtype=torch.float64):
    """Both objectives of one network, and θ and vectors near its initial parameters."""
    rng = np.random.default_rng([n_inputs, width, n_classes])
    model = dynloss.mlp(n_inputs, width, n_classes, seed=3, dtype=dtype)
    loss = dynloss.DynamicalCrossEntropy(n_classes, 30, 50) if dynamical else dynloss.CrossEntropy(n_classes)
    inputs = torch.from_numpy(rng.standard_normal((37, n_inputs)))
    targets = torch.from_numpy(rng.integers(n_classes, size=37))  # classes of unequal size
    objectives = NetworkObjective(model, loss, inputs, targets), Objective(model, loss, inputs, targets)
    n = objectives[0].n_params
    params = objectives[0].layout.flatten_model(model).double() + torch.from_numpy(rng.standard_normal((N_ROWS, n)))
    vectors = torch.from_numpy(rng.standard_normal((N_ROWS, N_VECTORS, n)))
    return *objectives, params.to(dtype), vectors.to(dtype)


sizes = pytest.mark.parametrize(("n_inputs", "width", "n_classes"), [(2, 12, 3), (1, 5, 2), (7, 1, 3), (4, 30, 10)])
losses = pytest.mark.parametrize("dynamical", [False, True], ids=["static", "dynamical"])


def assert_equal(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@sizes
@losses
def test_closed_forms_are_those_of_autograd(n_inputs, width, n_classes, dynamical):
    closed, autograd, params, vectors = case(n_inputs, width, n_classes, dynamical)
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


@sizes
@losses
def test_one_vector_of_params_is_the_first_row_of_a_stack(n_inputs, width, n_classes, dynamical):
    closed, autograd, params, vectors = case(n_inputs, width, n_classes, dynamical)
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
def test_hessian_is_that_of_double_backward_through_the_module(dynamical):
    closed, _, params, _ = case(2, 6, 3, dynamical)
    model, ((inputs, targets),) = closed.model, closed.batches

    def loss(theta):
        outputs = torch.func.functional_call(model, closed.layout.unflatten(theta), (inputs,))
        return closed.loss_fn(outputs, targets, 21)

    dense = torch.autograd.functional.hessian(loss, params[2])
    columns = closed.linearize(params[2:3], 21)(torch.eye(len(dense), dtype=torch.float64)[None])[0]
    assert_equal(columns, dense, 1e-11)


@losses
def test_planes_are_those_of_autograd(dynamical):
    closed, autograd, params, _ = case(2, 12, 3, dynamical)
    grid = np.linspace(-1, 1, 7), np.linspace(-2, 0, 6)
    planes = [objective.plane_losses(params[0], params[1:3], *grid, 9) for objective in (closed, autograd)]
    assert_equal(*planes)


@sizes
def test_float32_agrees_to_its_own_precision(n_inputs, width, n_classes):
    closed, _, params, vectors = case(n_inputs, width, n_classes, True, torch.float32)
    _, autograd, *_ = case(n_inputs, width, n_classes, True)
    steps = [0, 12, 49, 80]
    for found, expected in [
        (closed.gradient(params, steps), autograd.gradient(params.double(), steps)),
        (closed.losses(params, steps), autograd.losses(params.double(), steps)),
        (closed.hvp(params, vectors, steps), autograd.hvp(params.double(), vectors.double(), steps)),
    ]:
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_saturated_network_has_no_nan():
    closed, autograd, params, vectors = case(2, 12, 3, True)
    params = 300 * params  # outputs of some 1e5, probabilities of exactly 0 and 1
    assert_equal(closed.losses(params, 5), autograd.losses(params, 5))
    assert_equal(closed.gradient(params, 5), autograd.gradient(params, 5))
    assert closed.hvp(params, vectors, 5).isfinite().all()


@pytest.mark.parametrize(("params", "vectors"), [(0, (4,)), (0, (4, 3, 1)), (None, (5, 3)), (None, (3,))])
def test_vectors_that_do_not_fit_are_refused(params, vectors):
    closed, _, theta, _ = case(2, 12, 3, True)
    theta = theta if params is None else theta[params]
    with pytest.raises(ValueError, match="do not fit params"):
        closed.hvp(theta, torch.zeros(*vectors[:-1], vectors[-1]), 0)


class OtherLoss(dynloss.CrossEntropy):
    """Twice a cross entropy, so that the closed form would be wrong for it."""

    def terms(self, outputs, targets):
        return 2 * super().terms(outputs, targets)


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
    ],
    ids=["frozen bias", "tanh", "no bias", "a layer more", "sequential", "function as loss", "subclass of the loss"],
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


@pytest.mark.parametrize("loss", [dynloss.CrossEntropy(3), dynloss.DynamicalCrossEntropy(3, 5, 10)])
def test_the_network_with_a_cross_entropy_gets_the_closed_form(loss):
    objective = fastest_objective(dynloss.mlp(2, 6, 3), loss, *dynloss.spiral(9, 3, seed=0))
    assert type(objective) is NetworkObjective
    assert objective.kernel != Objective.kernel
