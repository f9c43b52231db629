"""Curvature at an onset against dense matrices, closed forms, and what each optimiser does at its threshold."""

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, find_onsets, motion, onset_curvature, open_run, replay, stability_threshold
from landscape.floquet import fixed_point_multiplier


class Theta(torch.nn.Module):
    """A model whose output is θ, so that a loss of the output is any function F(θ, t)."""

    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


def objective_of(function, n):
    return Objective(Theta(n), lambda theta, _, step: function(theta, step), torch.zeros(1, 1), torch.zeros(1))


def checkpoints_at(params, steps, **attrs):
    return xr.Dataset({"params": (("step", "param"), np.asarray(params, float))}, {"step": steps}, attrs)


QUADRATIC = torch.from_numpy(np.random.default_rng(3).standard_normal((5, 5)))
QUADRATIC = QUADRATIC @ QUADRATIC.T / 5
QUARTIC = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4], dtype=torch.float64)
RATE = 0.4


def quartic(theta, step):
    return 0.5 * (1 + 0.1 * step) * theta @ QUADRATIC @ theta + 0.25 * QUARTIC @ theta**4


def quartic_gradient(theta, step):
    return (1 + 0.1 * step) * QUADRATIC.numpy() @ theta + QUARTIC.numpy() * theta**3


def quartic_hessian(theta, step):
    return (1 + 0.1 * step) * QUADRATIC.numpy() + 3 * np.diag(QUARTIC.numpy() * theta**2)


@pytest.fixture(scope="module")
def path():
    """Fourteen states of a descent on the quartic, from step 3 on, by numpy."""
    states = [np.array([1.0, -0.7, 0.4, 0.9, -1.1])]
    for step in range(3, 16):
        states.append(states[-1] - RATE * quartic_gradient(states[-1], step))
    return checkpoints_at(states, 3 + np.arange(14), optimizer="gd", learning_rate=RATE)


def onsets_at(*steps):
    phase = ("onset", np.linspace(0.1, 0.2, len(steps)))
    return xr.Dataset({"onset_step": ("onset", np.array(steps, dtype=np.int64)), "onset_phase": phase})


@pytest.mark.parametrize(
    "saved", [range(3, 17), [3], [3, 7, 8, 12], [3, 10]], ids=["every step", "the first", "some", "two"]
)
def test_curvature_at_an_onset_is_that_of_dense_hessians_also_where_states_must_be_replayed(path, saved):
    steps = [4, 7, 10]
    checkpoints = path.sel(step=list(saved))
    found = onset_curvature(objective_of(quartic, 5), checkpoints, onsets_at(*steps), tol=1e-9)
    for i, step in enumerate(steps):
        now, after = (path.params.sel(step=s).values for s in (step, step + 1))
        values, vectors = np.linalg.eigh(quartic_hessian((now + after) / 2, step))
        at = found.isel(onset=i)
        np.testing.assert_allclose(at.eigenvalue, values[-1], rtol=1e-9)
        ends = quartic_hessian(now, step), quartic_hessian(after, step + 1)
        tops = [np.linalg.eigvalsh(hessian)[-1] for hessian in ends]
        np.testing.assert_allclose([at.eigenvalue_sharper, at.eigenvalue_flatter], sorted(tops)[::-1], rtol=1e-9)
        assert at.eigenvalue_sharper > at.eigenvalue_flatter
        v = vectors[:, -1]
        motion_along = abs(v @ (after - now)) / np.linalg.norm(after - now)
        np.testing.assert_allclose(at.overlap, motion_along, rtol=1e-6)
        np.testing.assert_allclose(at.floquet_multiplier, 1 - RATE * values[-1], rtol=1e-9)
    assert found.onset_step.values.tolist() == steps
    np.testing.assert_array_equal(found.onset_phase, onsets_at(*steps).onset_phase)
    np.testing.assert_allclose(found.threshold, 2 / RATE)
    assert all(found[name].dims == ("onset",) for name in found.data_vars)


