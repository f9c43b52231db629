"""Planes of the one-hidden-layer network in closed form are those of the network itself, point by point."""

from functools import partial

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import fastest_objective, torch_planes

BY_ROWS = "closed form, torch, by breakpoints"
KERNELS = ["closed form, torch", BY_ROWS, "closed form, numba"]
kernels = pytest.mark.parametrize("kernel", KERNELS)
LOSSES = {
    "cross entropy": dynloss.CrossEntropy,
    "squared error by sample": partial(dynloss.SquaredError, weighting="sample"),
    "squared error by component": partial(dynloss.SquaredError, weighting="component"),
    "dynamical cross entropy": partial(dynloss.DynamicalCrossEntropy, amplitude=30, period=50),
    "dynamical squared error by sample": partial(
        dynloss.DynamicalSquaredError, weighting="sample", amplitude=30, period=50
    ),
    "dynamical squared error by component": partial(
        dynloss.DynamicalSquaredError, weighting="component", amplitude=30, period=50
    ),
}
losses = pytest.mark.parametrize("loss", LOSSES)
STATIC = list(LOSSES)[:3]
GRIDS = {
    "square": (np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)),
    "wide": (np.linspace(-1, 1, 4), np.linspace(-2, 0.5, 71)),
    "high": (np.linspace(-1, 3, 70), np.linspace(-2, 0.5, 5)),
    "row": (np.array([0.0]), np.linspace(-1, 1, 12)),
    "column": (np.linspace(0.1, 2, 12), np.array([-0.3])),
    "point": (np.array([0.4]), np.array([-0.7])),
    "off centre": (np.linspace(2, 3, 3), np.linspace(5, 6, 11)),
    "descending": (np.linspace(1, -1, 3), np.linspace(1, -2, 8)),
    "uneven": (np.array([0.3, -1, 0.4]), np.array([0.1, -0.5, 3, 0.1, 2])),
    "repeated": (np.zeros(2), np.full(3, 0.5)),
    "many, uneven": (np.array([0.3, -1, 0.4]), np.sort(np.random.default_rng(0).normal(size=40))),
}


@pytest.fixture(autouse=True)
def rows_of_any_length(request, monkeypatch):
    """The form that is for many points is tried with a few, and the other one with many."""
    kernel = request.node.callspec.params.get("kernel", "") if hasattr(request.node, "callspec") else ""
    monkeypatch.setattr(torch_planes, "MANY_POINTS", 1 if kernel == BY_ROWS else 10**9)


PARTS = ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]


def objective_of(kernel, loss, width=12, n_inputs=2, n_classes=3, dtype=torch.float64, inputs=None, n_samples=37):
    if kernel == "closed form, numba":
        pytest.importorskip("numba", reason="the compiled closed forms need numba: pip install '.[fast]'")
    rng = np.random.default_rng([n_inputs, width, n_classes])
    model = dynloss.mlp(n_inputs, width, n_classes, seed=3, dtype=dtype)
    loss = LOSSES[loss](n_classes)
    inputs = torch.from_numpy(rng.standard_normal((n_samples, n_inputs)) if inputs is None else inputs).to(dtype)
    targets = torch.from_numpy(rng.integers(n_classes, size=len(inputs)))  # classes of unequal size
    return fastest_objective(model, loss, inputs, targets, kernel=kernel.removesuffix(", by breakpoints"))


def plane_of(objective, scale=1.0, seed=1):
    """A centre (n,) and two directions (2, n)."""
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(objective.n_params)
    return center, scale * rng.standard_normal((2, len(center)))


def by_the_network(objective, center, directions, alpha, beta, dtype=torch.float64):
    """Class losses (class, alpha, beta): parameters set, the network called, class terms asked for."""
    ((inputs, targets),) = objective.batches
    network = dynloss.mlp(
        objective.model.hidden.in_features,
        objective.model.hidden.out_features,
        objective.model.output.out_features,
        dtype=dtype,
    )
    center, directions = (torch.as_tensor(t).to(objective.dtype).to(dtype) for t in (center, directions))
    alpha, beta = (torch.as_tensor(t).to(objective.dtype).to(dtype) for t in (alpha, beta))
    values = []
    with torch.no_grad():
        for a in alpha:
            for b in beta:
                point = center + a * directions[0] + b * directions[1]
                torch.nn.utils.vector_to_parameters(point, network.parameters())
                values.append(objective.loss_fn.terms(network(inputs.to(dtype)), targets))
    return torch.stack(values, -1).reshape(-1, len(alpha), len(beta))


