"""A plane holds the loss itself at every grid point, at every phase, and says where a trajectory lies on it."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import Objective, load_dataset, plane_slice, project, reweight, save_dataset, top_eigenpairs


@pytest.fixture(scope="module")
def eigs(descent):
    return top_eigenpairs(descent.objective, descent.checkpoints, k=3)


@pytest.fixture(scope="module")
def center(descent):
    return descent.checkpoints.sel(step=20)


@pytest.fixture(scope="module")
def plane(descent, eigs, center):
    pair = eigs.sel(step=20).isel(mode=[0, 1])
    return plane_slice(descent.objective, center, pair, half_width=(1.0, 0.5), n_points=(9, 8), terms=True)


@pytest.fixture
def loss_of(descent):
    """The loss by the model itself, without Objective."""
    model = copy.deepcopy(descent.model)

    def loss(params, step):
        torch.nn.utils.vector_to_parameters(torch.as_tensor(params), model.parameters())
        with torch.no_grad():
            return float(descent.loss_fn(model(descent.data.inputs), descent.data.targets, step))

    return loss


def test_every_grid_point_holds_the_loss_of_the_model_there(plane, eigs, center, loss_of):
    v1, v2 = eigs.eigenvector.sel(step=20, mode=0).values, eigs.eigenvector.sel(step=20, mode=1).values
    expected = [
        [loss_of(center.params.values + a * v1 + b * v2, 20) for b in plane.beta.values] for a in plane.alpha.values
    ]
    np.testing.assert_allclose(plane.loss.transpose("alpha", "beta"), expected, rtol=1e-10)
    assert plane.step == 20
    assert plane.attrs["orthogonalised"] == 0
    assert plane.loss.attrs["long_name"] == "Loss"
    assert plane.alpha.attrs["long_name"].endswith("v1")
    assert plane.beta.attrs["long_name"].endswith("v2")


@pytest.mark.parametrize("terms", [False, True])
@pytest.mark.parametrize("n_points", [5, (3, 7), 51])
def test_odd_numbers_of_points_put_the_checkpoints_own_loss_at_the_centre(descent, eigs, center, n_points, terms):
    pair = eigs.sel(step=20).isel(mode=[1, 2])
    plane = plane_slice(descent.objective, center, pair, half_width=0.3, n_points=n_points, terms=terms)
    at_centre = float(plane.loss.sel(alpha=0, beta=0))  # exactly 0 in the coordinates
    assert at_centre == pytest.approx(float(descent.objective.loss(center.params.values, 20)), rel=1e-12)
    assert plane.loss.shape == (n_points if isinstance(n_points, tuple) else (n_points, n_points))
    assert ("term_loss" in plane) == terms


@pytest.mark.parametrize("n", [2, 3, 4, 11, 50, 51])
def test_the_grid_is_symmetric_even_and_ends_at_the_half_width(descent, eigs, center, n):
    plane = plane_slice(
        descent.objective, center, eigs.sel(step=20).isel(mode=[0, 1]), half_width=(0.7, 2), n_points=(n, 2)
    )
    alpha = plane.alpha.values
    np.testing.assert_array_equal(alpha, -alpha[::-1])
    np.testing.assert_allclose(np.diff(alpha), 1.4 / (n - 1), rtol=1e-12)
    assert alpha[-1] == 0.7
    assert (0 in alpha) == (n % 2 == 1)
    np.testing.assert_array_equal(plane.beta, [-2, 2])


@pytest.mark.parametrize("step", [0, 20, 60, 61, 99])
def test_reweighting_is_recomputing_at_another_step(descent, eigs, center, plane, step):
    pair = eigs.sel(step=20).isel(mode=[0, 1])
    again = plane_slice(descent.objective, center, pair, half_width=(1.0, 0.5), n_points=(9, 8), terms=True, step=step)
    later = reweight(plane, descent.loss_fn.class_weights(step))
    np.testing.assert_allclose(later.loss, again.loss, rtol=1e-12)
    np.testing.assert_array_equal(later.class_weight, again.class_weight)
    xr.testing.assert_identical(later.term_loss, plane.term_loss)
    assert again.step == step
    assert again.attrs["center_step"] == 20


def test_reweighting_with_many_phases_gives_a_plane_for_each(descent, plane):
    phases = np.arange(0, 120, 7)
    weights = xr.DataArray(descent.loss_fn.class_weights(phases).numpy(), dims=("phase", "class"))
    many = reweight(plane, weights)
    assert many.loss.dims == ("phase", "alpha", "beta")
    for i, phase in enumerate(phases):
        one = reweight(plane, descent.loss_fn.class_weights(phase))
        np.testing.assert_allclose(many.loss.isel(phase=i), one.loss, rtol=1e-12)


def test_reweighting_needs_terms_and_as_many_weights(descent, eigs, center, plane):
    with pytest.raises(ValueError, match="terms=True"):
        reweight(plane.drop_vars("term_loss"), [1, 1, 1])
    for weights in ([1.0, 1.0], xr.DataArray([1.0, 1.0, 1.0], dims="weight")):
        with pytest.raises(ValueError, match="3 classes"):
            reweight(plane, weights)


def test_oblique_directions_span_the_same_plane_and_are_said_to_be_orthogonalised(descent, center, loss_of):
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 51))
    second += 2 * first
    plane = plane_slice(descent.objective, center, np.stack([5 * first, second]), half_width=0.4, n_points=3)
    assert plane.attrs["orthogonalised"] == 1
    d = plane.direction.values
    np.testing.assert_allclose(d @ d.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(d[0], first / np.linalg.norm(first), rtol=1e-12)
    coefficients, left = np.linalg.lstsq(np.stack([first, second]).T, d[1], rcond=None)[:2]
    np.testing.assert_allclose(left, 0, atol=1e-25)
    assert coefficients[1] > 0  # the second direction is turned, not turned round
    corner = loss_of(center.params.values + 0.4 * d[0] - 0.4 * d[1], 20)
    assert float(plane.loss.sel(alpha=0.4, beta=-0.4)) == pytest.approx(corner, rel=1e-12)


@pytest.mark.parametrize("angle", [1e-3, 1e-5])
def test_directions_almost_parallel_are_orthogonal_to_rounding(descent, center, angle):
    first, other = np.linalg.qr(np.random.default_rng(4).normal(size=(51, 2)))[0].T
    pair = np.stack([first, np.cos(angle) * first + np.sin(angle) * other])
    d = plane_slice(descent.objective, center, pair, n_points=2).direction.values
    np.testing.assert_allclose(d @ d.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(d[1], other, atol=1e-9)


@pytest.mark.parametrize(
    ("second", "message"),
    [(3.0, "parallel"), (-3.0, "parallel"), (0.0, "not zero"), (np.nan, "finite"), (np.inf, "finite")],
)
def test_directions_that_span_no_plane_are_refused(descent, center, second, message):
    first = np.arange(1.0, 52.0)
    with pytest.raises(ValueError, match=message):
        plane_slice(descent.objective, center, np.stack([first, second * first]))


def test_directions_of_other_shapes_are_refused(descent, eigs, center):
    at = eigs.sel(step=20)
    for directions in (at, at.isel(mode=[0]), np.ones((2, 50)), np.ones(51)):
        with pytest.raises(ValueError, match=r"two directions, shape \(2, 51\)"):
            plane_slice(descent.objective, center, directions)
    with pytest.raises(ValueError, match="one step"):
        plane_slice(descent.objective, center, eigs.isel(mode=[0, 1]))


def test_one_checkpoint_is_asked_for_and_a_sensible_grid(descent, eigs, center):
    pair = eigs.sel(step=20).isel(mode=[0, 1])
    with pytest.raises(ValueError, match=r"one checkpoint.*dim step"):
        plane_slice(descent.objective, descent.checkpoints, pair)
    for options in ({"half_width": 0}, {"half_width": (1, -1)}, {"n_points": 1}, {"n_points": (5, 0)}):
        with pytest.raises(ValueError, match="half_width must be positive and n_points at least 2"):
            plane_slice(descent.objective, center, pair, **options)


def test_directions_may_be_a_transposed_array_with_named_dims(descent, eigs, center):
    pair = eigs.sel(step=20).isel(mode=[0, 1])
    plane = plane_slice(descent.objective, center, pair, n_points=3)
    for directions in (pair.transpose(), pair.eigenvector, pair.eigenvector.T, pair.eigenvector.values):
        again = plane_slice(descent.objective, center, directions, n_points=3)
        xr.testing.assert_equal(again.loss, plane.loss)


def test_a_loss_without_terms_gives_a_plane_but_keeps_none(descent, eigs, center, loss_of):
    objective = Objective(descent.model, lambda o, t, s: descent.loss_fn(o, t, s), *descent.data, batch_size=10)
    pair = eigs.sel(step=20).isel(mode=[0, 1])
    plane = plane_slice(objective, center, pair, half_width=0.5, n_points=2)
    corner = center.params.values + 0.5 * plane.direction.values.sum(0)
    assert float(plane.loss[1, 1]) == pytest.approx(loss_of(corner, 20), rel=1e-12)
    with pytest.raises(ValueError, match=r"terms\(outputs, targets\)"):
        plane_slice(objective, center, pair, terms=True)


def test_losses_that_are_not_finite_are_kept(descent, eigs, center):
    plane = plane_slice(
        descent.objective, center, eigs.sel(step=20).isel(mode=[0, 1]), half_width=(1e200, 1), n_points=3
    )
    assert np.isfinite(plane.loss.sel(alpha=0)).all()
    assert not np.isfinite(plane.loss.isel(alpha=[0, -1])).any()


def test_projections_obey_pythagoras_and_carry_each_points_own_loss(descent, plane, loss_of):
    path = project(descent.objective, descent.checkpoints, plane)
    moved = descent.checkpoints.params.values - plane.center.values
    d = plane.direction.values
    np.testing.assert_allclose(path.alpha, moved @ d[0], atol=1e-13)
    np.testing.assert_allclose(path.beta, moved @ d[1], atol=1e-13)
    squares = path.alpha**2 + path.beta**2 + path.off_plane**2
    np.testing.assert_allclose(squares, (moved**2).sum(1), atol=1e-13)
    expected = [loss_of(row.values, int(row.step)) for row in descent.checkpoints.params]
    np.testing.assert_allclose(path.loss, expected, rtol=1e-12)
    np.testing.assert_allclose([path.off_plane.sel(step=20), path.alpha.sel(step=20)], 0, atol=1e-14)
    assert path.off_plane.sel(step=0) > 1e-3


@pytest.mark.parametrize("lift", [0.0, 0.25])
def test_the_planes_loss_at_grid_nodes_is_that_of_states_on_it(descent, plane, lift):
    d, center = plane.direction.values, plane.center.values
    off = np.linalg.svd(d)[2][5]  # a unit vector perpendicular to both
    nodes = [(2, 3), (4, 4), (6, 1)]
    params = [center + plane.alpha.values[i] * d[0] + plane.beta.values[j] * d[1] + lift * off for i, j in nodes]
    states = xr.Dataset({"params": (("step", "param"), np.stack(params))}, {"step": [20, 140, 260]})  # the same phase
    path = project(descent.objective, states, plane)
    np.testing.assert_allclose(path.plane_loss, [plane.loss.values[node] for node in nodes], rtol=1e-9)
    np.testing.assert_allclose(path.off_plane, lift, atol=1e-13)
    on_plane = np.isclose(path.plane_loss, path.loss, rtol=1e-9)
    assert on_plane.all() if lift == 0 else not on_plane.any()


def test_between_nodes_the_planes_loss_is_interpolated_linearly_and_outside_it_is_nan(descent, plane):
    d, center, (a, b) = plane.direction.values, plane.center.values, (plane.alpha.values, plane.beta.values)
    points = np.array([[(a[2] + a[3]) / 2, b[5]], [(a[2] + a[3]) / 2, (b[5] + b[6]) / 2], [1.01, 0], [0, -0.51]])
    states = xr.Dataset({"params": (("step", "param"), center + points @ d)}, {"step": np.arange(4)})
    path = project(descent.objective, states, plane)
    loss = plane.loss.values
    expected = [loss[2:4, 5].mean(), loss[2:4, 5:7].mean(), np.nan, np.nan]
    np.testing.assert_allclose(path.plane_loss, expected, rtol=1e-9)
    assert np.isfinite(path.loss).all()


@pytest.mark.parametrize("node", [(0, 0), (8, 7), (0, 7), (8, 0), (4, 7)])
def test_states_on_the_border_of_the_plane_are_on_it(descent, plane, node):
    d, center = plane.direction.values, plane.center.values
    nudges = 1 + np.arange(-3, 4) * 1e-16  # rounding decides on which side of the border a state seems to lie
    where = np.outer(nudges, [plane.alpha.values[node[0]], plane.beta.values[node[1]]])
    states = xr.Dataset({"params": (("step", "param"), center + where @ d)}, {"step": np.arange(7)})
    path = project(descent.objective, states, plane)
    np.testing.assert_allclose(path.plane_loss, plane.loss.values[node], rtol=1e-9)


def test_one_state_can_be_projected_and_a_transposed_plane_is_the_same_plane(descent, plane, center):
    one = project(descent.objective, center, plane)
    assert one.sizes == {"step": 1}
    path = project(descent.objective, descent.checkpoints, plane)
    xr.testing.assert_identical(project(descent.objective, descent.checkpoints.transpose(), plane.transpose()), path)


def test_planes_and_paths_are_identical_after_their_files(descent, plane, tmp_path):
    path = project(descent.objective, descent.checkpoints, plane)
    for name, dataset in (("plane", plane), ("path", path)):
        loaded = load_dataset(save_dataset(dataset, tmp_path / f"{name}.h5"))
        xr.testing.assert_identical(loaded, dataset)