@pytest.mark.parametrize("sharpness", [2.05, 2.2, 2.45])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_a_two_cycle_of_a_soft_quartic_has_its_closed_form(sharpness, rate):
    # x → x − η(λx − x³) alternates between ±x* with x*² = λ − 2/η; there F'' = 6/η − 2λ, so that two steps stretch
    # by (1 − ηF'')² = (2ηλ − 5)², and the midpoint 0 has F'' = λ.
    curvature = sharpness / rate
    x = np.sqrt(curvature - 2 / rate)
    objective = objective_of(lambda theta, step: 0.5 * curvature * theta[0] ** 2 - 0.25 * theta[0] ** 4, 1)
    checkpoints = checkpoints_at([[x], [-x]], [40, 41], optimizer="gd", learning_rate=rate)
    found = onset_curvature(objective, checkpoints, onsets_at(40), period=2)
    np.testing.assert_allclose(found.eigenvalue, curvature, rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalue_sharper, 6 / rate - 2 * curvature, rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalue_flatter, 6 / rate - 2 * curvature, rtol=1e-9)
    np.testing.assert_allclose(found.floquet_multiplier, (2 * sharpness - 5) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.overlap, 1, rtol=1e-9)


def test_a_sharpness_that_grows_slowly_through_the_threshold_is_found_just_above_it():
    # F = λ(t) x²/2 − x⁴/4 + y/100 with ηλ = 1.98 … 2.06 in 800 steps: y drifts, then x flips its sign at every step.
    def function(theta, step):
        return 0.5 * (1.98 + 1e-4 * step) * theta[0] ** 2 - 0.25 * theta[0] ** 4 + 0.01 * theta[1]

    objective = objective_of(function, 2)
    start = checkpoints_at([[1e-4, 0.0]], [0], optimizer="gd", learning_rate=1.0)
    path = replay(objective, start.sel(step=0), 800)
    found = onset_curvature(objective, path, find_onsets(motion(path)))
    assert found.sizes["onset"] == 1
    # The bifurcation is delayed: x has to grow from what is left of it until it moves more than y does.
    assert 2 < found.eigenvalue < 2.06
    assert found.overlap > 0.98
    np.testing.assert_allclose(found.eigenvalue, 1.98 + 1e-4 * found.onset_step, rtol=1e-3)
    alone = onset_curvature(objective, start, find_onsets(motion(path)), learning_rate=1.0)
    xr.testing.assert_allclose(alone, found)


def test_the_state_at_the_onset_is_enough(path):
    found = onset_curvature(objective_of(quartic, 5), path.sel(step=[7, 12]), onsets_at(7))
    whole = onset_curvature(objective_of(quartic, 5), path, onsets_at(7))
    xr.testing.assert_allclose(found, whole)
    alone = onset_curvature(objective_of(quartic, 5), path.sel(step=7), onsets_at(7))
    xr.testing.assert_equal(alone, found)


def test_an_onset_before_the_first_saved_state_is_refused(path):
    message = "no checkpoint was saved at or before the onset at step 6; record more of the run"
    with pytest.raises(ValueError, match=message):
        onset_curvature(objective_of(quartic, 5), path.sel(step=[7, 8]), onsets_at(6))


def test_an_unknown_learning_rate_is_refused_unless_given(path):
    objective, onsets = objective_of(quartic, 5), onsets_at(7)
    nameless = path.drop_attrs()
    with pytest.raises(ValueError, match="name no learning_rate"):
        onset_curvature(objective, nameless, onsets)
    found = onset_curvature(objective, nameless, onsets, learning_rate=RATE)
    xr.testing.assert_equal(found, onset_curvature(objective, path, onsets))
    assert found.attrs["learning_rate"] == RATE


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("dense", [32, 0], ids=["built", "by Arnoldi"])
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_the_multiplier_of_a_longer_orbit_is_that_of_the_product_of_its_jacobians(
    path, period, dense, momentum, monkeypatch
):
    monkeypatch.setattr("landscape.floquet.DENSE", dense)
    attrs = {"optimizer": "momentum", "momentum": momentum} if momentum else {}
    found = onset_curvature(objective_of(quartic, 5), path.assign_attrs(attrs), onsets_at(5), period=period)
    product, beta, one, none = np.eye(10), momentum or 0, np.eye(5), np.zeros((5, 5))
    for step in range(5, 5 + period):
        hessian = quartic_hessian(path.params.sel(step=step).values, step)
        product = np.block([[(1 + beta) * one - RATE * hessian, -beta * one], [one, none]]) @ product
    expected = np.linalg.eigvals(product if momentum else product[:5, :5]).real.min()
    np.testing.assert_allclose(found.floquet_multiplier, expected, rtol=1e-5)
    assert found.attrs["period_of_orbit"] == period


