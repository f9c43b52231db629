"""Each definition of sharpness against its closed form on quadratics, and against brute force in a network."""

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import Objective, load_dataset, save_dataset, sharpness

ALL = ("largest_eigenvalue", "trace", "keskar", "sam", "average")


class Theta(torch.nn.Module):
    """A model whose output is θ, so that a loss of the output is any function F(θ, t)."""

    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


def quadratic(hessian):
    """½ t θᵀHθ + 2."""
    matrix = torch.from_numpy(hessian)
    zero = torch.zeros(1, 1)
    return Objective(Theta(len(hessian)), lambda theta, _, step: 0.5 * step * theta @ matrix @ theta + 2, zero, zero[0])


def symmetric(n, seed=0):
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix @ matrix.T / n


def checkpoints_at(params, steps):
    params = np.asarray(params, float)
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": list(steps)}, {"optimizer": "gd"})


@pytest.fixture(scope="module")
def case():
    hessian = symmetric(12)
    checkpoints = checkpoints_at(np.random.default_rng(1).standard_normal((3, 12)), [1, 2, 5])
    return hessian, quadratic(hessian), checkpoints


def test_curvatures_are_those_of_the_matrix(case):
    hessian, objective, checkpoints = case
    found = sharpness(objective, checkpoints, ["largest_eigenvalue", "trace"], tol=1e-8)
    np.testing.assert_allclose(found.largest_eigenvalue, np.linalg.eigvalsh(hessian)[-1] * found.step, rtol=1e-10)
    np.testing.assert_allclose(found.trace, np.trace(hessian) * found.step, rtol=1e-10)  # 32 products are more than n
    np.testing.assert_array_equal(found.trace_standard_error, 0)
    assert found.largest_eigenvalue_certified.values.all()


@pytest.mark.parametrize("radius", [1e-3, 0.5])
def test_one_step_uphill_has_its_closed_form(case, radius):
    hessian, objective, checkpoints = case
    found = sharpness(objective, checkpoints, "sam", radius=radius)
    for step, theta in zip(found.step.values, checkpoints.params.values, strict=True):
        gradient = hessian @ theta
        norm = np.linalg.norm(gradient)
        rise = radius * norm + 0.5 * radius**2 * gradient @ hessian @ gradient / norm**2
        np.testing.assert_allclose(found.sam.sel(step=step), step * rise, rtol=1e-9)


def test_without_a_slope_there_is_no_step_uphill():
    objective = quadratic(np.eye(3))
    found = sharpness(objective, checkpoints_at([[0, 0, 0], [0, 3, 4]], [1, 2]), "sam", radius=0.5)
    np.testing.assert_allclose(found.sam, [np.nan, 2 * (0.5 * 5.5**2 - 0.5 * 5**2)])


@pytest.mark.parametrize("n_samples", [2, 16, 17, 200])
def test_the_average_over_random_directions_is_the_trace_within_its_standard_error(n_samples):
    n, radius = 30, 0.3
    hessian = symmetric(n, seed=2)
    params = 10 * np.random.default_rng(3).standard_normal((20, n))  # slopes much larger than the curvature's effect
    found = sharpness(quadratic(hessian), checkpoints_at(params, range(1, 21)), "average", radius=radius,
                      n_samples=n_samples)  # fmt: skip
    expected = found.step * radius**2 * np.trace(hessian) / (2 * n)
    deviation = ((found.average - expected) / found.average_standard_error).values
    if n_samples > 10:
        assert np.abs(deviation).max() < 4
    if n_samples == 200:
        assert 0.75 < np.sqrt((deviation**2).mean()) < 1.3
        assert (found.average_standard_error < 0.05 * expected).all()


