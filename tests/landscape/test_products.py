"""Every way to compute a curvature product gives that of the dense matrix, and the quickest way that works is taken."""

import copy
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dynloss
from landscape import Objective, forms, product_trial, product_ways

WAYS = ["kept graph", "lean graph", "lean graph by 1", "kept graph by 2", "jvp", "jvp by 1"]


def mean_square(outputs, targets, step):
    return (1 + step) * ((outputs - targets) ** 2).mean()


def cross_entropy(outputs, targets, step):
    return torch.nn.functional.cross_entropy(outputs, targets)


def spiral_case():
    return dynloss.mlp(2, 6, 3, seed=4), dynloss.DynamicalCrossEntropy(3, 70, 10), *dynloss.spiral(7, 3, seed=2)


def conv_case():
    layers = torch.nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    model = torch.nn.Sequential(*layers, torch.nn.Conv2d(4, 2, (2, 1), bias=False), torch.nn.Flatten())
    model = torch.nn.Sequential(model, torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 3)).double()
    model(3 + 2 * torch.randn(50, 2, 4, 4).double())  # running mean and variance other than 0 and 1
    return model.eval(), cross_entropy, torch.randn(21, 2, 4, 4).double(), torch.randint(3, (21,))


def sequence_case():
    layers = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.GELU(), torch.nn.Linear(4, 2)
    inputs, targets = torch.randn(21, 2, 1, 3).double(), torch.randn(21, 2, 1, 2).double()
    return torch.nn.Sequential(*layers).double(), mean_square, inputs, targets


@pytest.fixture(
    scope="module",
    params=[spiral_case, conv_case, sequence_case],
    ids=["relu dynamical", "conv batch norm", "layer norm sequence"],
)
def case(request):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, loss_fn, inputs, targets = request.param()
        params = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        params = params + 0.3 * torch.randn(3, len(params), dtype=params.dtype)
        vectors = torch.randn(3, 4, params.shape[1], dtype=params.dtype)
    return SimpleNamespace(
        model=model, loss_fn=loss_fn, data=(inputs, targets), params=params, steps=[3, 12, 27], vectors=vectors
    )


def dense_gauss_newton(model, loss_fn, inputs, targets, params, step):
    """Jᵀ S J, the Jacobian and the Hessian in the outputs row by row."""
    model = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(params, model.parameters())

    def rows(values, of):
        gradients = [torch.autograd.grad(value, of, retain_graph=True, materialize_grads=True) for value in values]
        return torch.stack([torch.cat([g.reshape(-1) for g in gradient]) for gradient in gradients])

    outputs = model(inputs)
    jacobian = rows(outputs.reshape(-1), list(model.parameters()))
    at = outputs.detach().requires_grad_()
    slope = torch.autograd.grad(loss_fn(at, targets, step), at, create_graph=True)[0]
    return jacobian.T @ rows(slope.reshape(-1), [at]) @ jacobian


@pytest.fixture(scope="module")
def matrices(case, oracle):
    rows = list(zip(case.params, case.steps, strict=True))
    hessians = [oracle(case.model, case.loss_fn, *case.data, p, step)[2] for p, step in rows]
    others = [dense_gauss_newton(case.model, case.loss_fn, *case.data, p, step).numpy() for p, step in rows]
    return {"linearize": np.stack(hessians), "gauss_newton": np.stack(others)}


