"""The gradient's parts obey Pythagoras, and motion is that of the rows that were saved."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import Objective, gradient_decomposition, load_dataset, motion, save_dataset, top_eigenpairs

SLOPES = np.arange(1.0, 6.0)


class Bowl(torch.nn.Module):
    """Outputs θ itself: the loss below is ½ Σ a_i θ_i², with gradient a·θ and the axes as eigenvectors."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


@pytest.fixture(scope="module")
def bowl():
    zero, slopes = torch.zeros(1, 1), torch.from_numpy(SLOPES)
    return Objective(Bowl(), lambda theta, targets, step: (slopes * theta**2).sum() / 2, zero, zero)


@pytest.fixture(scope="module")
def eigs(descent):
    return top_eigenpairs(descent.objective, descent.checkpoints, k=3)


def trajectory(params, steps):
    return xr.Dataset({"params": (("step", "param"), np.array(params, dtype=float))}, {"step": steps})


def modes(axes, steps, n=5):
    vectors = np.repeat(np.eye(n)[None, axes], len(steps), axis=0)
    return xr.Dataset({"eigenvector": (("step", "mode", "param"), vectors)}, {"step": steps, "mode": range(len(axes))})


def test_components_and_norms_are_those_of_the_models_own_gradient(descent, eigs):
    grads = gradient_decomposition(descent.objective, descent.checkpoints, eigs)
    for step in descent.checkpoints.step.values:
        g, at, vectors = descent.derivatives(step)[1], grads.sel(step=step), eigs.eigenvector.sel(step=step).values
        outside = g - vectors.T @ (vectors @ g)
        np.testing.assert_allclose(at.component, vectors @ g, atol=1e-13)
        np.testing.assert_allclose(at.gradient_norm, np.linalg.norm(g), rtol=1e-12)
        np.testing.assert_allclose(at.inside_norm, np.linalg.norm(vectors @ g), rtol=1e-10)
        np.testing.assert_allclose(at.bulk_norm, np.linalg.norm(outside), rtol=1e-10)
        np.testing.assert_allclose(at.dominant_fraction, np.linalg.norm(vectors @ g) / np.linalg.norm(g), rtol=1e-10)
    assert (grads.bulk_norm > 1e-3 * grads.gradient_norm).all()


def test_inside_and_bulk_obey_pythagoras(descent, eigs):
    grads = gradient_decomposition(descent.objective, descent.checkpoints, eigs)
    squares = grads.inside_norm**2 + grads.bulk_norm**2
    np.testing.assert_allclose(squares, grads.gradient_norm**2, rtol=1e-12)
    np.testing.assert_allclose((grads.component**2).sum("mode"), grads.inside_norm**2, rtol=1e-12)


def test_on_a_bowl_all_parts_are_known(bowl):
    params, steps = [[1, 2, 3, 4, 5], [0, 0, 1, 0, 0], [2, 0, 0, 0, 1], [0, 0, 0, 0, 0]], [0, 5, 7, 8]
    grads = gradient_decomposition(bowl, trajectory(params, steps), modes([4, 3], steps))
    np.testing.assert_allclose(grads.component, [[25, 16], [0, 0], [5, 0], [0, 0]])
    np.testing.assert_allclose(grads.bulk_norm, [np.sqrt(1 + 16 + 81), 3, 2, 0])
    np.testing.assert_allclose(grads.dominant_fraction, [np.sqrt(881 / 979), 0, 5 / np.sqrt(29), np.nan])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_gradient_in_the_span_has_fraction_one_and_no_bulk(bowl, k):
    params = np.zeros((40, 5))
    params[:, :k] = np.random.default_rng(0).normal(size=(40, k))
    grads = gradient_decomposition(bowl, trajectory(params, range(40)), modes(range(k), range(40)))
    np.testing.assert_allclose(grads.dominant_fraction, 1, rtol=1e-14)
    np.testing.assert_allclose(grads.bulk_norm, 0, atol=1e-14)
    np.testing.assert_allclose(grads.gradient_norm, np.linalg.norm(SLOPES * params, axis=1), rtol=1e-14)


def test_a_small_bulk_is_not_lost_in_the_difference_of_squares(bowl):
    grads = gradient_decomposition(bowl, trajectory([[1, 0, 0, 0, 1e-12]], [0]), modes([0], [0]))
    np.testing.assert_allclose(grads.bulk_norm, 5e-12, rtol=1e-6)