def test_the_average_over_directions_is_exact_where_the_curvature_is_the_same_in_all():
    found = sharpness(quadratic(3 * np.eye(7)), checkpoints_at(np.ones((1, 7)), [2]), "average", radius=0.1)
    np.testing.assert_allclose(found.average, 0.01 * 3 * 2 / 2, rtol=1e-9)
    np.testing.assert_allclose(found.average_standard_error, 0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_keskars_maximum_lies_in_a_corner_of_the_box_where_the_quadratic_is_diagonal(epsilon):
    rng = np.random.default_rng(4)
    curvature, theta = rng.uniform(0.1, 9, 20), rng.standard_normal((2, 20))
    theta[1, ::2] *= 1e-6  # steep and flat coordinates alike reach their end of the box
    found = sharpness(quadratic(np.diag(curvature)), checkpoints_at(theta, [1, 3]), "keskar", epsilon=epsilon)
    for step, at in zip((1, 3), theta, strict=True):
        corner = np.abs(at) + epsilon * (np.abs(at) + 1)
        loss = 0.5 * step * (curvature * at**2).sum() + 2
        rise = 0.5 * step * (curvature * (corner**2 - at**2)).sum()
        np.testing.assert_allclose(found.keskar.sel(step=step), 100 * rise / (1 + loss), rtol=1e-6)


def test_keskars_box_is_searched_at_a_minimum_and_on_a_hill_too():
    # In the minimum the slope is 0 and every corner is as high; along the negative curvature the top is inside.
    found = sharpness(quadratic(np.diag([4.0, 2.0])), checkpoints_at([[0.0, 0.0]], [1]), "keskar", epsilon=0.1)
    np.testing.assert_allclose(found.keskar, 100 * 0.03 / 3, rtol=1e-6)
    found = sharpness(quadratic(np.diag([4.0, -2.0])), checkpoints_at([[1.0, 0.05]], [1]), "keskar", epsilon=0.1)
    loss = 2 + 2 - 0.0025
    np.testing.assert_allclose(found.keskar, 100 * (2 * (1.2**2 - 1) + 0.0025) / (1 + loss), rtol=1e-6)
    found = sharpness(quadratic(-np.eye(2)), checkpoints_at([[0.0, 0.0]], [1]), "keskar")
    assert found.keskar == 0  # nothing rises


def test_in_a_network_no_random_point_of_the_box_is_higher_and_the_others_are_differences_of_losses(descent):
    objective, epsilon, radius = descent.objective, 0.01, 0.05
    found = sharpness(objective, descent.checkpoints, ["keskar", "sam"], epsilon=epsilon, radius=radius)
    rng = np.random.default_rng(0)
    for step in found.step.values.tolist():
        theta = descent.checkpoints.params.sel(step=step).values
        loss, gradient, _ = descent.derivatives(step)
        box = epsilon * (np.abs(theta) + 1)
        corners = rng.choice([-1, 1], (300, len(theta))) * box
        tried = objective.losses(theta + np.concatenate([corners, [np.sign(gradient) * box]]), step).numpy()
        assert found.keskar.sel(step=step) >= 100 * (tried.max() - loss) / (1 + loss) - 1e-9
        assert found.keskar.sel(step=step) < 1000 * (np.abs(gradient) * box).sum()
        moved = objective.loss(theta + radius * gradient / np.linalg.norm(gradient), step).item()
        np.testing.assert_allclose(found.sam.sel(step=step), moved - loss, rtol=1e-10)


def test_every_variable_says_what_it_is_by_which_source_and_parameters(case, tmp_path):
    _, objective, checkpoints = case
    found = sharpness(objective, checkpoints, radius=0.07, epsilon=2e-3, n_samples=8, seed=3)
    extra = {"largest_eigenvalue_certified", "trace_standard_error", "average_standard_error"}
    assert set(found) == {*ALL, *extra}
    assert all(variable.dims == ("step",) for variable in found.values())
    for name in ALL:
        assert {"long_name", "formula", "source"} <= set(found[name].attrs)
        assert "arXiv" in found[name].attrs["source"]
    assert "lower bound" in found.keskar.attrs["formula"]
    assert (found.keskar.attrs["epsilon"], found.keskar.attrs["units"]) == (2e-3, "%")
    assert (found.sam.attrs["radius"], found.average.attrs["radius"]) == (0.07, 0.07)
    assert (found.average.attrs["n_samples"], found.average.attrs["seed"]) == (8, 3)
    assert found.attrs == checkpoints.attrs
    assert "epsilon" not in found.sam.attrs
    xr.testing.assert_identical(load_dataset(save_dataset(found, tmp_path / "sharpness.h5")), found)


def test_a_step_alone_gives_what_it_gives_among_others_and_another_seed_something_else(case):
    _, objective, checkpoints = case
    whole = sharpness(objective, checkpoints, ["keskar", "sam", "average"], n_samples=5)
    one = sharpness(objective, checkpoints.sel(step=2), ["average", "keskar", "sam"], n_samples=5)
    assert one.average.dims == ()
    xr.testing.assert_allclose(one, whole.sel(step=2), rtol=1e-9)
    other = sharpness(objective, checkpoints, "average", n_samples=5, seed=1)
    assert (other.average != whole.average).all()


def test_where_the_loss_is_not_finite_sharpness_is_nan(case):
    _, objective, checkpoints = case
    broken = checkpoints.copy(deep=True)
    broken["params"][1] = np.nan
    found = sharpness(objective, broken, ["keskar", "sam", "average"], n_samples=2)
    for name in ("keskar", "sam", "average"):
        assert np.isfinite(found[name]).values.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"definitions": "flatness"}, "definitions must be some of largest_eigenvalue, trace, keskar, sam, average"),
        ({"definitions": []}, "definitions must be some of"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"epsilon": np.nan}, "epsilon must be positive"),
        ({"n_samples": 1}, "n_samples must be at least 2"),
    ],
)
def test_what_cannot_be_computed_is_refused(case, options, message):
    with pytest.raises(ValueError, match=message):
        sharpness(*case[1:], **options)