def assert_products(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


# 21 samples: batches of 8 leave one of 5.
@pytest.mark.parametrize("matrix", ["linearize", "gauss_newton"])
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_every_way_gives_the_products_of_the_dense_matrix(case, matrices, matrix, batch_size, way):
    objective = Objective(case.model, case.loss_fn, *case.data, batch_size=batch_size, product=way)
    product = getattr(objective, matrix)(case.params, case.steps)
    expected = np.einsum("eij,ekj->eki", matrices[matrix], case.vectors)
    assert_products(product(case.vectors), expected)
    for k in range(2):
        assert_products(product(case.vectors[:, k]), expected[:, k])
    single = getattr(objective, matrix)(case.params[1], case.steps[1])
    assert_products(single(case.vectors[1]), expected[1])
    assert_products(single(case.vectors[1, 0]), expected[1, 0])


@pytest.mark.parametrize(("way", "matrix"), [("linearize", "linearize"), ("linearize by 1", "gauss_newton")])
def test_a_traced_gradient_gives_the_same_products(way, matrix):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    data = torch.randn(9, 2).double(), torch.randn(9, 2).double()
    traced, kept = (Objective(model, mean_square, *data, product=words) for words in (way, "kept graph"))
    params, vectors = torch.randn(2, 17).double(), torch.randn(2, 3, 17).double()
    product, expected = (getattr(o, matrix)(params, [0, 2])(vectors) for o in (traced, kept))
    assert_products(product, expected.numpy())


def test_batches_of_eight_and_two_are_one_batch_of_ten(case):
    data = [tensor[:10] for tensor in case.data]
    for matrix in ("linearize", "gauss_newton"):
        whole, parts = (
            getattr(Objective(case.model, case.loss_fn, *data, batch_size=size), matrix)(case.params, case.steps)
            for size in (None, 8)
        )
        assert_products(parts(case.vectors), whole(case.vectors).numpy())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_loss_linear_in_params_and_unused_params_give_zeros(way, batch_size):
    model = torch.nn.Sequential(torch.nn.Linear(3, 1)).double()
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(2).double()))
    objective = Objective(
        model, lambda o, t, s: o.mean(), torch.randn(7, 3).double(), torch.zeros(7), batch_size=batch_size, product=way
    )
    params, vectors = torch.randn(3, 6).double(), torch.randn(3, 2, 6).double()
    for matrix in (objective.linearize, objective.gauss_newton):
        products = matrix(params, 0)(vectors)
        assert products.shape == vectors.shape
        assert not products.any()
    objective.loss_fn = lambda o, t, s: o.square().mean()
    assert not objective.linearize(params, 0)(vectors)[..., :2].any()  # the module's own parameters come first
    assert objective.linearize(params, 0)(vectors)[..., 2:].all()


@pytest.mark.parametrize("way", ["auto", *WAYS])
@pytest.mark.parametrize("matrix", ["linearize", "gauss_newton"])
def test_nan_params_give_nan_and_spoil_no_other_row(case, way, matrix):
    objective = Objective(case.model, case.loss_fn, *case.data, product=way)
    expected = getattr(objective, matrix)(case.params, case.steps)(case.vectors)
    params = case.params.clone()
    params[0] = torch.nan
    products = getattr(objective, matrix)(params, case.steps)(case.vectors)
    assert products[0].isnan().any()
    np.testing.assert_allclose(products[1:], expected[1:], rtol=1e-9, atol=1e-12)


def test_nothing_is_decided_where_no_product_is_finite(case):
    objective = Objective(case.model, case.loss_fn, *case.data)
    objective.linearize(torch.full_like(case.params, torch.nan), case.steps)
    assert not objective.product_ways


# ---- Gauss–Newton


def test_gauss_newton_is_positive_semidefinite_where_the_hessian_is_not(descent):
    params = torch.as_tensor(descent.checkpoints.params.values)
    columns = torch.eye(params.shape[1]).double().expand(len(params), -1, -1)
    steps = descent.checkpoints.step.values
    matrix = descent.objective.gauss_newton(params, steps)(columns).numpy()
    np.testing.assert_allclose(matrix, matrix.transpose(0, 2, 1), rtol=0, atol=1e-12)
    lowest, scale = np.linalg.eigvalsh(matrix)[:, 0], np.abs(matrix).max((1, 2))
    assert (lowest > -1e-13 * scale).all()
    assert (np.linalg.eigvalsh(descent.objective.linearize(params, steps)(columns).numpy())[:, 0] < -1e-6).any()