def assert_equal(found, expected, rtol=1e-10, atol=1e-13):
    """Within `rtol` of each value, and `atol` of the largest."""
    assert found.shape == expected.shape
    assert expected.isfinite().all()
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol * float(expected.abs().max()))


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_point_is_that_of_the_network(kernel, loss, grid):
    objective = objective_of(kernel, loss)
    center, directions = plane_of(objective)
    found = objective.plane_losses(center, directions, *GRIDS[grid], 9)
    assert found.dtype == torch.float64
    assert_equal(found, by_the_network(objective, center, directions, *GRIDS[grid]))


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize(("n_inputs", "width", "n_classes"), [(1, 5, 2), (7, 1, 3), (3, 9, 7), (4, 30, 10)])
def test_networks_of_other_sizes(kernel, loss, n_inputs, width, n_classes):
    objective = objective_of(kernel, loss, width, n_inputs, n_classes)
    center, directions = plane_of(objective)
    grid = np.linspace(-1, 1, 3), np.linspace(-1, 1, 8)
    assert_equal(
        objective.plane_losses(center, directions, *grid, 9), by_the_network(objective, center, directions, *grid)
    )


@kernels
@losses
def test_class_losses_weighted_by_class_weights_are_the_loss(kernel, loss):
    objective = objective_of(kernel, loss)
    ((inputs, targets),) = objective.batches
    center, directions = plane_of(objective)
    alpha, beta = np.linspace(-1, 1, 3), np.linspace(-1, 1, 8)
    terms = objective.plane_losses(center, directions, alpha, beta, 9)
    point = torch.from_numpy(center + alpha[2] * directions[0] + beta[5] * directions[1])
    outputs = torch.func.functional_call(dynloss.mlp(2, 12, 3), objective.layout.unflatten(point), (inputs,))
    for step in (9, 40):
        np.testing.assert_allclose(
            objective.class_weights(step) @ terms[:, 2, 5], objective.loss_fn(outputs, targets, step), rtol=1e-12
        )


@kernels
@pytest.mark.parametrize("loss", STATIC)
def test_float32_agrees_to_its_own_precision(kernel, loss):
    objective = objective_of(kernel, loss, width=100, dtype=torch.float32)
    center, directions = plane_of(objective)
    grid = np.linspace(-1, 1, 6), np.linspace(-1, 1, 21)
    found = objective.plane_losses(center, directions, *grid, 9)
    assert found.dtype == torch.float32
    assert_equal(found, by_the_network(objective, center, directions, *grid), rtol=1e-4, atol=1e-6)


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("parts", [[], *([part] for part in PARTS), PARTS[:2], PARTS[2:]], ids="+".join)
def test_directions_that_move_only_a_part(kernel, loss, parts):
    objective = objective_of(kernel, loss)
    center, directions = plane_of(objective)
    kept = torch.zeros(objective.n_params, dtype=torch.float64)
    for part in parts:
        objective.layout.unflatten(kept)[part][:] = 1
    grid = np.linspace(-1, 1, 4), np.linspace(-1, 2, 9)
    for masks in ([kept, np.ones_like(center)], [np.ones_like(center), kept], [kept, kept]):
        moved = directions * np.stack(masks)
        assert_equal(objective.plane_losses(center, moved, *grid, 0), by_the_network(objective, center, moved, *grid))


@kernels
@pytest.mark.parametrize("loss", STATIC)
def test_parallel_directions(kernel, loss):
    objective = objective_of(kernel, loss)
    center, directions = plane_of(objective)
    directions[1] = -2 * directions[0]
    grid = np.linspace(-1, 1, 5), np.linspace(-1, 1, 9)
    assert_equal(
        objective.plane_losses(center, directions, *grid, 0), by_the_network(objective, center, directions, *grid)
    )


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("seed", range(3))
def test_kinks_exactly_at_grid_points(kernel, loss, seed):
    """All is a small whole number, so that many units are exactly zero at grid points, among them at the origin."""
    rng = np.random.default_rng(seed)
    objective = objective_of(kernel, loss, width=30, inputs=rng.integers(-2, 3, (20, 2)).astype(float))
    center, directions = plane_of(objective)
    center = rng.integers(-2, 3, center.shape) / 4
    directions = rng.integers(-2, 3, directions.shape) / 4
    grid = np.arange(-3.0, 4), np.arange(-4.0, 5)
    ((inputs, _),) = objective.batches
    hidden = torch.from_numpy(center + 2 * directions[1]).float()
    before = objective.layout.unflatten(hidden)["hidden.weight"] @ inputs.T.float()
    before += objective.layout.unflatten(hidden)["hidden.bias"][:, None]
    assert (before == 0).any()
    assert_equal(
        objective.plane_losses(center, directions, *grid, 0),
        by_the_network(objective, center, directions, *grid),
        rtol=1e-13,
        atol=1e-15,
    )


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_unit_that_is_zero_at_the_centre_grows_on_its_own_side(kernel, loss, sign):
    objective = objective_of(kernel, loss, width=3)
    center, directions = plane_of(objective)
    tensors = objective.layout.unflatten(torch.from_numpy(center))
    for name in PARTS[:2]:
        tensors[name][:] = 0
    tensors["output.weight"][:] = 1
    directions[:] = 0
    objective.layout.unflatten(torch.from_numpy(directions[1]))["hidden.bias"][:] = sign
    grid = np.zeros(1), np.linspace(-1, 1, 5)
    assert_equal(
        objective.plane_losses(center, directions, *grid, 0), by_the_network(objective, center, directions, *grid)
    )


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e200])
@pytest.mark.parametrize("place", ["center", "direction", "alpha", "beta"])
def test_what_is_not_finite_is_so_where_that_of_the_loop_over_the_network_is(kernel, loss, value, place):
    objective, autograd = objective_of(kernel, loss), objective_of("autograd", loss)
    names = PARTS if place in ("center", "direction") else [None]
    for name in names:
        center, directions = plane_of(objective)
        alpha, beta = np.linspace(-1, 1, 3), np.linspace(-1, 1, 7)
        if place == "alpha":
            alpha[1] = value
        elif place == "beta":
            beta[5] = value
        else:
            row = torch.from_numpy(center if place == "center" else directions[0])
            objective.layout.unflatten(row)[name].view(-1)[0] = value
        found = objective.plane_losses(center, directions, alpha, beta, 0).numpy()
        expected = autograd.plane_losses(center, directions, alpha, beta, 0).numpy()
        assert (np.isfinite(found) == np.isfinite(expected)).all()
        if np.isnan(value):
            assert np.isnan(found).any()
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        finite = np.isfinite(expected)
        np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-10)


