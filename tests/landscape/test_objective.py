"""Losses, gradients and Hessian products are those of the model itself, whatever the batches, model or loss."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dynloss
from landscape import Objective


def mean_square(outputs, targets, step):
    return (1 + step) * ((outputs - targets) ** 2).sum(1).mean()


def cross_entropy(outputs, targets, step):
    return torch.nn.functional.cross_entropy(outputs, targets)


def spiral_case():
    data = dynloss.spiral(7, 3, seed=2)
    return dynloss.mlp(2, 6, 3, seed=4), dynloss.DynamicalCrossEntropy(3, 70, 10), *data


def tanh_case():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    return model, mean_square, torch.randn(21, 3).double(), torch.randn(21, 2).double()


def conv_case():
    layers = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Tanh(), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3)).double()
    model(3 + 2 * torch.randn(50, 1, 4, 4).double())  # running mean and variance other than 0 and 1
    return model.eval(), cross_entropy, torch.randn(21, 1, 4, 4).double(), torch.randint(3, (21,))


@pytest.fixture(params=[spiral_case, tanh_case, conv_case], ids=["relu dynamical", "tanh squares", "conv batch norm"])
def case(request):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, loss_fn, inputs, targets = request.param()
        params = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        params = params + 0.3 * torch.randn(3, len(params), dtype=params.dtype)
        vectors = torch.randn(3, 4, params.shape[1], dtype=params.dtype)
    steps = np.array([3, 12, 27])
    return SimpleNamespace(
        model=model, loss_fn=loss_fn, data=(inputs, targets), params=params, steps=steps, vectors=vectors
    )


@pytest.fixture
def truths(case, oracle):
    rows = [
        oracle(case.model, case.loss_fn, *case.data, p, int(s)) for p, s in zip(case.params, case.steps, strict=True)
    ]
    return [np.stack(column) for column in zip(*rows, strict=True)]


# 21 samples: batches of 4 leave one of 1, batches of 8 one of 5.
@pytest.mark.parametrize("batch_size", [None, 4, 8, 100])
def test_loss_gradient_and_hessian_are_those_of_autograd_on_the_module(case, truths, batch_size):
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=batch_size)
    losses, gradients, hessians = truths
    np.testing.assert_allclose(objective.losses(case.params, case.steps), losses, rtol=1e-12)
    np.testing.assert_allclose(objective.gradient(case.params, case.steps), gradients, rtol=0, atol=1e-12)
    expected = np.einsum("eij,ekj->eki", hessians, case.vectors)
    np.testing.assert_allclose(
        objective.hvp(case.params, case.vectors, case.steps), expected, rtol=0, atol=1e-10 * np.abs(expected).max()
    )


def test_one_vector_of_params_gives_a_scalar_loss_and_vectors(case, truths):
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=4)
    params, step = case.params[1].numpy(), int(case.steps[1])
    loss, gradient = objective.value_and_gradient(params, step)
    assert loss.shape == objective.loss(params, step).shape == ()
    np.testing.assert_allclose([loss, objective.loss(params, step)], truths[0][1], rtol=1e-12)
    np.testing.assert_allclose(gradient, truths[1][1], rtol=0, atol=1e-12)
    expected = truths[2][1] @ case.vectors[1, 0].numpy()
    product = objective.hvp(params, case.vectors[1, 0], step)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_a_product_kept_serves_many_vectors_of_either_shape(case, truths):
    product = Objective(case.model, case.loss_fn, *case.data).linearize(case.params, case.steps)
    expected = np.einsum("eij,ekj->eki", truths[2], case.vectors)
    for k in range(4):
        np.testing.assert_allclose(product(case.vectors[:, k]), expected[:, k], atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(product(case.vectors), expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("batch_size", [None, 4])
def test_float32_agrees_to_its_own_precision(case, truths, batch_size):
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=batch_size, dtype=torch.float32)
    losses, gradients, hessians = truths
    expected = np.einsum("eij,ekj->eki", hessians, case.vectors)
    for found, exact in [
        (objective.losses(case.params, case.steps), losses),
        (objective.gradient(case.params, case.steps), gradients),
        (objective.hvp(case.params, case.vectors, case.steps), expected),
    ]:
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * np.abs(exact).max())


@pytest.mark.parametrize("with_loader", [False, True])
def test_an_iterable_of_uneven_batches_is_one_data_set(case, truths, with_loader):
    batches = list(zip(*(tensor.split([2, 9, 10]) for tensor in case.data), strict=True))
    if with_loader:
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*case.data), batch_size=8)
    objective = Objective(case.model, case.loss_fn, batches)
    np.testing.assert_allclose(objective.losses(case.params, case.steps), truths[0], rtol=1e-12)
    np.testing.assert_allclose(objective.gradient(case.params, case.steps), truths[1], rtol=0, atol=1e-12)
    expected = np.einsum("eij,ekj->eki", truths[2], case.vectors)
    products = objective.hvp(case.params, case.vectors, case.steps)
    np.testing.assert_allclose(products, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_the_model_is_never_changed(case):
    before = copy.deepcopy(case.model.state_dict())
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=8, dtype=torch.float32)
    objective.losses(case.params, case.steps)
    objective.hvp(case.params, case.vectors, case.steps)
    objective.plane_losses(case.params[0], case.params[1:], [0.0, 1.0], [0.5], 3)
    after = case.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


def test_a_forward_pass_that_writes_to_a_buffer_leaves_the_model_alone():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs):
            self.seen += 1
            return inputs @ self.weight

    model = Counting()
    objective = Objective(model, lambda o, t, s: ((o - t) ** 2).mean(), torch.ones(3, 2), torch.zeros(3))
    assert objective.loss(torch.tensor([1.0, 2.0]), 0) == 9
    assert model.seen == 0


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3), torch.nn.AlphaDropout()])
def test_training_mode_is_refused_where_it_changes_the_loss(layer):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(layer), torch.nn.Linear(3, 1))
    data = torch.randn(4, 2), torch.randn(4, 1)
    with pytest.raises(ValueError, match=rf"1\.0 \({type(layer).__name__}\) is in training mode.*model\.eval\(\)"):
        Objective(model, mean_square, *data)
    objective = Objective(model.eval(), mean_square, *data)
    params = objective.layout.flatten_model(model)
    assert objective.loss(params) == objective.loss(params)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_linear_loss_has_a_zero_hessian(batch_size):
    model, inputs = torch.nn.Linear(3, 1).double(), torch.randn(7, 3).double()
    objective = Objective(model, lambda o, t, s: o.mean(), inputs, torch.zeros(7), batch_size=batch_size)
    params, vectors = torch.randn(2, 4).double(), torch.randn(2, 5, 4).double()
    expected = np.append(inputs.mean(0), 1.0)
    np.testing.assert_allclose(objective.gradient(params, 0), [expected, expected], rtol=1e-12, atol=1e-14)
    products = objective.hvp(params, vectors, 0)
    assert products.shape == vectors.shape
    assert not products.any()


def test_linear_regression_has_the_hessian_of_its_closed_form():
    inputs, targets = torch.randn(11, 4).double(), torch.randn(11, 1).double()
    model = torch.nn.Linear(4, 1, bias=False).double()
    objective = Objective(model, lambda o, t, s: ((o - t) ** 2).mean(), inputs, targets, batch_size=4)
    columns = objective.linearize(torch.zeros(1, 4), 0)(torch.eye(4).double()[None])[0]
    X = inputs.numpy()
    np.testing.assert_allclose(columns, 2 * X.T @ X / 11, rtol=1e-12)


@pytest.mark.parametrize("change", ["frozen", "tied", "unused"])
def test_frozen_tied_and_unused_parameters_are_treated_as_autograd_treats_them(change, oracle):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    if change == "frozen":
        model[0].weight.requires_grad_(False)
    elif change == "tied":
        model[2].weight = model[0].weight
    else:
        model.register_parameter("unused", torch.nn.Parameter(torch.ones(2).double()))
    data = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    objective = Objective(model, mean_square, *data)
    assert objective.n_params == {"frozen": 15, "tied": 15, "unused": 26}[change]
    params = torch.randn(objective.n_params).double()
    loss, gradient, hessian = oracle(model, mean_square, *data, params, 1)
    np.testing.assert_allclose(objective.loss(params, 1), loss, rtol=1e-12)
    np.testing.assert_allclose(objective.gradient(params, 1), gradient, atol=1e-12 * np.abs(gradient).max())
    columns = objective.linearize(params[None], 1)(torch.eye(len(params)).double()[None])[0]
    np.testing.assert_allclose(columns, hessian, atol=1e-10 * np.abs(hessian).max())


@pytest.mark.parametrize("batch_size", [None, 4])
def test_class_weights_times_terms_is_the_loss(batch_size):
    model, loss_fn, inputs, targets = spiral_case()
    objective = Objective(model, loss_fn, inputs, targets, batch_size=batch_size)
    params, steps = torch.randn(3, objective.n_params).double(), [1, 15, 29]
    terms, weights = objective.terms(params), objective.class_weights(steps)
    assert terms.shape == weights.shape == (3, 3)
    np.testing.assert_allclose((weights * terms).sum(1), objective.losses(params, steps), rtol=1e-12)
    log_p = torch.log_softmax(copy.deepcopy(model).requires_grad_(False)(inputs), 1).numpy()
    expected = [-log_p[targets == i, i].sum() / len(targets) for i in range(3)]
    at_model = objective.terms(objective.layout.flatten_model(model)[None])[0]
    np.testing.assert_allclose(at_model, expected, rtol=1e-12)


def test_terms_need_a_loss_that_has_them():
    objective = Objective(torch.nn.Linear(2, 1), mean_square, torch.ones(3, 2), torch.ones(3, 1))
    assert not objective.has_terms
    with pytest.raises(ValueError, match=r"terms\(outputs, targets\)"):
        objective.terms(torch.zeros(1, 3))


def test_plane_losses_are_those_of_a_loop_over_the_grid(case):
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=8)
    center, directions = case.params[0], case.params[1:]
    alpha, beta = np.linspace(-1, 1, 7), np.linspace(-0.5, 1, 6)  # 42 points: more than one batch of params
    planes = objective.plane_losses(center, directions, alpha, beta, 12)
    weights = objective.class_weights(12).numpy() if objective.has_terms else np.ones(1)
    assert planes.shape == (len(weights), 7, 6)
    expected = [[objective.loss(center + a * directions[0] + b * directions[1], 12) for b in beta] for a in alpha]
    np.testing.assert_allclose(np.tensordot(weights, planes, 1), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (torch.tensor([[1.0, torch.nan]]), torch.ones(1, 1), {}, "NaN or inf"),
        (torch.tensor([[torch.inf, 1.0]]), torch.ones(1, 1), {}, "NaN or inf"),
        (torch.ones(3, 2), torch.ones(2, 1), {}, "got 3 and 2"),
        (torch.ones(0, 2), torch.ones(0, 1), {}, "at least one; got 0 and 0"),
        (torch.ones(3, 2), None, {}, "targets are missing"),
        (torch.ones(3, 2), torch.ones(3, 1), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (torch.ones(3, 2), torch.ones(3, 1), {"batch_size": -4}, "batch_size must be at least 1, got -4"),
        (iter([(torch.ones(3, 2), torch.ones(3, 1))]), None, {}, "again and again"),
    ],
)
def test_bad_data_are_refused(inputs, targets, options, message):
    with pytest.raises(ValueError, match=message):
        Objective(torch.nn.Linear(2, 1), mean_square, inputs, targets, **options)


@pytest.mark.parametrize("method", ["loss", "gradient", "linearize"])
def test_batches_without_samples_are_refused_when_evaluated(method):
    objective = Objective(torch.nn.Linear(2, 1), mean_square, [])
    with pytest.raises(ValueError, match="no samples"):
        getattr(objective, method)(torch.zeros(3), 0)


@pytest.mark.parametrize("method", ["losses", "gradient", "terms", "hvp"])
@pytest.mark.parametrize("shape", [(4,), (2, 26), (1, 1, 25), ()])
def test_params_of_another_length_are_refused(method, shape):
    objective = Objective(*spiral_case())
    arguments = {"losses": (0,), "gradient": (0,), "terms": (), "hvp": (torch.zeros(25), 0)}[method]
    with pytest.raises(ValueError, match="params must have shape"):
        getattr(objective, method)(torch.zeros(shape), *arguments)


@pytest.mark.parametrize("method", ["losses", "terms"])
def test_methods_for_stacked_params_take_one_row_as_a_stack_of_one(method):
    objective = Objective(*spiral_case())
    params = torch.randn(objective.n_params).double()
    one, stack = getattr(objective, method)(params, 4), getattr(objective, method)(params[None], 4)
    assert torch.equal(one, stack)


def test_vectors_that_do_not_fit_are_refused():
    objective = Objective(*spiral_case())
    n = objective.n_params
    for params, vectors in [((n,), (n + 1,)), ((2, n), (3, n)), ((2, n), (2, 4, n - 1)), ((2, n), (n,))]:
        with pytest.raises(ValueError, match="do not fit params"):
            objective.hvp(torch.zeros(params), torch.zeros(vectors), 0)


@pytest.mark.parametrize("has_terms", [True, False])
def test_steps_must_be_one_or_as_many_as_params(has_terms):
    model, loss_fn, inputs, targets = spiral_case()
    objective = Objective(model, loss_fn if has_terms else cross_entropy, inputs, targets)
    for steps in ([1, 2], [1, 2, 3, 4], [[1, 2, 3]]):
        with pytest.raises(ValueError, match=r"step must be an int or have shape \(3,\)"):
            objective.losses(torch.zeros(3, objective.n_params), steps)