def test_gauss_newton_is_the_hessian_for_a_model_linear_in_params():
    torch.manual_seed(1)
    objective = Objective(
        torch.nn.Linear(3, 4).double(),
        cross_entropy,
        torch.randn(11, 3).double(),
        torch.randint(4, (11,)),
        batch_size=4,
    )
    params, vectors = torch.randn(2, 16).double(), torch.randn(2, 3, 16).double()
    assert_products(objective.gauss_newton(params, 0)(vectors), objective.linearize(params, 0)(vectors).numpy())


def test_gauss_newton_is_the_hessian_where_residuals_vanish():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    inputs = torch.randn(11, 3).double()
    objective = Objective(model, mean_square, inputs, model(inputs).detach())
    params = objective.layout.flatten_model(model)
    vectors = torch.randn(3, len(params)).double()
    assert_products(objective.gauss_newton(params, 2)(vectors), objective.linearize(params, 2)(vectors).numpy())
    moved = params + 0.1
    difference = objective.gauss_newton(moved, 2)(vectors) - objective.linearize(moved, 2)(vectors)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize(("answer", "kind"), [(lambda o: (o, o), "tuple"), (lambda o: o.argmax(1), "torch.int64")])
@pytest.mark.parametrize("params", [(8,), (1, 8)])
def test_gauss_newton_refuses_outputs_that_are_not_one_floating_tensor(answer, kind, params):
    class Answering(torch.nn.Linear):
        def forward(self, inputs):
            return answer(super().forward(inputs))

    loss = lambda outputs, targets, step: 0.0  # noqa: E731
    objective = Objective(Answering(3, 2), loss, torch.ones(5, 3), torch.ones(5))
    with pytest.raises(ValueError, match=kind):
        objective.gauss_newton(torch.zeros(params), 0)


# ---- memory


@pytest.mark.parametrize("matrix", ["linearize", "gauss_newton"])
@pytest.mark.parametrize("way", ["auto", "kept graph", "lean graph by 1", "jvp by 2"])
def test_of_several_batches_one_at_a_time_is_in_memory(way, matrix):
    alive, most = weakref.WeakSet(), [0]

    class Watched(torch.nn.Linear):
        def forward(self, inputs):
            batch = inputs * 1.0
            most[0] = max(most[0], len(alive))
            alive.add(batch)
            return super().forward(batch).square()  # whose derivatives need the batch

    data = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    objective = Objective(Watched(3, 2).double(), mean_square, *data, batch_size=3, product=way)
    product = getattr(objective, matrix)(torch.randn(3, 8).double(), 0)
    most[0] = 0
    product(torch.randn(3, 2, 8).double())
    assert most[0] <= 1  # that of the batch before, when the next one is evaluated
    del product
    assert not alive


