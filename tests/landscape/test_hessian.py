"""Top eigenpairs are those of the dense Hessian, with true residuals, followed from step to step."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import xarray as xr

from landscape import Objective, load_dataset, save_dataset, top_eigenpairs


class Quadratic(torch.nn.Module):
    """Outputs θ itself, so that the loss function alone makes the quadratic."""

    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta.expand(len(inputs), -1)


def quadratic(matrices):
    """Objective ½ θᵀ A(t) θ with A(t) = matrices[t]."""
    A = torch.from_numpy(np.array(matrices))
    inputs = torch.zeros(1, 1, dtype=torch.float64)
    return Objective(Quadratic(A.shape[-1]), lambda z, _, step: (z @ A[step] @ z.T).sum() / 2, inputs, inputs)


def rows(n_steps, n, attrs=None):
    params = np.random.default_rng(0).normal(size=(n_steps, n))
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": np.arange(n_steps)}, attrs)


def orthonormal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def matrix(spectrum, seed=0):
    Q = orthonormal(len(spectrum), seed)
    return (Q * np.asarray(spectrum, dtype=float)) @ Q.T


def dense(descent):
    return [descent.derivatives(step)[2] for step in descent.checkpoints.step.values]


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("which", ["LA", "SA"])
def test_a_networks_eigenpairs_are_those_of_its_dense_hessian(descent, k, which):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=k, which=which, tol=1e-6)
    assert eigs.certified.all()
    assert eigs.converged.all()
    for row, H in enumerate(dense(descent)):
        values, vectors = np.linalg.eigh(H)
        chosen = slice(None, None, -1 if which == "LA" else 1)
        values, vectors = values[chosen], vectors[:, chosen]
        np.testing.assert_allclose(eigs.eigenvalue[row], values[:k], atol=1e-9 * np.abs(values).max())
        overlaps = np.abs(np.sum(eigs.eigenvector[row].values.T * vectors[:, :k], axis=0))
        np.testing.assert_allclose(overlaps, 1, atol=1e-5)
        other = scipy.sparse.linalg.eigsh(H, k, which=which, v0=np.ones(len(H)), return_eigenvectors=False)
        np.testing.assert_allclose(np.sort(eigs.eigenvalue[row]), np.sort(other), atol=1e-9 * np.abs(values).max())


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_residuals_are_those_of_the_dense_hessian_and_vectors_have_unit_length(descent, tol):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=4, tol=tol)
    assert (eigs.residual <= tol).all()
    for row, H in enumerate(dense(descent)):
        vectors, values = eigs.eigenvector[row].values, eigs.eigenvalue[row].values
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
        largest = np.abs(np.linalg.eigvalsh(H)).max()
        residuals = np.linalg.norm(vectors @ H - values[:, None] * vectors, axis=1)
        expected = residuals / np.maximum(np.abs(values), 1e-3 * largest)
        np.testing.assert_allclose(eigs.residual[row], expected, rtol=1e-4, atol=1e-13)


def test_residuals_of_small_eigenvalues_are_relative_to_a_thousandth_of_the_largest():
    A = matrix([10, 1e-6, 1e-7, *-np.geomspace(1e-8, 1e-5, 37)])
    eigs = top_eigenpairs(quadratic([A]), rows(1, 40), k=3, tol=1e-4).isel(step=0)
    vectors, values = eigs.eigenvector.values, eigs.eigenvalue.values
    residuals = np.linalg.norm(vectors @ A - values[:, None] * vectors, axis=1)
    expected = residuals / np.maximum(values, 1e-3 * 10)
    assert expected[2] > 1e-12
    np.testing.assert_allclose(eigs.residual, expected, rtol=1e-5, atol=1e-13)
    assert eigs.converged.all()


@pytest.mark.parametrize("seed", range(5))
def test_a_triple_top_eigenvalue_is_found_three_times(seed):
    A = matrix([3, 3, 3, *np.linspace(-1, 1, 57)])
    eigs = top_eigenpairs(quadratic([A, A]), rows(2, 60), k=4, seed=seed)
    np.testing.assert_allclose(eigs.eigenvalue, [[3, 3, 3, 1]] * 2, rtol=2e-3)
    assert eigs.certified.all()
    for vectors in eigs.eigenvector.values:
        np.testing.assert_allclose(vectors[:3] @ A, 3 * vectors[:3], atol=1e-3)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)


def test_signs_follow_slowly_turning_eigenvectors():
    Q, n_steps = orthonormal(12), 25
    A = []
    for t in range(n_steps):
        c, s = np.cos(0.1 * t), np.sin(0.1 * t)  # v_0, v_1 turn by 2.4 radians in all: signs of the start would flip
        turned = Q @ np.block([[np.array([[c, -s], [s, c]]), np.zeros((2, 10))], [np.zeros((10, 2)), np.eye(10)]])
        A.append((turned * np.r_[5, 3, np.linspace(0, 1, 10)]) @ turned.T)
    eigs = top_eigenpairs(quadratic(A), rows(n_steps, 12), k=2, batch_rows=7)
    products = (eigs.eigenvector * eigs.eigenvector.shift(step=1)).sum("param").isel(step=slice(1, None))
    np.testing.assert_allclose(products, np.cos(0.1), atol=1e-3)
    np.testing.assert_allclose(eigs.overlap[1:], np.cos(0.1), atol=1e-3)
    np.testing.assert_array_equal(eigs.previous_mode[1:], [[0, 1]] * (n_steps - 1))
    assert np.isnan(eigs.overlap[0]).all()
    assert np.isnan(eigs.previous_mode[0]).all()


def test_where_eigenvalues_cross_modes_keep_their_order_and_name_the_mode_they_continue():
    Q, t, crossing = orthonormal(10), np.arange(8), 4
    falling, rising = 3.1 - 0.3 * t, 1.1 + 0.3 * t  # equal at t = 3⅓
    A = [(Q * np.r_[a, b, np.linspace(-1, 0.5, 8)]) @ Q.T for a, b in zip(falling, rising, strict=True)]
    eigs = top_eigenpairs(quadratic(A), rows(8, 10), k=2)
    expected = np.sort(np.stack([falling, rising], axis=1))[:, ::-1]
    np.testing.assert_allclose(eigs.eigenvalue, expected, rtol=1e-6)
    np.testing.assert_array_equal(eigs.previous_mode[1:], [[0, 1]] * 3 + [[1, 0]] + [[0, 1]] * 3)
    np.testing.assert_allclose(eigs.overlap[1:], 1, atol=1e-5)
    np.testing.assert_allclose(eigs.gap[:, 0], np.abs(falling - rising), rtol=1e-5)
    first = eigs.eigenvector[0].values
    for row in range(8):
        expected = first if row < crossing else first[::-1]
        np.testing.assert_allclose(eigs.eigenvector[row], expected, atol=2e-3)


def test_a_series_in_two_parts_continues_with_previous():
    A = [matrix([4 + t, 3, 2, *np.linspace(0, 1, 9)]) for t in range(8)]
    objective, checkpoints = quadratic(A), rows(8, 12)
    whole = top_eigenpairs(objective, checkpoints, k=3)
    first = top_eigenpairs(objective, checkpoints.isel(step=slice(0, 4)), k=3)
    for last in (first.isel(step=-1), first.isel(step=-1).transpose()):
        second = top_eigenpairs(objective, checkpoints.isel(step=slice(4, None)), k=3, previous=last)
        joined = xr.concat([first, second], "step", data_vars="all")
        np.testing.assert_allclose(joined.eigenvector, whole.eigenvector, atol=1e-2)
        np.testing.assert_allclose(joined.eigenvalue, whole.eigenvalue, rtol=1e-6)
        np.testing.assert_array_equal(joined.previous_mode, whole.previous_mode)


def test_a_step_has_the_same_pairs_whichever_steps_are_asked_for(descent):
    together = top_eigenpairs(descent.objective, descent.checkpoints, k=3, tol=1e-7)
    alone = top_eigenpairs(descent.objective, descent.checkpoints.sel(step=20), k=3, tol=1e-7)
    backwards = top_eigenpairs(descent.objective, descent.checkpoints.isel(step=[3, 2, 1]), k=3, tol=1e-7)
    assert alone.eigenvalue.dims == ("mode",)
    assert alone.step == 20
    np.testing.assert_allclose(alone.eigenvalue, together.eigenvalue.sel(step=20), rtol=1e-9)
    np.testing.assert_allclose(backwards.eigenvalue, together.eigenvalue.sel(step=[30, 20, 10]), rtol=1e-9)
    np.testing.assert_array_equal(backwards.step, [30, 20, 10])


@pytest.mark.parametrize(
    ("attrs", "threshold"),
    [
        ({}, np.nan),
        ({"optimizer": "gd", "learning_rate": 0.25}, 8.0),
        ({"optimizer": "momentum", "learning_rate": 0.25, "momentum": 0.5}, 12.0),
        ({"optimizer": "adam", "learning_rate": 0.25}, np.nan),
    ],
)
def test_the_threshold_is_that_of_the_optimiser_the_attrs_name(attrs, threshold):
    checkpoints = rows(3, 5, attrs)
    eigs = top_eigenpairs(quadratic([np.eye(5)] * 3), checkpoints, k=1)
    np.testing.assert_array_equal(eigs.threshold, [threshold] * 3)
    assert attrs.items() <= eigs.attrs.items()
    assert checkpoints.attrs == attrs


def test_the_hessian_is_that_of_the_loss_at_the_checkpoints_own_step():
    eigs = top_eigenpairs(quadratic([np.eye(4), 2 * np.eye(4), 5 * np.eye(4)]), rows(3, 4).isel(step=[2, 0]), k=2)
    np.testing.assert_allclose(eigs.eigenvalue, [[5, 5], [1, 1]], rtol=1e-12)


def test_too_few_products_come_back_unconverged_with_one_warning_that_names_the_steps():
    objective = quadratic([np.eye(80), matrix(np.linspace(0, 1, 80)), matrix(np.linspace(0, 1, 80))])
    with pytest.warns(UserWarning, match=r"2 of 3 steps are not certified \(steps 1, 2\)") as caught:
        eigs = top_eigenpairs(objective, rows(3, 80), k=2, max_products=9)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(eigs.converged, [[True] * 2, [False] * 2, [False] * 2])
    assert (eigs.n_hvp <= 9).all()
    assert (eigs.residual[1:] > 1e-4).all()
    assert np.isfinite(eigs.eigenvalue).all()


def test_without_a_certificate_nothing_is_called_certified():
    objective, checkpoints = quadratic([matrix([9, 5, *np.linspace(0, 1, 58)])]), rows(1, 60)
    plain = top_eigenpairs(objective, checkpoints, k=2, certify=False)
    assert plain.converged.all()
    assert not plain.certified.any()
    assert (plain.n_hvp < top_eigenpairs(objective, checkpoints, k=2).n_hvp).all()


def test_a_hessian_that_is_not_finite_gives_nan_and_spares_the_other_steps(descent):
    broken = descent.checkpoints.copy(deep=True)
    broken.params[1] = np.nan
    with pytest.warns(UserWarning, match=r"1 of 4 steps .*\(steps 10\)"):
        eigs = top_eigenpairs(descent.objective, broken, k=2)
    assert np.isnan(eigs.eigenvalue[1]).all()
    assert not eigs.certified[1].any()
    right = top_eigenpairs(descent.objective, descent.checkpoints, k=2)
    np.testing.assert_allclose(eigs.eigenvalue[[0, 2, 3]], right.eigenvalue[[0, 2, 3]], rtol=1e-6)
    assert (eigs.overlap[2] > 0).all()  # followed from the last finite row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be between 1 and 51, the number of parameters, got 0"),
        ({"k": 52}, "k must be between 1 and 51, the number of parameters, got 52"),
        ({"tol": 0}, "tol must be positive, got 0"),
        ({"which": "LM"}, "\"SA\".*got 'LM'"),
        ({"k": 5, "max_products": 4}, "max_products must be at least k = 5, got 4"),
    ],
)
def test_bad_options_are_one_clear_error(descent, options, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(descent.objective, descent.checkpoints, **options)


def test_checkpoints_of_another_model_are_refused(descent):
    other = descent.checkpoints.isel(param=slice(0, 50))
    with pytest.raises(ValueError, match="another model: 50 parameters against 51"):
        top_eigenpairs(descent.objective, other)
    renamed = descent.checkpoints.assign_attrs(
        layout=descent.objective.layout.to_json().replace("hidden.bias", "hidden.shift")
    )
    with pytest.raises(ValueError, match=r"hidden\.shift \[8\] stands against hidden\.bias \[8\]"):
        top_eigenpairs(descent.objective, renamed)
    with pytest.raises(ValueError, match="no rows"):
        top_eigenpairs(descent.objective, descent.checkpoints.isel(step=[]))
    with pytest.raises(ValueError, match=r"params \(step, param\)"):
        top_eigenpairs(descent.objective, descent.checkpoints.rename(params="theta"))


def test_checkpoints_transposed_are_the_same_checkpoints(descent):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=2)
    xr.testing.assert_identical(eigs, top_eigenpairs(descent.objective, descent.checkpoints.transpose(), k=2))


@pytest.mark.parametrize("single", [False, True])
def test_eigenpairs_are_identical_after_their_file(descent, tmp_path, single):
    checkpoints = descent.checkpoints.sel(step=30) if single else descent.checkpoints
    eigs = top_eigenpairs(descent.objective, checkpoints, k=2)
    xr.testing.assert_identical(load_dataset(save_dataset(eigs, tmp_path / "eigs.h5")), eigs)


def test_all_pairs_can_be_asked_for(descent):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=51)
    assert eigs.certified.all()
    np.testing.assert_allclose(eigs.eigenvalue, np.linalg.eigvalsh(dense(descent))[:, ::-1], atol=1e-9)
    assert np.isnan(eigs.gap[:, -1]).all()