@pytest.mark.parametrize("saved", [[3], [3, 5, 6]])
def test_all_states_of_a_longer_orbit_are_replayed(path, saved):
    found = onset_curvature(objective_of(quartic, 5), path.sel(step=saved), onsets_at(5), period=3)
    xr.testing.assert_allclose(found, onset_curvature(objective_of(quartic, 5), path, onsets_at(5), period=3))


def logistic(r):
    return objective_of(lambda x, _: x[0] ** 2 / 2 - r * (x[0] ** 2 / 2 - x[0] ** 3 / 3), 1)


def test_multipliers_of_the_logistic_map_are_minus_one_where_it_flips():
    x = 2 / 3
    checkpoints = checkpoints_at([[x + 1e-6], [x - 1e-6]], [0, 1], learning_rate=1.0)
    found = onset_curvature(logistic(3.0), checkpoints, onsets_at(0))
    np.testing.assert_allclose(found.floquet_multiplier, -1, rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalue, found.threshold, rtol=1e-9)
    r = 1 + np.sqrt(6)
    cycle = (r + 1 + np.array([1, -1]) * np.sqrt((r - 3) * (r + 1))) / (2 * r)
    checkpoints = checkpoints_at(cycle[:, None], [0, 1], learning_rate=1.0)
    found = onset_curvature(logistic(r), checkpoints, onsets_at(0), period=2)
    np.testing.assert_allclose(found.floquet_multiplier, -1, rtol=1e-9)
    np.testing.assert_allclose(onset_curvature(logistic(r), checkpoints, onsets_at(0)).floquet_multiplier, 0.5505, 3)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0, 1.2])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_multiplier_of_a_fixed_point_with_momentum_is_that_of_its_companion_matrix(beta, share):
    attrs = {"optimizer": "momentum", "learning_rate": 0.1, "momentum": beta}
    sharpness = share * stability_threshold(attrs)
    companion = np.array([[1 + beta - 0.1 * sharpness, -beta], [1, 0]])
    expected = np.linalg.eigvals(companion if beta else companion[:1, :1]).real.min()
    np.testing.assert_allclose(fixed_point_multiplier(sharpness, sharpness / share, attrs), expected, atol=1e-7)
    if share == 1:
        np.testing.assert_allclose(expected, -1, rtol=1e-7)


def test_with_momentum_the_onset_comes_at_its_own_threshold():
    # As above with ηλ growing through 2(1 + β) = 3, far beyond the 2 of plain descent.
    rate, beta = 1.0, 0.5
    objective = objective_of(lambda x, t: (2.98 + 1e-4 * t) * x[0] ** 2 / 2 - x[0] ** 4 / 4 + 0.01 * x[1], 2)
    theta, velocity, states = torch.tensor([1e-4, 0.0], dtype=torch.float64), 0.0, []
    for step in range(700):
        states.append(theta.numpy())
        velocity = beta * velocity + objective.gradient(theta, step)
        theta = theta - rate * velocity
    path = checkpoints_at(states, np.arange(700), optimizer="momentum", learning_rate=rate, momentum=beta)
    found = onset_curvature(objective, path, find_onsets(motion(path)))
    assert found.sizes["onset"] == 1
    assert found.threshold.item() == 3
    assert 3 < found.eigenvalue < 3.1
    assert -1.2 < found.floquet_multiplier < -1
    assert found.overlap > 0.98
    with pytest.raises(ValueError, match=r"not all saved, and momentum cannot be replayed; save every step .*windows="):
        onset_curvature(objective, path.isel(step=slice(0, None, 50)), find_onsets(motion(path)))