@kernels
@pytest.mark.parametrize("loss", STATIC)
@pytest.mark.parametrize("half_width", [1e-8, 1e2, 1e8])
def test_the_centre_of_a_wide_plane_is_as_accurate_as_its_border(kernel, loss, half_width):
    objective = objective_of(kernel, loss, width=100)
    center, directions = plane_of(objective)
    for n in (4, 21):
        grid = half_width * np.linspace(-1, 1, 5), half_width * np.linspace(-1, 1, n)
        found = objective.plane_losses(center, directions, *grid, 0)
        assert_equal(found, by_the_network(objective, center, directions, *grid), rtol=1e-10, atol=0)


@kernels
@pytest.mark.parametrize("loss", STATIC)
def test_an_axis_that_dwarfs_the_other(kernel, loss):
    objective = objective_of(kernel, loss, width=100)
    center, directions = plane_of(objective)
    for scales in ([1e6, 1], [1, 1e6], [1e-6, 1]):
        moved, grid = directions * np.array(scales)[:, None], (np.linspace(-1, 1, 5), np.linspace(-1, 1, 33))
        found = objective.plane_losses(center, moved, *grid, 0)
        assert_equal(found, by_the_network(objective, center, moved, *grid), rtol=1e-10, atol=0)


@kernels
def test_thousands_of_samples_of_one_class_do_not_overflow(kernel):
    objective = objective_of(kernel, "cross entropy", width=2, n_classes=10, n_samples=6000)
    _, directions = plane_of(objective, scale=0.01)
    center = np.zeros(objective.n_params)  # all classes are about equally likely: Σ exp is 10, and 10^600 an overflow
    grid = np.linspace(-1, 1, 2), np.linspace(-1, 1, 5)
    assert_equal(
        objective.plane_losses(center, directions, *grid, 0), by_the_network(objective, center, directions, *grid)
    )


@kernels
@pytest.mark.parametrize("loss", STATIC)
def test_samples_and_points_beyond_those_computed_together(kernel, loss, monkeypatch):
    monkeypatch.setitem(torch_planes.AT_ONCE, "cpu", 30_000)
    objective = objective_of(kernel, loss, width=3000)  # compiled, five samples at once
    center, directions = plane_of(objective, scale=0.1)
    grid = np.linspace(-1, 1, 3), np.linspace(-1, 1, 10)
    assert_equal(
        objective.plane_losses(center, directions, *grid, 0), by_the_network(objective, center, directions, *grid)
    )


@kernels
def test_an_objective_over_other_samples_has_their_plane(kernel):
    first = objective_of(kernel, "cross entropy")
    rng = np.random.default_rng(5)
    other = first.on(torch.from_numpy(rng.standard_normal((11, 2))), torch.from_numpy(rng.integers(3, size=11)))
    center, directions = plane_of(first)
    grid = np.linspace(-1, 1, 3), np.linspace(-1, 1, 8)
    assert_equal(other.plane_losses(center, directions, *grid, 0), by_the_network(other, center, directions, *grid))


@kernels
def test_tensors_that_require_gradients_and_other_types_are_taken(kernel):
    objective = objective_of(kernel, "cross entropy")
    center, directions = plane_of(objective)
    expected = objective.plane_losses(center, directions, np.arange(3.0), np.arange(4.0), 0)
    leaf = torch.from_numpy(center).requires_grad_()
    found = objective.plane_losses(leaf, torch.from_numpy(directions), [0, 1, 2], torch.arange(4), 0)
    assert not found.requires_grad
    assert torch.equal(found, expected)