def test_only_steps_that_both_hold_are_decomposed_more_than_a_batch_of_them(bowl):
    steps = np.arange(0, 200, 2)
    params = np.random.default_rng(1).normal(size=(100, 5))
    odd_and_even = np.r_[np.arange(-50, 100), 300]
    eigs = modes([1], odd_and_even)
    eigs["eigenvector"] = eigs.eigenvector * (1 + eigs.step)  # not unit vectors, but each row is known by its own
    grads = gradient_decomposition(bowl, trajectory(params, steps), eigs)
    np.testing.assert_array_equal(grads.step, steps[:50])
    np.testing.assert_allclose(grads.component[:, 0], (1 + steps[:50]) * 2 * params[:50, 1], rtol=1e-14)
    with pytest.raises(ValueError, match="share no step"):
        gradient_decomposition(bowl, trajectory(params, steps), modes([1], steps + 1))


def test_one_row_of_each_and_transposed_datasets_say_the_same(descent, eigs):
    whole = gradient_decomposition(descent.objective, descent.checkpoints, eigs)
    one = gradient_decomposition(descent.objective, descent.checkpoints.sel(step=20), eigs.sel(step=20))
    xr.testing.assert_allclose(one, whole.sel(step=[20]), rtol=1e-12)
    turned = gradient_decomposition(descent.objective, descent.checkpoints.transpose(), eigs.transpose())
    xr.testing.assert_identical(turned, whole)


def test_decompositions_are_identical_after_their_file(descent, eigs, tmp_path):
    grads = gradient_decomposition(descent.objective, descent.checkpoints, eigs)
    xr.testing.assert_identical(load_dataset(save_dataset(grads, tmp_path / "grads.h5")), grads)
    assert grads.attrs == descent.checkpoints.attrs


def test_updates_are_those_of_the_rows_before_and_nan_after_a_gap(bowl):
    rng = np.random.default_rng(2)
    steps = np.r_[3:60, 70, 72:100]  # more than a batch
    theta = dict(zip(steps.tolist(), rng.normal(size=(len(steps), 5)), strict=True))
    path = trajectory(list(theta.values()), steps)
    basis = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    at = steps[::-3][::-1]  # eigenvectors are known at every third row only; updates need the rows between
    eigs = modes([0, 1], at)
    eigs["eigenvector"][:] = basis
    found = gradient_decomposition(bowl, path, eigs, vector="update")
    assert set(found) == {
        "component", "component_error", "update_norm", "inside_norm", "bulk_norm", "dominant_fraction"
    }  # fmt: skip
    assert found.step.values.tolist() == at.tolist()
    for step in at.tolist():
        row = found.sel(step=step)
        if step - 1 not in theta:
            assert all(np.isnan(row[name]).all() for name in found)
            continue
        update = theta[step] - theta[step - 1]
        np.testing.assert_allclose(row.component, basis @ update, rtol=1e-12)
        np.testing.assert_allclose(row.update_norm, np.linalg.norm(update), rtol=1e-12)
        np.testing.assert_allclose(row.inside_norm**2 + row.bulk_norm**2, row.update_norm**2, rtol=1e-12)
        np.testing.assert_allclose(row.dominant_fraction, row.inside_norm / row.update_norm, rtol=1e-12)
    assert {step for step in at.tolist() if step - 1 not in theta}  # some are, or this tests nothing


@pytest.mark.parametrize("reference", [None, 5])
def test_displacements_are_measured_from_the_first_row_or_from_a_checkpoint(bowl, reference):
    params, steps = [[1, 1, 0, 0, 0], [4, 1, 0, 0, 4], [0, 0, 0, 0, 0]], [0, 5, 50]
    path = trajectory(params, steps)
    from_there = None if reference is None else path.sel(step=reference)
    found = gradient_decomposition(bowl, path, modes([0], [5, 50]), vector="displacement", reference=from_there)
    if reference is None:  # the first row of all, which the eigenpairs lack
        np.testing.assert_allclose(found.component[:, 0], [3, -1])
        np.testing.assert_allclose(found.displacement_norm, [5, np.sqrt(2)])
        np.testing.assert_allclose(found.bulk_norm, [4, 1])
    else:
        np.testing.assert_allclose(found.component[:, 0], [0, -4])
        np.testing.assert_allclose(found.bulk_norm, [0, np.sqrt(17)])
        np.testing.assert_allclose(found.dominant_fraction, [np.nan, 4 / np.sqrt(33)])