# ---- forms


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (1, {"stride": 2}),
        (2, {"padding": 1}),
        (2, {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
        (2, {"groups": 2}),
        (3, {}),
    ],
)
def test_convolutions_and_their_derivatives_are_those_of_finite_differences(n, options):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *(4, 5, 3)[:n], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4 // options.get("groups", 1), *(2, 3, 2)[:n], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    plain = getattr(torch.nn.functional, f"conv{n}d")
    np.testing.assert_allclose(
        forms.convolution(x, weight, bias, **options).detach(), plain(x, weight, bias, **options).detach(), atol=1e-13
    )

    def convolution(*arguments):
        return forms.convolution(*arguments, **options)

    assert torch.autograd.gradcheck(convolution, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolution, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("in_dims", [(None, 0, 0), (0, 0, 0), (0, None, None), (1, 2, 1), None])
@pytest.mark.parametrize("shape", [(5, 2), (3, 5, 2)])
def test_batched_linear_layers_and_their_derivatives_are_those_of_finite_differences(in_dims, shape):
    torch.manual_seed(0)
    arguments = [torch.randn(s, dtype=torch.float64) for s in (shape, (4, 2), (4,))]
    layer, plain = forms.linear, torch.nn.functional.linear
    if in_dims is not None:
        layer, plain = torch.vmap(layer, in_dims), torch.vmap(plain, in_dims)
        arguments = [
            a if d is None else torch.randn((*a.shape[:d], 3, *a.shape[d:]), dtype=torch.float64)
            for a, d in zip(arguments, in_dims, strict=True)
        ]
    arguments = [a.requires_grad_() for a in arguments]
    np.testing.assert_allclose(layer(*arguments).detach(), plain(*arguments).detach(), atol=1e-13)
    assert torch.autograd.gradcheck(layer, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, arguments, fast_mode=True)


@pytest.mark.parametrize("in_dims", [None, (0, None, None, 0, 0), (None, None, None, 1, 1)])
def test_batch_norms_and_their_derivatives_are_those_of_finite_differences(in_dims):
    torch.manual_seed(0)
    mean, variance = torch.randn(3).double(), 0.5 + torch.rand(3).double()
    x, weight, bias = torch.randn(4, 3, 2).double(), torch.randn(3).double(), torch.randn(3).double()
    layer, plain = forms.batch_norm, torch.nn.functional.batch_norm
    if in_dims is not None:
        layer, plain = torch.vmap(layer, in_dims), torch.vmap(plain, in_dims)
        x = x if in_dims[0] is None else torch.randn(2, *x.shape).double()
        weight, bias = (torch.randn((3, 2) if in_dims[3] else (2, 3)).double() for _ in range(2))

    def normed(x, weight, bias):
        return layer(x, mean, variance, weight, bias)

    arguments = [a.requires_grad_() for a in (x, weight, bias)]
    np.testing.assert_allclose(normed(*arguments).detach(), plain(x, mean, variance, weight, bias).detach(), rtol=1e-13)
    assert torch.autograd.gradcheck(normed, arguments)
    assert torch.autograd.gradgradcheck(normed, arguments)


def test_relu_has_the_values_and_slopes_of_torch():
    values = torch.tensor([-2.0, -0.0, 0.0, 1e-300, 3.0, torch.inf, torch.nan], dtype=torch.float64)
    slopes = []
    for function in (forms.relu, torch.relu):
        x = values.clone().requires_grad_()
        y = function(x)
        np.testing.assert_array_equal(y.detach(), torch.relu(values))
        slopes.append(torch.autograd.grad(y.sum(), x)[0])
    np.testing.assert_array_equal(slopes[0][:-1], slopes[1][:-1])


def test_what_is_another_function_stays_that_of_torch():
    functional, x = torch.nn.functional, torch.randn(4, 3, 5).double()
    mean, variance, weight = torch.zeros(3).double(), torch.ones(3).double(), torch.randn(2, 3, 3).double()
    cases = [
        lambda: functional.relu(x.clone(), inplace=True),
        lambda: functional.batch_norm(x, None, None, training=True),
        lambda: functional.batch_norm(x, mean.clone(), variance.clone(), training=True),
        lambda: functional.batch_norm(x, mean, variance),
        lambda: functional.conv1d(x[0], weight),
        lambda: functional.conv1d(x, weight, padding="same"),
        lambda: functional.gelu(x),
    ]
    for batched in (False, True):
        for function in cases:
            expected = function()
            with forms.Forms(batched=batched):
                assert torch.equal(function(), expected)


# ---- the choice


class Clock:
    """A clock that only the ways move: build and product of some rows take cost(method, rows) seconds, or a pair."""

    def __init__(self, monkeypatch, cost, broken=()):
        self.now, self.counts = 0.0, {}
        monkeypatch.setattr(
            product_trial, "time", SimpleNamespace(thread_time=lambda: self.now, perf_counter=lambda: self.now)
        )
        for methods in product_ways.MATRICES.values():
            for name, method in list(methods.items()):
                monkeypatch.setitem(methods, name, self.timed(name, method, cost, broken))

    def timed(self, name, method, cost, broken):
        def build(part, point):
            if name in broken and broken[name] is not None:
                raise broken[name]
            rows = len(part.steps)
            seconds, linear = np.broadcast_to(cost(name, rows), 2), method(part, point)
            self.now += seconds[0]
            self.counts[name, rows, "builds"] = self.counts.get((name, rows, "builds"), 0) + 1

            def one(vectors):
                self.now += seconds[1]
                self.counts[name, rows, "products"] = self.counts.get((name, rows, "products"), 0) + 1
                products = linear.one(vectors)
                return 1.001 * products if name in broken else products

            return product_ways.Linear(one, linear.many)

        return build


def small_objective(**options):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    return Objective(model, mean_square, torch.randn(9, 2).double(), torch.randn(9, 2).double(), **options)


def chosen(objective, n_rows=32, matrix="linearize"):
    getattr(objective, matrix)(torch.randn(n_rows, objective.n_params, dtype=objective.dtype), 0)
    return next(reversed(objective.product_ways.values()))


FASTEST = [
    (lambda method, rows: 1e-3 if method == "lean graph" else 2e-3, 8, "lean graph"),
    (lambda method, rows: 1e-3 if method == "kept graph" else 2e-3, 8, "kept graph"),
    (lambda method, rows: 1e-3 * rows**1.5, 8, "kept graph by 1"),
    (
        lambda method, rows: (1e-3 if method == "kept graph" else 2e-3) * (rows**0.5 if rows <= 4 else rows),
        8,
        "kept graph by 4",
    ),
    (lambda method, rows: 1e-3 * rows**1.5 if method == "kept graph" else 1.1e-3, 32, "lean graph by 16"),
    (lambda method, rows: 1.0 if method == "kept graph" else 0.9, 32, "lean graph by 1"),
]


@pytest.mark.parametrize(("cost", "n_rows", "expected"), FASTEST)
def test_the_quickest_way_is_chosen(monkeypatch, cost, n_rows, expected):
    Clock(monkeypatch, cost)
    assert chosen(small_objective(), n_rows) == expected
    assert chosen(small_objective(), n_rows, "gauss_newton") == expected


def test_with_several_batches_what_is_built_each_time_counts_as_often(monkeypatch):
    Clock(
        monkeypatch, lambda method, rows: {"kept graph": (1.0, 1.0), "lean graph": (1.5, 0.9), "jvp": (0, 1.8)}[method]
    )
    assert chosen(small_objective(), 1) == "lean graph"
    assert chosen(small_objective(batch_size=4), 1) == "jvp"


def test_a_trial_costs_a_handful_of_gradients_and_gives_up_early(monkeypatch):
    clock = Clock(monkeypatch, lambda method, rows: 1.0 if method == "kept graph" else 3.0)
    objective = small_objective()
    objective.linearize(torch.randn(32, objective.n_params), 0)
    trial = {k: n for k, n in clock.counts.items() if k != ("kept graph", 1, "builds")}
    assert trial == {("kept graph", 1, "products"): 2, ("lean graph", 1, "builds"): 1, ("lean graph", 1, "products"): 1}
    assert clock.counts["kept graph", 1, "builds"] == 33  # and one in the trial


@pytest.mark.parametrize("wrong", [None, NotImplementedError("no such derivative")])
def test_a_way_that_is_wrong_or_raises_is_out(monkeypatch, wrong):
    Clock(monkeypatch, lambda method, rows: 1e-6 if method == "lean graph" else 1e-3, {"lean graph": wrong})
    assert chosen(small_objective(), 8).startswith("kept graph")


def test_forward_mode_serves_where_backward_fails_and_the_first_error_is_said_where_all_fail(monkeypatch):
    errors = {name: NotImplementedError(name) for name in ("kept graph", "lean graph", "jvp", "linearize")}
    with monkeypatch.context() as patched:
        Clock(patched, lambda method, rows: 1e-3, {name: errors[name] for name in errors if name != "jvp"})
        assert chosen(small_objective(), 8) == "jvp by 1"
    Clock(monkeypatch, lambda method, rows: 1e-3, errors)
    with pytest.raises(NotImplementedError, match="kept graph"):
        small_objective().hvp(torch.ones(17), torch.ones(17), 0)


def test_decisions_serve_similar_situations_only(monkeypatch):
    Clock(monkeypatch, lambda method, rows: 1e-3 * rows**0.5)
    objective, raced = small_objective(), []
    race = product_trial._race
    monkeypatch.setattr(product_trial, "_race", lambda product: raced.append(len(product.points)) or race(product))
    for n_rows in (3, 4, 2, 1, 5, 8, 32, 64, 16):
        objective.linearize(torch.randn(n_rows, objective.n_params), 0)
    assert raced == [3, 5, 32]  # with 32, rows share graphs by 16, and so with 64
    objective.gauss_newton(torch.randn(8, objective.n_params), 0)
    objective.on(torch.randn(100, 2), torch.randn(100, 2)).linearize(torch.randn(8, objective.n_params), 0)
    assert raced == [3, 5, 32, 8, 8]


def test_columns_are_batched_where_that_is_quicker_and_right(monkeypatch):
    clock = Clock(monkeypatch, lambda method, rows: 1e-3)
    objective = small_objective()
    params, vectors = torch.randn(2, objective.n_params).double(), torch.randn(2, 20, objective.n_params).double()
    product = objective.linearize(params, 0)
    expected = torch.stack([product(column) for column in vectors.unbind(1)], 1)
    clock.counts.clear()
    assert_products(product(vectors), expected.numpy())  # many() does not move the clock
    assert {n for key, n in clock.counts.items() if key[2] == "products"} == {8}
    assert list(objective.product_ways.values())[-1] == "columns together"
    real = product.kept[0][1]
    product.kept[0] = product.kept[0][0], real._replace(many=lambda vectors: 2 * real.many(vectors))
    objective.product_ways.clear()
    assert_products(product(vectors), expected.numpy())
    assert list(objective.product_ways.values())[-1] == "column by column"


@pytest.mark.parametrize("way", WAYS)
def test_a_way_that_is_given_is_kept_to_the_last_bit(case, way):
    products = []
    for _ in range(2):
        objective = Objective(case.model, case.loss_fn, *case.data, product=way)
        products.append(objective.linearize(case.params, case.steps)(case.vectors))
        assert not objective.product_ways
        assert objective.product == way
    assert torch.equal(*products)


@pytest.mark.parametrize("way", ["fastest", "kept graph by", "kept graph by 0", "kept graph by four", "by 4", "", None])
def test_unknown_ways_are_refused_with_the_list(way):
    with pytest.raises(ValueError, match=r'"auto" or one of "kept graph", "lean graph", "linearize", "jvp".* got '):
        small_objective(product=way)


def test_the_trial_leaves_the_random_state_alone():
    objective, before = small_objective(), torch.get_rng_state()
    params = torch.ones(4, objective.n_params)
    objective.linearize(params, 0)
    assert objective.product_ways
    assert torch.equal(torch.get_rng_state(), before)


def test_products_work_inside_no_grad():
    objective = small_objective()
    params, vectors = torch.ones(2, objective.n_params).double(), torch.ones(2, objective.n_params).double()
    expected = objective.hvp(params, vectors, 1)
    for way in ("auto", "kept graph", "lean graph", "jvp"):
        with torch.no_grad():
            products = small_objective(product=way).hvp(params, vectors, 1)
        assert not products.requires_grad
        assert_products(products, expected.numpy())
