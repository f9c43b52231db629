"""Quadratures are exact for polynomials, densities those of dense matrices, and errors as large as is stated."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import landscape.spectrum
from landscape import Objective, hessian_trace, load_dataset, save_dataset, spectral_density
from landscape.stochastic import quadratures


class Theta(torch.nn.Module):
    """Outputs θ itself, so that the loss function alone makes the quadratic."""

    def __init__(self, n, dtype):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=dtype))

    def forward(self, inputs):
        return self.theta.expand(len(inputs), -1)


def quadratic(matrices, dtype=torch.float64):
    """Objective ½ θᵀ A(t) θ with A(t) = matrices[t]."""
    A = torch.tensor(np.array(matrices), dtype=dtype)
    inputs = torch.zeros(1, 1, dtype=dtype)
    model = Theta(A.shape[-1], dtype)
    return Objective(model, lambda z, _, step: (z @ A[min(step, len(A) - 1)] @ z.T).sum() / 2, inputs, inputs)


def rows(n_steps, n):
    params = np.random.default_rng(0).normal(size=(n_steps, n))
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": np.arange(n_steps)})


def matrix(spectrum, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    return (Q * np.asarray(spectrum, dtype=float)) @ Q.T


def broadened(values, at, width):
    """Mean over `values` (…, n) of Gaussians, at each of `at`."""
    apart = (np.asarray(at)[:, None] - np.asarray(values)[..., None, :]) / width
    return (np.exp(-(apart**2) / 2) / (np.sqrt(2 * np.pi) * width)).mean(-1)


def dense(descent):
    return np.stack([descent.derivatives(step)[2] for step in descent.checkpoints.step.values])


DECAYING = np.r_[40, 20, -10, 10.0 / np.arange(1, 78) ** 1.5]


@pytest.mark.parametrize("m", [1, 3, 6])
def test_a_quadrature_of_m_nodes_is_exact_for_polynomials_of_degree_below_2m_and_no_further(m):
    A = matrix(np.linspace(-1, 2, 30))
    starts = np.random.default_rng(1).normal(size=(2, 4, 30))
    starts /= np.linalg.norm(starts, axis=-1, keepdims=True)
    nodes, weights, sizes = quadratures(lambda v: v @ torch.from_numpy(A), torch.from_numpy(starts), m)
    assert nodes.shape == weights.shape == (2, 4, m)
    assert (sizes == m).all()
    for power in range(2 * m + 1):
        expected = np.einsum("evi,ij,evj->ev", starts, np.linalg.matrix_power(A, power), starts)
        found = (weights * nodes**power).sum(-1)
        if power < 2 * m:
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        else:
            assert (np.abs(found - expected) > 1e-5).all()


def test_as_many_steps_and_start_vectors_as_parameters_give_a_networks_spectrum_without_error(descent):
    density = spectral_density(descent.objective, descent.checkpoints, n_vectors=60, n_lanczos=60)
    eigenvalues = np.linalg.eigvalsh(dense(descent))
    expected = broadened(eigenvalues, density.eigenvalue, density.attrs["width"])
    np.testing.assert_allclose(density.density, expected, atol=1e-7 * expected.max())
    assert (density.standard_error < 1e-12).all()
    assert density.sizes == {"step": 4, "eigenvalue": 512, "vector": 51, "lanczos": 51}
    assert density.attrs["n"] == 51
    spread = eigenvalues.max() - eigenvalues.min()
    assert density.attrs["width"] == pytest.approx(spread / 60, rel=1e-9)
    exponentials = 51 * (density.weight * np.exp(density.node)).sum("lanczos", min_count=1).mean("vector")
    np.testing.assert_allclose(exponentials, np.exp(eigenvalues).sum(-1), rtol=1e-10)


def test_a_density_lies_within_its_standard_error_of_the_dense_one_and_has_no_bias():
    A, n_seeds = matrix(np.r_[np.linspace(-1, 2, 47), 3, 4, 6]), 40
    density = spectral_density(quadratic([A]), rows(n_seeds, 50), n_vectors=20, n_lanczos=16)
    expected = broadened(np.linalg.eigvalsh(A), density.eigenvalue, density.attrs["width"])
    seen = expected > 1e-2 * expected.max()
    error, stated = (density.density - expected)[:, seen], density.standard_error[:, seen]
    assert float((np.abs(error) < 3 * stated).mean()) > 0.95
    assert float((np.abs(error) < stated).mean()) < 0.8  # neither are they stated too large
    assert float((np.abs(error.mean("step")) < 3 * error.std("step") / np.sqrt(n_seeds)).mean()) > 0.95
    np.testing.assert_allclose(np.sqrt((error**2).mean("step")).mean(), stated.mean(), rtol=0.1)


def test_a_networks_density_agrees_with_its_dense_hessian(descent):
    density = spectral_density(descent.objective, descent.checkpoints, n_vectors=25, n_lanczos=15)
    expected = broadened(np.linalg.eigvalsh(dense(descent)), density.eigenvalue, density.attrs["width"])
    error = np.abs(density.density - expected)
    seen = expected > 1e-2 * expected.max()
    assert (error < 3 * density.standard_error).values[seen].mean() > 0.95
    assert (error.max("eigenvalue") < 0.03 * expected.max(-1)).all()


@pytest.mark.parametrize("n_vectors", [1, 3])
@pytest.mark.parametrize("options", [{}, {"width": 1e-3}, {"grid": np.linspace(-3, 5, 4001), "width": 0.01}])
def test_a_density_integrates_to_one(descent, n_vectors, options):
    density = spectral_density(descent.objective, descent.checkpoints, n_vectors=n_vectors, n_lanczos=8, **options)
    np.testing.assert_allclose(density.density.integrate("eigenvalue"), 1, atol=1e-5)
    np.testing.assert_allclose(density.weight.sum("lanczos"), 1, rtol=1e-12)
    assert np.isnan(density.standard_error).all() == (n_vectors == 1)


@pytest.mark.parametrize(("spectrum", "n_nodes"), [([0], 1), ([2], 1), ([0, 3], 2), ([0, 3, -7], 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_invariant_subspace_ends_the_quadrature_with_every_eigenvalue_found(spectrum, n_nodes, dtype):
    whole = np.r_[np.full(60 - 2 * len(spectrum) + 2, spectrum[0]), np.repeat(spectrum[1:], 2)]
    density = spectral_density(quadratic([matrix(whole)], dtype), rows(2, 60), n_vectors=4)
    ended = np.arange(60) >= n_nodes
    assert (np.isnan(density.node) == ended).all()
    assert (density.weight.values[..., ended] == 0).all()
    np.testing.assert_array_equal(density.n_hvp, 4 * n_nodes)
    found = np.broadcast_to(np.sort(spectrum), (2, 4, n_nodes))
    np.testing.assert_allclose(density.node[..., :n_nodes], found, atol=1e-12 if dtype is torch.float64 else 1e-5)
    np.testing.assert_allclose(density.density.integrate("eigenvalue"), 1, atol=1e-5)


def test_a_hessian_that_is_not_finite_gives_nan_and_spares_the_other_steps(descent):
    broken = descent.checkpoints.copy(deep=True)
    broken.params[1] = np.nan
    options = {"n_vectors": 3, "n_lanczos": 9, "grid": np.linspace(-1, 3, 50), "width": 0.2}
    right = spectral_density(descent.objective, descent.checkpoints, **options)
    with pytest.warns(UserWarning, match=r"Hessian of 1 of 4 steps is not finite \(steps 10\)") as caught:
        density = spectral_density(descent.objective, broken, **options)
    assert (len(caught), caught[0].filename) == (1, __file__)
    for name in ("density", "standard_error", "node", "weight"):
        assert np.isnan(density[name][1]).all()
    np.testing.assert_allclose(density.density[[0, 2, 3]], right.density[[0, 2, 3]], atol=1e-9)
    exact = hessian_trace(descent.objective, descent.checkpoints, n_products=51)
    for n_products in (10, 51):
        with pytest.warns(UserWarning, match=r"1 of 4 steps is not finite \(steps 10\)") as caught:
            traces = hessian_trace(descent.objective, broken, n_products=n_products)
        assert (len(caught), caught[0].filename) == (1, __file__)
        assert np.isnan([traces.trace[1], traces.standard_error[1]]).all()
        np.testing.assert_allclose(traces.trace[[0, 2, 3]], exact.trace[[0, 2, 3]], rtol=0.5)
    with pytest.warns(UserWarning, match="1 of 1 steps"):
        assert np.isnan(spectral_density(descent.objective, broken.sel(step=10), n_vectors=1).density).all()


def test_a_step_has_the_same_result_whichever_steps_are_asked_for_and_however_they_are_batched(descent, monkeypatch):
    grid = {"grid": np.linspace(-1, 3, 50), "width": 0.2, "n_vectors": 3, "n_lanczos": 12}
    calls = [(spectral_density, grid, "density"), (hessian_trace, {"n_products": 12}, "trace")]
    together = [call(descent.objective, descent.checkpoints, **options)[name] for call, options, name in calls]
    monkeypatch.setattr(landscape.spectrum, "VECTOR_BYTES", 1)  # one start vector at a time
    for (call, options, name), whole in zip(calls, together, strict=True):
        for steps, batch_rows in ((20, None), ([30, 10, 20], 2)):
            part = call(descent.objective, descent.checkpoints.sel(step=steps), batch_rows=batch_rows, **options)
            assert part[name].dims == whole.sel(step=steps).dims
            np.testing.assert_allclose(part[name], whole.sel(step=steps), atol=1e-8)
        other = call(descent.objective, descent.checkpoints, seed=1, **options)[name]
        assert (np.abs(other - whole) > 1e-4).any()


def test_each_step_has_the_matrix_of_its_own_loss():
    objective, checkpoints = quadratic([np.eye(40), 2 * np.eye(40), matrix(np.r_[9, -3, np.zeros(38)])]), rows(3, 40)
    density = spectral_density(objective, checkpoints.isel(step=[1, 0]), n_vectors=3)
    np.testing.assert_allclose(density.node[..., 0], [[2, 2, 2], [1, 1, 1]], rtol=1e-12)
    traces = hessian_trace(objective, checkpoints.isel(step=[1, 0, 2]), n_products=8)
    np.testing.assert_allclose(traces.trace, [80, 40, 6], rtol=1e-12)


@pytest.mark.parametrize(("parameters", "chosen"), [("hidden.*", slice(0, 24)), (["output.bias"], slice(48, 51))])
def test_some_parameters_alone_have_the_spectrum_and_trace_of_their_block(descent, parameters, chosen):
    block = dense(descent)[:, chosen, chosen]
    options = {"parameters": parameters}
    density = spectral_density(descent.objective, descent.checkpoints, n_vectors=1, **options)
    assert density.attrs["n"] == density.sizes["lanczos"] == block.shape[-1]
    np.testing.assert_allclose(density.node[:, 0], np.linalg.eigvalsh(block), atol=1e-9)
    traces = hessian_trace(descent.objective, descent.checkpoints, n_products=24, **options)
    np.testing.assert_allclose(traces.trace, np.trace(block, axis1=1, axis2=2), rtol=1e-10)
    assert (traces.standard_error == 0).all()
    if len(block[0]) > 20:
        traces = hessian_trace(descent.objective, descent.checkpoints, n_products=22, **options)
        np.testing.assert_allclose(traces.trace, np.trace(block, axis1=1, axis2=2), rtol=0.05)


def test_a_preconditioned_hessian_is_divided_by_the_optimisers_denominator_on_both_sides(descent):
    moments = np.random.default_rng(0).uniform(0.1, 1, descent.checkpoints.params.shape)
    attrs = {"optimizer": "rmsprop", "alpha": 0.9, "epsilon": 1e-3}
    checkpoints = descent.checkpoints.assign(second_moment=(("step", "param"), moments)).assign_attrs(attrs)
    gradient = np.stack([descent.derivatives(step)[1] for step in checkpoints.step.values])
    scale = 1 / np.sqrt(np.sqrt(0.9 * moments + 0.1 * gradient**2) + 1e-3)
    expected = scale[:, :, None] * dense(descent) * scale[:, None, :]
    density = spectral_density(descent.objective, checkpoints, preconditioned=True, n_vectors=1)
    extremes = [density.node.min(("vector", "lanczos")), density.node.max(("vector", "lanczos"))]
    np.testing.assert_allclose(extremes, np.linalg.eigvalsh(expected)[:, [0, -1]].T, rtol=1e-9)
    assert density.eigenvalue.attrs["long_name"] == "Eigenvalue of the preconditioned Hessian"
    traces = hessian_trace(descent.objective, checkpoints, preconditioned=True, n_products=51)
    np.testing.assert_allclose(traces.trace, np.trace(expected, axis1=1, axis2=2), rtol=1e-10)


def test_a_grid_too_coarse_for_the_width_is_said_to_be_so():
    objective, checkpoints = quadratic([matrix(DECAYING)]), rows(1, 80)
    with pytest.warns(
        UserWarning, match=r"a grid of 30 points .* ask for a grid of \d+, or for a larger width"
    ) as caught:
        spectral_density(objective, checkpoints, grid=30, n_vectors=1)
    assert caught[0].filename == __file__
    asked = int(str(caught[0].message).split("ask for a grid of ")[1].split(",")[0])
    density = spectral_density(objective, checkpoints, grid=asked, n_vectors=1)
    assert density.sizes["eigenvalue"] == asked
    np.testing.assert_allclose(density.density.integrate("eigenvalue"), 1, atol=1e-5)


def test_a_traces_standard_error_is_true_and_its_mean_has_no_bias():
    n_seeds = 200
    traces = hessian_trace(quadratic([matrix(DECAYING)]), rows(n_seeds, 80), n_products=32)
    error = (traces.trace - DECAYING.sum()).values
    assert (np.abs(error) < 3 * traces.standard_error).mean() >= 0.95
    assert (np.abs(error) < traces.standard_error).mean() < 0.75
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(n_seeds)
    assert error.std() > 1e-3
    np.testing.assert_array_equal(traces.n_hvp, 32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_trace_is_known_far_better_than_from_as_many_products_by_hutchinson(dtype):
    A, n_seeds, m = matrix(DECAYING), 50, 24
    traces = hessian_trace(quadratic([A], dtype), rows(n_seeds, 80), n_products=m)
    vectors = np.random.default_rng(0).normal(size=(n_seeds, m, 80))
    plain = np.einsum("svi,ij,svj->sv", vectors, A, vectors)
    error = (traces.trace - plain.mean()) / (plain.std() / np.sqrt(n_seeds * m))
    assert np.abs(error).max() < 3  # the plain estimate of 1200 products agrees with each
    rms = np.sqrt(np.mean((traces.trace.values - DECAYING.sum()) ** 2))
    assert rms < 0.1 * plain.mean(1).std()


def test_a_networks_trace_is_exact_from_as_many_products_as_parameters_and_near_with_fewer(descent):
    expected = np.trace(dense(descent), axis1=1, axis2=2)
    for n_products in (51, 1000):
        traces = hessian_trace(descent.objective, descent.checkpoints, n_products=n_products)
        np.testing.assert_allclose(traces.trace, expected, rtol=1e-10)
        np.testing.assert_array_equal(traces.standard_error, 0)
        np.testing.assert_array_equal(traces.n_hvp, 51)
    traces = hessian_trace(descent.objective, descent.checkpoints, n_products=21)
    assert (np.abs(traces.trace - expected) < 4 * traces.standard_error).all()
    assert (traces.standard_error < 0.1 * expected).all()
    np.testing.assert_array_equal(traces.n_hvp, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spectrum", [[0], [0, 3, -7], [0, 3, -3], [-1]])
def test_traces_of_few_distinct_eigenvalues_and_of_negative_ones(spectrum, dtype):
    whole = np.r_[np.full(61 - len(spectrum), spectrum[0]), spectrum[1:]]
    traces = hessian_trace(quadratic([matrix(whole)], dtype), rows(20, 60), n_products=16)
    tolerance = 1e-11 if dtype is torch.float64 else 2e-3
    np.testing.assert_allclose(traces.trace, whole.sum(), atol=tolerance, rtol=0)
    assert (traces.standard_error < tolerance).all()


def test_float32_is_as_good_as_its_rounding():
    A, checkpoints = matrix(1e3 * DECAYING), rows(2, 80)
    options = {"n_vectors": 5, "n_lanczos": 80}
    single, double = (
        spectral_density(quadratic([A], dtype), checkpoints, **options) for dtype in (torch.float32, torch.float64)
    )
    np.testing.assert_allclose(single.density, double.density, atol=1e-3 * double.density.max())
    assert single.node.dtype == np.float64


@pytest.mark.parametrize("single", [False, True])
def test_results_are_identical_after_their_file(descent, tmp_path, single):
    checkpoints = descent.checkpoints.sel(step=30) if single else descent.checkpoints
    for result in (
        spectral_density(descent.objective, checkpoints, n_lanczos=5, parameters=["hidden.*"]),
        hessian_trace(descent.objective, checkpoints, n_products=5),
    ):
        assert ("step" in result.dims) != single
        assert result.attrs["optimizer"] == "gd"
        xr.testing.assert_identical(load_dataset(save_dataset(result, tmp_path / "result.h5")), result)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (spectral_density, {"n_vectors": 0}, "n_vectors must be a whole number of at least 1, got 0"),
        (spectral_density, {"n_lanczos": 2.5}, "n_lanczos must be a whole number of at least 1, got 2.5"),
        (spectral_density, {"width": 0}, "width must be positive, got 0"),
        (spectral_density, {"grid": 1}, "grid must be increasing eigenvalues, or a number of at least 2 points, got 1"),
        (spectral_density, {"grid": [0, 1, 1]}, "grid must be increasing eigenvalues"),
        (spectral_density, {"matrix": "fisher"}, "matrix must be"),
        (spectral_density, {"parameters": "layer1"}, "no parameter matches 'layer1'"),
        (spectral_density, {"preconditioned": True}, "'gd' has no preconditioner"),
        (hessian_trace, {"n_products": 3}, "n_products must be at least 4, or n = 51 for the exact trace, got 3"),
        (hessian_trace, {"batch_rows": 0}, "batch_rows must be a whole number of at least 1, got 0"),
        (hessian_trace, {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_options_are_one_clear_error(descent, call, options, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as caught:
        call(descent.objective, descent.checkpoints, **options)
    assert "\n" not in str(caught.value)