def test_an_unknown_vector_and_a_reference_without_use_are_refused(bowl):
    path = trajectory(np.ones((2, 5)), [0, 1])
    for options, message in (
        ({"vector": "velocity"}, "vector must be one of gradient, update, displacement"),
        ({"reference": path.sel(step=0)}, 'reference is for vector="displacement"'),
        ({"vector": "displacement", "reference": path}, "reference must be one checkpoint"),
        ({"vector": "displacement", "reference": trajectory([[1.0]], [0])}, "belong to another model"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_decomposition(bowl, path, modes([0], [0, 1]), **options)


@pytest.mark.parametrize("tol", [0.3, 3e-2, 1e-3])
@pytest.mark.parametrize("vector", ["gradient", "displacement"])
def test_component_errors_bound_the_distance_to_the_components_on_exact_eigenvectors(descent, vector, tol):
    loose = top_eigenpairs(descent.objective, descent.checkpoints, k=4, tol=tol)
    found = gradient_decomposition(descent.objective, descent.checkpoints, loose, vector=vector)
    errors = np.zeros((4, 3))  # of all modes but the last
    for row, step in enumerate(descent.checkpoints.step.values):
        _, whole, hessian = descent.derivatives(step)
        if vector == "displacement":
            whole = (descent.checkpoints.params.sel(step=step) - descent.checkpoints.params[0]).values
        exact = np.linalg.eigh(hessian)[1][:, -1:-4:-1].T @ whole
        errors[row] = np.abs(np.abs(found.component.sel(step=step)[:3]) - np.abs(exact))
    bounds, norm = found.component_error.values, found[f"{vector}_norm"].values
    assert (errors <= bounds[:, :3] + 1e-13).all()
    assert (bounds <= norm[:, None]).all()
    assert errors.max() > 1e-3 * bounds[:, :3].max()  # a bound that says something


def test_eigenvectors_without_an_error_leave_components_without_one(bowl):
    found = gradient_decomposition(bowl, trajectory([[1, 0, 0, 0, 1]], [0]), modes([0, 1], [0]))
    assert np.isnan(found.component_error).all()
    wide = modes([0, 1], [0]).assign(vector_error=(("step", "mode"), [[0.5, np.inf]]))
    found = gradient_decomposition(bowl, trajectory([[1, 0, 0, 0, 1]], [0]), wide)
    np.testing.assert_allclose(found.component_error, [[0.5 * np.sqrt(26), np.sqrt(26)]])


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.sampled_from([1, 1, 1, 2, 25]), max_size=14), seed=st.integers(0, 99))
def test_motion_is_that_of_rows_saved_one_after_the_other(gaps, seed):
    steps = np.cumsum([3, *gaps])
    theta = dict(zip(steps.tolist(), np.random.default_rng(seed).normal(size=(len(steps), 4)), strict=True))
    moved = motion(trajectory(list(theta.values()), steps))
    for step in theta:
        now, before, earlier = (theta.get(step - i) for i in range(3))
        norm = cosine = np.nan
        if before is not None:
            norm = np.sqrt(np.sum((now - before) ** 2))
        if before is not None and earlier is not None:
            cosine = np.dot(now - before, before - earlier) / norm / np.sqrt(np.sum((before - earlier) ** 2))
        np.testing.assert_allclose(moved.update_norm.sel(step=step), norm, rtol=1e-12)
        np.testing.assert_allclose(moved.update_cosine.sel(step=step), cosine, rtol=1e-9, atol=1e-12)


def test_motion_of_a_long_trajectory_has_no_seams():
    t = np.arange(1000)
    circle = trajectory(np.stack([np.cos(0.1 * t), np.sin(0.1 * t)], axis=1), t)
    for path in (circle, circle.transpose()):
        moved = motion(path)
        np.testing.assert_allclose(moved.update_norm[1:], 2 * np.sin(0.05), rtol=1e-9)
        np.testing.assert_allclose(moved.update_cosine[2:], np.cos(0.1), rtol=1e-9)
        assert np.isnan(moved.update_norm[0])
        assert np.isnan(moved.update_cosine[:2]).all()


def test_where_nothing_moves_the_cosine_is_undefined():
    moved = motion(trajectory([[0, 0], [1, 0], [1, 0], [1, 1], [1, 3]], range(5)))
    np.testing.assert_array_equal(moved.update_norm, [np.nan, 1, 0, 1, 2])
    np.testing.assert_array_equal(moved.update_cosine, [np.nan, np.nan, np.nan, np.nan, 1])
    np.testing.assert_array_equal(motion(trajectory([[1, 2]], [7])).update_norm, [np.nan])
