"""Exponents of maps whose exponents are known, and of a network against the determinant of its dense Jacobians."""

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import Objective, lyapunov_exponents, replay


class Theta(torch.nn.Module):
    """A model whose output is θ, so that a loss of the output is any function F(θ, t)."""

    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


def objective_of(function, n):
    return Objective(Theta(n), lambda theta, _, step: function(theta, step), torch.zeros(1, 1), torch.zeros(1))


def path_of(params, first=0, rate=1.0):
    params = np.asarray(params, float).reshape(len(params), -1)
    attrs = {"optimizer": "gd", "learning_rate": rate}
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": first + np.arange(len(params))}, attrs)


def logistic(r, n_steps, x=0.3, transient=0):
    """The objective that descends as x → r x(1 − x), and its path."""
    objective = objective_of(lambda x, _: x[0] ** 2 / 2 - r * (x[0] ** 2 / 2 - x[0] ** 3 / 3), 1)
    states = []
    for i in range(transient + n_steps + 1):
        if i >= transient:
            states.append(x)
        x = r * x * (1 - x)
    return objective, path_of(states)


def test_chaos_of_the_logistic_map_at_r_4_grows_by_a_factor_of_2_a_step():
    found = lyapunov_exponents(*logistic(4.0, 1000, transient=10), k=1)
    np.testing.assert_allclose(found.finite_time_exponent, np.log(2), atol=0.01)


@pytest.mark.parametrize("r", [1.5, 2.3, 2.8])
def test_a_stable_fixed_point_contracts_by_its_multiplier(r):
    found = lyapunov_exponents(*logistic(r, 20, transient=2000), k=1)
    np.testing.assert_allclose(found.finite_time_exponent, np.log(abs(2 - r)), rtol=1e-9)
    np.testing.assert_allclose(found.exponent[1:, 0], np.log(abs(2 - r)), rtol=1e-9)


@pytest.mark.parametrize("r", [3.1, 3.3, 3.47])
def test_the_two_cycle_of_the_logistic_map_has_half_the_logarithm_of_its_multiplier(r):
    # Its two derivatives multiply to 4 + 2r − r²; beyond r = 1 + √6 it is unstable, and followed all the same.
    cycle = (r + 1 + np.array([1, -1]) * np.sqrt((r - 3) * (r + 1))) / (2 * r)
    objective, _ = logistic(r, 1)
    found = lyapunov_exponents(objective, path_of(np.tile(cycle, 6)[:11]), k=1)
    np.testing.assert_allclose(found.finite_time_exponent, np.log(abs(4 + 2 * r - r**2)) / 2, rtol=1e-9)


def test_a_superstable_orbit_has_the_exponent_minus_infinity_from_there_on():
    found = lyapunov_exponents(*logistic(2.0, 5, x=0.5), k=1)
    assert found.finite_time_exponent.item() == -np.inf
    assert (found.exponent[1:] == -np.inf).all()
    assert np.isnan(found.exponent[0]).all()
    # The superstable two-cycle at r = 1 + √5 holds 1/2 only up to rounding.
    assert lyapunov_exponents(*logistic(1 + np.sqrt(5), 20, transient=500), k=1).finite_time_exponent < -10


def test_a_quadratic_has_the_exponent_of_each_eigenvalue():
    rng, rate = np.random.default_rng(1), 0.3
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    eigenvalues = np.array([9.0, 6.2, 4.0, 1.1, -0.4, 0.02])  # 2/η is 6.7: one direction grows by its sign changes
    matrix = torch.from_numpy(basis @ np.diag(eigenvalues) @ basis.T)
    objective = objective_of(lambda theta, _: theta @ matrix @ theta / 2, 6)
    start = xr.Dataset({"params": ("param", rng.standard_normal(6))}, {"step": 7}, {"learning_rate": rate})
    path = replay(objective, start, 260)
    expected = np.sort(np.log(np.abs(1 - rate * eigenvalues)))[::-1]
    found = lyapunov_exponents(objective, path, k=6, window=20)
    np.testing.assert_allclose(found.exponent[-1], expected, atol=1e-6)  # once the vectors have turned
    np.testing.assert_allclose(found.finite_time_exponent, expected, atol=0.05)
    np.testing.assert_allclose(found.finite_time_exponent.sum(), expected.sum(), rtol=1e-9)
    assert found.exponent.dims == ("step", "mode")
    assert found.step.values.tolist() == path.step.values.tolist()
    assert np.isnan(found.exponent[:20]).all()
    assert np.isfinite(found.exponent[20:]).all()
    np.testing.assert_allclose(lyapunov_exponents(objective, path, k=2).exponent[-1], expected[:2], atol=0.05)