OPTIMIZERS = {
    "adam": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95},
    "rmsprop": {"optimizer": "rmsprop", "alpha": 0.9},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_for_adaptive_optimisers_all_is_measured_on_the_preconditioned_hessian(name, tmp_path, oracle):
    data, model, loss = dynloss.spiral(10, 3), dynloss.mlp(2, 5, 3, seed=1), dynloss.DynamicalCrossEntropy(3, 20, 40)
    record = dynloss.train(
        model, loss, data, record=tmp_path / "run.h5", learning_rate=0.02, n_steps=30, checkpoint_every=1,
        **OPTIMIZERS[name],
    )  # fmt: skip
    step = 17
    with open_run(record) as run:
        objective, checkpoints = dynloss.objective(run), run.checkpoints.load()
        found = onset_curvature(objective, checkpoints, onsets_at(step), tol=1e-9).isel(onset=0)
        twice = onset_curvature(objective, checkpoints, onsets_at(step), period=2).isel(onset=0)
        with pytest.raises(ValueError, match=f"{name} cannot be replayed"):
            onset_curvature(objective, checkpoints.sel(step=[step]), onsets_at(step))
    attrs = checkpoints.attrs

    def curvature(theta, at):
        """P^(−1/2) H P^(−1/2), and P."""
        _, gradient, hessian = oracle(model, loss, *data, theta, at)
        decay = attrs["beta2"] if name == "adam" else attrs["alpha"]
        moment = decay * checkpoints.second_moment.sel(step=min(at, step + 1)).values + (1 - decay) * gradient**2
        moment = moment / (1 - decay ** (at + 1)) if name == "adam" else moment
        preconditioner = np.sqrt(moment) + attrs["epsilon"]
        return hessian / np.sqrt(np.outer(preconditioner, preconditioner)), preconditioner

    now, after = (checkpoints.params.sel(step=s).values for s in (step, step + 1))
    matrix, preconditioner = curvature((now + after) / 2, step)
    values, vectors = np.linalg.eigh(matrix)
    tops = [np.linalg.eigvalsh(curvature(theta, s)[0])[-1] for theta, s in ((now, step), (after, step + 1))]
    moved = np.sqrt(preconditioner) * (after - now)
    np.testing.assert_allclose(found.eigenvalue, values[-1], rtol=1e-7)
    np.testing.assert_allclose(found.eigenvalue_sharper, max(tops), rtol=1e-7)
    np.testing.assert_allclose(found.eigenvalue_flatter, min(tops), rtol=1e-7)
    np.testing.assert_allclose(found.overlap, abs(vectors[:, -1] @ moved) / np.linalg.norm(moved), rtol=1e-5)
    beta = 0.8 if name == "adam" else 0.0
    # The update is η(1 − β1)/(1 − β1^(t + 1)) times a heavy-ball velocity, in the coordinates P^(1/2) θ.
    rate = 0.02 * (1 - beta) / (1 - beta ** (step + 1))
    np.testing.assert_allclose(found.threshold, 2 * (1 + beta) / rate, rtol=1e-12)
    companion = np.array([[1 + beta - rate * values[-1], -beta], [1, 0]])
    multiplier = np.linalg.eigvals(companion if beta else companion[:1, :1]).real.min()
    np.testing.assert_allclose(found.floquet_multiplier, multiplier, rtol=1e-6)
    assert np.isnan(twice.floquet_multiplier)


def test_what_an_optimiser_does_not_define_is_nan(path):
    objective, onsets = objective_of(quartic, 5), onsets_at(7)
    plain = onset_curvature(objective, path, onsets)
    unknown = onset_curvature(objective, path.assign_attrs(optimizer="lion"), onsets)
    assert np.isnan(unknown[["threshold", "floquet_multiplier"]].to_array()).all()
    xr.testing.assert_equal(unknown[["eigenvalue", "overlap"]], plain[["eigenvalue", "overlap"]])
    batches = onset_curvature(objective, path.assign_attrs(optimizer="sgd"), onsets)
    assert np.isnan(batches.floquet_multiplier).all()
    xr.testing.assert_equal(batches.threshold, plain.threshold)


def test_a_period_below_one_is_refused(path):
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        onset_curvature(objective_of(quartic, 5), path, onsets_at(7), period=0)


def test_no_onsets_give_an_empty_result(path):
    found = onset_curvature(objective_of(quartic, 5), path, onsets_at())
    assert found.sizes == {"onset": 0}
    assert {"eigenvalue", "overlap", "floquet_multiplier", "threshold", "onset_step"} <= set(found.data_vars)
