"""Valleys whose walls are known in closed form, along axes, rotated, uneven, flat, and in a network."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.optimize import brentq

from landscape import Objective, top_eigenpairs, valley_width

RISES = np.array([0.05, 0.1])


class Theta(torch.nn.Module):
    """A model whose output is θ, so that a loss of the output is any function F(θ, t)."""

    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


def objective_of(function, n):
    return Objective(Theta(n), lambda theta, _, step: function(theta, step), torch.zeros(1, 1), torch.zeros(1))


def checkpoints_at(params, steps=(0,), **attrs):
    return xr.Dataset({"params": (("step", "param"), np.asarray(params, float))}, {"step": list(steps)}, attrs)


def pairs_of(eigenvalues, eigenvectors, steps=(0,)):
    """Eigenpairs at every step alike: eigenvalues (mode,), eigenvectors (mode, param)."""
    shape = len(steps), len(eigenvalues)
    return xr.Dataset(
        {
            "eigenvalue": (("step", "mode"), np.broadcast_to(eigenvalues, shape).astype(float)),
            "eigenvector": (("step", "mode", "param"), np.broadcast_to(eigenvectors, (*shape, len(eigenvectors[0])))),
        },
        {"step": list(steps), "mode": np.arange(shape[1])},
    )


def width_on_a_line(function, start=0.0, eigenvalue=1.0, rise=RISES, **options):
    """Valley of a function of one parameter, around `start`; squeezed to its rises."""
    objective = objective_of(lambda theta, step: function(theta[0]), 1)
    return valley_width(objective, checkpoints_at([[start]]), pairs_of([eigenvalue], [[1.0]]), rise, **options).squeeze(
        ["step", "mode"]
    )


@pytest.mark.parametrize("curvature", [0.01, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("start", [0.0, 0.3, -2.0, 5.0])
def test_a_parabola_has_the_harmonic_width_wherever_the_state_stands(curvature, start):
    found = width_on_a_line(lambda s: 0.5 * curvature * s**2 + 3, start, curvature)
    half = np.sqrt(2 * RISES / curvature)
    np.testing.assert_allclose(found.width, 2 * half, rtol=1e-6)
    np.testing.assert_allclose(found.harmonic_width, 2 * half, rtol=1e-12)
    np.testing.assert_allclose(found.left, half, atol=1e-6 * (1 + abs(start)))
    np.testing.assert_allclose(found.right, half, atol=1e-6 * (1 + abs(start)))
    np.testing.assert_allclose(found.floor, -start, atol=1e-6 * (1 + abs(start)))
    np.testing.assert_allclose(found.floor_loss, 3, rtol=1e-12)


def test_rotated_quadratics_at_many_steps_are_measured_each_along_its_own_eigenvectors_and_step():
    rng = np.random.default_rng(0)
    curvatures, steps = np.array([9.0, 2.0, 0.5]), np.arange(5, 75)  # more rows than one batch
    basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    hessian = torch.from_numpy(basis.T @ np.diag(curvatures) @ basis)
    objective = objective_of(lambda theta, step: 0.5 * step * theta @ hessian @ theta, 3)
    params = rng.standard_normal((len(steps), 3))
    eigs = pairs_of(curvatures, basis, steps)
    eigs["eigenvalue"] = eigs.eigenvalue * eigs.step
    found = valley_width(objective, checkpoints_at(params, steps), eigs.transpose("param", "mode", "step"), RISES)
    curvature = curvatures * steps[:, None]
    np.testing.assert_allclose(found.width, 2 * np.sqrt(2 * RISES / curvature[..., None]), rtol=1e-6)
    np.testing.assert_allclose(found.harmonic_width, found.width, rtol=1e-6)
    along = params @ basis.T
    np.testing.assert_allclose(found.floor, -along, atol=1e-6)
    total = 0.5 * (curvature * along**2).sum(1, keepdims=True)
    np.testing.assert_allclose(found.floor_loss, total - 0.5 * curvature * along**2, rtol=1e-9, atol=1e-9)


def test_dims_and_coordinates_are_those_of_the_contract():
    objective = objective_of(lambda theta, step: theta @ theta, 4)
    checkpoints = checkpoints_at(np.ones((3, 4)), [2, 4, 9], optimizer="gd", learning_rate=0.5)
    eigs = pairs_of([2.0, 2.0], np.eye(4)[:2], [4, 9, 11])
    found = valley_width(objective, checkpoints, eigs, [0.1, 0.2, 0.4])
    for name in ("width", "left", "right", "harmonic_width", "stable_width"):
        assert found[name].dims == ("step", "mode", "rise")
    for name in ("floor", "floor_loss"):
        assert found[name].dims == ("step", "mode")
    assert found.step.values.tolist() == [4, 9]  # those of both
    assert found.mode.values.tolist() == [0, 1]
    assert found.rise.values.tolist() == [0.1, 0.2, 0.4]
    assert found.attrs == checkpoints.attrs
    one = valley_width(objective, checkpoints.sel(step=4), eigs.sel(step=4), 0.1)
    assert one.width.dims == ("mode", "rise")
    xr.testing.assert_allclose(one, found.sel(step=4, rise=[0.1]))


def exponential_walls(rise):
    return [brentq(lambda s: np.exp(s) - s - 1 - rise, *ends) for ends in ((-10, 0), (0, 10))]


@pytest.mark.parametrize(
    ("function", "walls"),
    [
        (lambda s: torch.where(s < 0, s**2, 4 * s**2), lambda rise: (-np.sqrt(rise), np.sqrt(rise) / 2)),
        (lambda s: torch.where(s < 0, -s, 3 * s), lambda rise: (-rise, rise / 3)),
        (lambda s: s**4, lambda rise: (-(rise**0.25), rise**0.25)),
        (lambda s: torch.exp(s) - s - 1, exponential_walls),
        (lambda s: 1 - torch.cos(s), lambda rise: (-np.arccos(1 - rise), np.arccos(1 - rise))),
        (lambda s: -torch.log(1 - s**2), lambda rise: (-np.sqrt(1 - np.exp(-rise)), np.sqrt(1 - np.exp(-rise)))),
    ],
    ids=["two parabolas", "kink", "quartic", "exponential", "cosine", "logarithmic barrier"],
)
@pytest.mark.parametrize("start", [0.0, -0.4, 0.6])
def test_left_and_right_wall_of_other_valleys(function, walls, start):
    rises = np.array([0.05, 0.1, 1.5])
    found = width_on_a_line(function, start, rise=rises)
    left, right = np.array([walls(rise) for rise in rises]).T
    # A quartic's floor is known to the fourth root of rounding only; its walls stand where they stand all the same.
    np.testing.assert_allclose(start + found.floor - found.left, left, atol=1e-6)
    np.testing.assert_allclose(start + found.floor + found.right, right, atol=1e-6)
    np.testing.assert_allclose(found.width, right - left, atol=1e-6)
    np.testing.assert_allclose(found.floor, -start, atol=1e-3)
    np.testing.assert_allclose(found.floor_loss, 0, atol=1e-6)


def double_well(s):
    return (s**2 - 1) ** 2


@pytest.mark.parametrize("start", [0.1, 0.9, 1.7])
@pytest.mark.parametrize("side", [1, -1])
def test_in_a_double_well_the_floor_is_the_minimum_reached_downhill(start, side):
    found = width_on_a_line(double_well, side * start, 12 * start**2 - 4, rise=[0.1, 2.0])
    np.testing.assert_allclose(found.floor, side * (1 - start), atol=1e-6)
    outer, inner = np.sqrt(1 + np.sqrt(0.1)) - 1, 1 - np.sqrt(1 - np.sqrt(0.1))
    walls = [found.right, found.left][::side]
    np.testing.assert_allclose([wall[0] for wall in walls], [outer, inner], rtol=1e-6)
    # Above the barrier, whose height is 1, the valley is both wells.
    np.testing.assert_allclose(found.width[1], 2 * np.sqrt(1 + np.sqrt(2)), rtol=1e-6)
    assert np.isnan(found.harmonic_width).all() == (start == 0.1)  # the curvature is negative there


# Some begin on a hill, where the curvature is negative. Seed 46 has a ridge 0.003 above the rise, thinner than a step.
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 21, 27, 43, 53, 54, 82, 86, 102])
def test_among_many_wells_the_floor_is_the_first_downhill_and_the_walls_are_the_nearest(seed):
    rng = np.random.default_rng(seed)
    amplitude, phase, k = rng.standard_normal(4), rng.uniform(0, 2 * np.pi, 4), np.arange(1, 5)

    def function(s):
        return (
            torch.from_numpy(amplitude) * torch.cos(s[..., None] * torch.from_numpy(k) + torch.from_numpy(phase))
        ).sum(-1)

    grid = torch.linspace(-8, 8, 320_001, dtype=torch.float64)
    values, at = function(grid).numpy(), len(grid) // 2
    downhill = 1 if values[at + 1] < values[at - 1] else -1
    while values[at + downhill] < values[at]:
        at += downhill
    above = values >= values[at] + 0.1
    right, left = grid[at:][above[at:]][0] - grid[at], grid[at] - grid[: at + 1][above[: at + 1]][-1]
    found = width_on_a_line(function, 0.0, -(amplitude * k**2 * np.cos(phase)).sum(), rise=0.1)
    np.testing.assert_allclose([found.floor, found.left[0], found.right[0]], [grid[at], left, right], atol=2e-4)


def test_a_high_rise_first_in_the_list_does_not_hide_the_nearest_wall_of_a_low_one():
    found = width_on_a_line(lambda s: 1 - torch.cos(10 * s), 0.0, 100.0, rise=[1e4, 0.01])
    np.testing.assert_allclose(found.width, [np.nan, 2 * np.arccos(0.99) / 10], rtol=1e-6)


def test_a_lower_minimum_behind_a_barrier_is_not_the_floor():
    found = width_on_a_line(lambda s: double_well(s) + 0.2 * s, 0.9, 8.0)
    local = max(np.roots([4, 0, -4, 0.2]).real)
    np.testing.assert_allclose(0.9 + found.floor, local, atol=1e-6)
    np.testing.assert_allclose(found.floor_loss, double_well(local) + 0.2 * local, rtol=1e-9)


def test_the_nearest_wall_counts_even_where_it_is_thin():
    def function(s):
        return 0.5 * s**2 + torch.exp(-((s - 0.3) ** 2) / (2 * 0.05**2))

    found = width_on_a_line(function, -0.1, rise=0.1)
    grid = torch.linspace(-0.1, 0.3, 400_001, dtype=torch.float64)
    values = function(grid) - float(found.floor_loss)
    expected = float(grid[(values >= 0.1).nonzero()[0, 0]])
    np.testing.assert_allclose(-0.1 + found.floor + found.right, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("function", "eigenvalue"),
    [
        (lambda s: -(s**2), -2.0),
        (lambda s: s, 0.0),
        (lambda s: -torch.log1p(s**2), -2.0),
        (lambda s: 0.5 * (s - 12) ** 2, 1.0),
        (lambda s: s**2, np.nan),
    ],
    ids=["hill", "slope", "hill with flat ends", "floor beyond half_width", "eigenvalue unknown"],
)
def test_where_no_floor_is_within_reach_all_is_nan(function, eigenvalue):
    found = width_on_a_line(function, 0.0 if not np.isnan(eigenvalue) else np.nan, eigenvalue)
    for name in ("width", "left", "right", "floor", "floor_loss"):
        assert np.isnan(found[name]).all()


def test_a_flat_direction_has_no_walls():
    objective = objective_of(lambda theta, step: theta[1] ** 2, 2)
    found = valley_width(objective, checkpoints_at([[0.0, 0.0]]), pairs_of([2.0, 0.0], np.eye(2)[::-1]), RISES)
    np.testing.assert_allclose(found.width.sel(mode=0), [2 * np.sqrt(RISES)], rtol=1e-6)
    for name in ("width", "left", "right", "harmonic_width"):
        assert np.isnan(found[name].sel(mode=1)).all()


@pytest.mark.parametrize(("half_width", "found_walls"), [(0.9, False), (1.1, True)])
def test_walls_farther_than_half_width_are_nan(half_width, found_walls):
    found = width_on_a_line(lambda s: s**2, 0.5, 2.0, rise=[0.01, 1.0], half_width=half_width)
    np.testing.assert_allclose(found.width[0], 0.2, rtol=1e-6)
    assert np.isfinite(found.width[1]) == found_walls


def test_one_wall_alone_gives_its_distance_and_no_width():
    found = width_on_a_line(lambda s: torch.where(s < 0, s**2, s**2 / (1 + s**2)), rise=[0.5, 2.0])
    np.testing.assert_allclose(found.left, np.sqrt([0.5, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(found.right, [1.0, np.nan], rtol=1e-6)  # the right side levels out at 1
    assert np.isfinite(found.width).values.tolist() == [True, False]


def test_a_quartic_valley_is_as_wide_as_its_own_closed_form_and_not_as_its_curvature_says():
    for scale in (0.25, 40.0):
        found = width_on_a_line(lambda s, c=scale: 0.5 * s**2 + c * s**4, 0.3, 1.0, rise=[0.01, 1.0])
        half = np.sqrt((np.sqrt(0.25 + 4 * scale * np.array([0.01, 1.0])) - 0.5) / (2 * scale))
        np.testing.assert_allclose(found.width, 2 * half, rtol=1e-6)
        assert (found.harmonic_width > 1.04 * found.width)[1]


def test_valleys_of_all_kinds_are_searched_at_once_and_none_disturbs_another():
    # Along the axes: a parabola whose curvature grows with the step, a quartic, a cliff on the right, a slope.
    def function(theta, step):
        cliff = torch.where(theta[2] < 0, theta[2] ** 2, torch.where(theta[2] < 0.5, 0.0, torch.inf))
        return 0.5 * step * theta[0] ** 2 + theta[1] ** 4 + cliff + theta[3]

    rng, steps, rises = np.random.default_rng(0), np.arange(1, 16), np.array([0.04, 0.5])
    params = rng.uniform(-0.4, 0.4, (len(steps), 4))
    params[:, 2] = -0.2
    eigs = pairs_of([1.0, 0.5, 2.0, 0.0], np.eye(4), steps)
    found = valley_width(objective_of(function, 4), checkpoints_at(params, steps), eigs, rises, half_width=3.0)
    np.testing.assert_allclose(found.width[:, 0], 2 * np.sqrt(2 * rises / steps[:, None]), rtol=1e-6)
    np.testing.assert_allclose(found.floor[:, 0], -params[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.width[:, 1], np.broadcast_to(2 * rises**0.25, (15, 2)), rtol=1e-6)
    wall = params[:, 2, None] + found.floor.values[:, 2, None] - found.left[:, 2]
    np.testing.assert_allclose(wall, np.broadcast_to(-np.sqrt(rises), (15, 2)), atol=1e-6)
    cliff = params[:, 2, None] + found.floor.values[:, 2, None] + found.right[:, 2]
    np.testing.assert_allclose(cliff, 0.5, atol=1e-6)
    assert np.isnan(found.width[:, 3]).all()


@pytest.mark.parametrize("half_width", [0.5, 1.5])
def test_a_wall_counts_by_its_distance_from_the_floor_not_from_the_state(half_width):
    # The floor is 0.4 from the state, the left wall 0.6 and the right one 1.2 from the floor.
    found = width_on_a_line(lambda s: torch.where(s < 0, (s / 0.6) ** 2, (s / 1.2) ** 2), 0.4, rise=1.0,
                            half_width=half_width)  # fmt: skip
    np.testing.assert_allclose(found.floor, -0.4, atol=1e-6)
    np.testing.assert_allclose(found.left, 0.6 if half_width > 0.6 else np.nan, atol=1e-6)
    np.testing.assert_allclose(found.right, 1.2 if half_width > 1.2 else np.nan, atol=1e-6)


@pytest.mark.parametrize(
    ("attrs", "threshold"),
    [
        ({"optimizer": "gd", "learning_rate": 0.25}, 8.0),
        ({"optimizer": "momentum", "learning_rate": 0.25, "momentum": 0.5}, 12.0),
        ({}, np.nan),
    ],
)
def test_stable_width_is_the_harmonic_width_at_the_stability_threshold(attrs, threshold):
    objective = objective_of(lambda theta, step: theta @ theta, 1)
    found = valley_width(objective, checkpoints_at([[0.0]], **attrs), pairs_of([2.0], [[1.0]]), RISES)
    np.testing.assert_allclose(found.stable_width[0, 0], 2 * np.sqrt(2 * RISES / threshold), rtol=1e-12)


def test_in_a_network_the_floor_lies_downhill_and_the_walls_are_the_first_places_where_the_loss_has_risen(descent):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=2, tol=1e-6)
    found = valley_width(descent.objective, descent.checkpoints, eigs, [0.02, 0.1])
    assert np.isfinite(found.width).all()
    for step in found.step.values.tolist():
        for mode in range(2):
            at, vector = found.sel(step=step, mode=mode), eigs.eigenvector.sel(step=step, mode=mode).values
            start = descent.checkpoints.params.sel(step=step).values
            along = np.outer(np.linspace(0, float(at.floor), 200), vector)
            way = descent.objective.losses(start + along, step).numpy()
            assert (way - np.minimum.accumulate(way)).max() < 1e-4  # the kinks of ReLU make dents of 1e-5
            np.testing.assert_allclose(way[-1], at.floor_loss, rtol=1e-12)
            theta = start + float(at.floor) * vector
            for i, rise in enumerate(found.rise.values):
                left, right = float(at.left[i]), float(at.right[i])
                walls = descent.objective.losses(theta + np.outer([-left, right], vector), step)
                np.testing.assert_allclose(walls, at.floor_loss + rise, rtol=1e-6)
                inside = np.linspace(-left, right, 200)[1:-1]
                losses = descent.objective.losses(theta + np.outer(inside, vector), step)
                assert (losses.numpy() < float(at.floor_loss) + rise).all()


@pytest.mark.parametrize("rise", [0.0, -0.1, [0.1, 0.0], np.nan, np.inf, [], [[0.1]]])
def test_a_rise_that_is_not_positive_is_refused(rise):
    with pytest.raises(ValueError, match="rise must hold positive numbers"):
        width_on_a_line(lambda s: s**2, rise=rise)


@pytest.mark.parametrize("half_width", [0, -1.0, np.inf, np.nan])
def test_a_half_width_that_is_no_distance_is_refused(half_width):
    with pytest.raises(ValueError, match="half_width must be a positive distance"):
        width_on_a_line(lambda s: s**2, half_width=half_width)


def test_checkpoints_and_eigenpairs_of_other_steps_are_refused():
    objective = objective_of(lambda theta, step: theta @ theta, 1)
    with pytest.raises(ValueError, match=r"share no step; compute eigs = top_eigenpairs"):
        valley_width(objective, checkpoints_at([[0.0]], [3]), pairs_of([2.0], [[1.0]], [4]), 0.1)