def test_a_hessian_that_moves_is_taken_at_its_own_state_and_step():
    # F = a_t θ²/2 with a_t = 1 + t: the factors are 1 − η(1 + t), of steps 3, 4, 5; the last state's does not count.
    objective = objective_of(lambda theta, step: (1 + step) * theta[0] ** 2 / 2, 1)
    found = lyapunov_exponents(objective, path_of([1.0, 0.6, 0.3, 0.1], first=3, rate=0.1), k=1)
    np.testing.assert_allclose(found.exponent[1:, 0], np.cumsum(np.log([0.6, 0.5, 0.4])) / [1, 2, 3], rtol=1e-12)
    windowed = lyapunov_exponents(objective, path_of([1.0, 0.6, 0.3, 0.1], first=3, rate=0.1), k=1, window=1)
    np.testing.assert_allclose(windowed.exponent[1:, 0], np.log([0.6, 0.5, 0.4]), rtol=1e-12)
    faster = lyapunov_exponents(objective, path_of([1.0, 0.6], first=3), k=1, learning_rate=0.05)
    np.testing.assert_allclose(faster.finite_time_exponent, np.log(0.8), rtol=1e-12)
    assert faster.attrs["learning_rate"] == 0.05


def test_exponents_of_a_network_add_up_to_the_growth_of_volume(descent, oracle):
    path = replay(descent.objective, descent.checkpoints.sel(step=20), 4)
    n = descent.objective.n_params
    found = lyapunov_exponents(descent.objective, path, k=n)
    volumes = []
    for step in range(20, 24):
        theta = path.params.sel(step=step).values
        hessian = oracle(descent.model, descent.loss_fn, *descent.data, theta, step)[2]
        volumes.append(np.linalg.slogdet(np.eye(n) - 0.5 * hessian)[1])
    np.testing.assert_allclose(found.exponent[1:].sum("mode"), np.cumsum(volumes) / [1, 2, 3, 4], rtol=1e-8)


def test_a_state_read_in_blocks_gives_the_same(descent, monkeypatch):
    path = replay(descent.objective, descent.checkpoints.sel(step=20), 7)
    whole = lyapunov_exponents(descent.objective, path, k=3)
    monkeypatch.setattr("landscape.lyapunov.BLOCK", 3)
    xr.testing.assert_allclose(lyapunov_exponents(descent.objective, path, k=3), whole)


def test_after_a_hessian_that_is_not_finite_exponents_are_nan():
    objective = objective_of(lambda theta, step: theta[0] ** 2 * (torch.inf if step == 2 else 0.25), 1)
    objective.check = False
    found = lyapunov_exponents(objective, path_of([1.0] * 5), k=1)
    np.testing.assert_allclose(found.exponent[1:3, 0], np.log(0.5))
    assert np.isnan(found.exponent[3:]).all()
    assert np.isnan(found.finite_time_exponent).all()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (path_of([1.0, 0.5, 0.25]).isel(step=[0, 2]), {}, "a step is missing before step 2"),
        (path_of([1.0]), {}, "at least two consecutive states"),
        (path_of([1.0, 0.5]), {"k": 2}, "k must be between 1 and 1"),
        (path_of([1.0, 0.5]), {"window": 2}, "window must lie between 1 and 1"),
        (path_of([1.0, 0.5]).drop_attrs(), {}, "name no learning_rate"),
        (path_of([1.0, 0.5]).assign_attrs(optimizer="sgd"), {}, "lyapunov_exponents knows gd only, .* by 'sgd'"),
    ],
)
def test_what_has_no_exponents_is_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(objective_of(lambda theta, _: theta[0] ** 2 / 4, 1), path, **{"k": 1} | options)
