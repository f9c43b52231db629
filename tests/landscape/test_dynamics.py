"""The descent map replayed against plain loops, and curvature at an onset against dense matrices and a closed form."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, find_onsets, motion, onset_curvature, open_run, replay


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


def halved(theta, step):
    return 0.25 * (theta @ theta)


def half(**attrs):
    """One checkpoint (8, 4) at step 5 of a descent that halves θ with learning rate 1."""
    return checkpoints_at([[8.0, 4.0]], [5], **attrs)


def test_replay_is_plain_gradient_descent_by_autograd(descent):
    n_steps, first, rate = 50, 10, 0.5
    model = copy.deepcopy(descent.model)
    start = descent.checkpoints.params.sel(step=first).values
    torch.nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), model.parameters())
    optimizer, states = torch.optim.SGD(model.parameters(), lr=rate), [start]
    for step in range(first, first + n_steps):
        optimizer.zero_grad()
        descent.loss_fn(model(descent.data.inputs), descent.data.targets, step).backward()
        optimizer.step()
        states.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    path = replay(descent.objective, descent.checkpoints.sel(step=first), n_steps, checkpoints=descent.checkpoints)
    assert path.params.dims == ("step", "param")
    assert path.step.values.tolist() == list(range(first, first + n_steps + 1))
    np.testing.assert_allclose(path.params, states, rtol=0, atol=1e-12)
    assert path.attrs["n_compared"] == 2  # steps 20 and 30 were saved too
    assert path.attrs["largest_deviation"] < 1e-12
    assert path.attrs["layout"] == descent.checkpoints.attrs["layout"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run whose every state was saved."""
    return dynloss.train(
        dynloss.mlp(2, 10, 3, seed=2),
        dynloss.DynamicalCrossEntropy(3, 70, 40),
        dynloss.spiral(20, 3, seed=0),
        record=tmp_path_factory.mktemp("runs") / "run.h5",
        learning_rate=1.0,
        n_steps=120,
        checkpoint_every=1,
    )


def test_replay_repeats_a_recorded_run_bit_for_bit(recorded):
    with open_run(recorded) as run:
        path = replay(dynloss.objective(run), run.checkpoints.sel(step=30), 90, checkpoints=run.checkpoints)
        assert path.attrs["exact"] == 1
        assert path.attrs["largest_deviation"] == 0
        assert path.attrs["n_compared"] == 90
        np.testing.assert_array_equal(path.params, run.checkpoints.params.sel(step=slice(30, 120)))


def test_replay_by_another_kernel_says_that_it_is_not_exact(recorded):
    with open_run(recorded) as run:
        closed = dynloss.objective(run)
        objective = Objective(closed.model, closed.loss_fn, *closed.batches[0])
        path = replay(objective, run.checkpoints.sel(step=30), 20, checkpoints=run.checkpoints)
        difference = np.abs(path.params - run.checkpoints.params).max()
        assert path.attrs["largest_deviation"] == difference < 1e-12
        assert path.attrs["exact"] == int(difference == 0)


def test_saved_states_that_deviate_are_reported():
    checkpoint = half(optimizer="gd", learning_rate=1.0)
    objective = objective_of(halved, 2)
    saved = checkpoints_at([[9.0, 9.0], [4.0, 2.0], [2.0, 1.25], [0.5, 0.5], [7.0, 7.0]], [5, 6, 7, 8, 20])
    path = replay(objective, checkpoint.sel(step=5), 3, checkpoints=saved)
    assert path.params.values.tolist() == [[8, 4], [4, 2], [2, 1], [1, 0.5]]
    # The state that the replay begins with, and those that it does not reach, are not compared.
    assert path.attrs["n_compared"] == 3
    assert path.attrs["largest_deviation"] == 0.5
    assert path.attrs["exact"] == 0
    path = replay(objective, checkpoint.sel(step=5), 1, checkpoints=saved)
    assert (path.attrs["n_compared"], path.attrs["largest_deviation"], path.attrs["exact"]) == (1, 0, 1)


@pytest.mark.parametrize("saved", [None, half()])
def test_a_replay_that_meets_no_saved_state_is_not_called_exact(saved):
    path = replay(objective_of(halved, 2), half().sel(step=5), 3, learning_rate=1.0, checkpoints=saved)
    assert (path.attrs["n_compared"], path.attrs["exact"]) == (0, 0)
    assert np.isnan(path.attrs["largest_deviation"])


def test_a_learning_rate_given_counts_and_is_recorded():
    checkpoint = half(learning_rate=1.0).sel(step=5)
    path = replay(objective_of(halved, 2), checkpoint, 2, learning_rate=2.0)
    assert path.params.values.tolist() == [[8, 4], [0, 0], [0, 0]]
    assert path.attrs["learning_rate"] == 2.0
    assert checkpoint.attrs == {"learning_rate": 1.0}


def test_replay_uses_the_recorded_number_of_threads_and_gives_them_back():
    before, seen = torch.get_num_threads(), []

    def function(theta, step):
        seen.append(torch.get_num_threads())
        return halved(theta, step)

    path = replay(objective_of(function, 2), half(learning_rate=1.0, n_threads=before + 1).sel(step=5), 1)
    assert path.attrs["n_threads"] == before + 1
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_replay_that_is_no_longer_finite_ends_there():
    checkpoint = half(learning_rate=1e160).sel(step=5)
    with pytest.warns(UserWarning, match="not finite after step 6; it ends there"):
        path = replay(objective_of(halved, 2), checkpoint, 10)
    assert path.step.values.tolist() == [5, 6]
    np.testing.assert_allclose(path.params, [[8, 4], [-4e160, -2e160]], rtol=1e-12)


@pytest.mark.parametrize(
    ("checkpoint", "n_steps", "message"),
    [
        (half(optimizer="momentum", momentum=0.9, learning_rate=1.0).sel(step=5), 3, "trained by 'momentum'"),
        (half(optimizer="gd").sel(step=5), 3, "name no learning_rate; give learning_rate="),
        (half(learning_rate=1.0).sel(step=5), 0, "n_steps must be at least 1, got 0"),
        (half(learning_rate=1.0), 3, r"begins at one checkpoint, e\.g\. checkpoints\.sel"),
        (checkpoints_at([[1.0, 2.0, 3.0]], [5], learning_rate=1.0).sel(step=5), 3, "another model: 3 parameters"),
    ],
)
def test_what_cannot_be_replayed_is_refused(checkpoint, n_steps, message):
    with pytest.raises(ValueError, match=message):
        replay(objective_of(halved, 2), checkpoint, n_steps)


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
        factor = v @ (np.eye(5) - RATE * ends[1]) @ (np.eye(5) - RATE * ends[0]) @ v
        np.testing.assert_allclose(at.floquet_multiplier, factor, rtol=1e-6)
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
    found = onset_curvature(objective, checkpoints, onsets_at(40))
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


def test_other_optimisers_and_unknown_learning_rates_are_refused(path):
    objective, onsets = objective_of(quartic, 5), onsets_at(7)
    with pytest.raises(ValueError, match="trained by 'adam'"):
        onset_curvature(objective, path.assign_attrs(optimizer="adam"), onsets)
    nameless = path.drop_attrs()
    with pytest.raises(ValueError, match="name no learning_rate"):
        onset_curvature(objective, nameless, onsets)
    found = onset_curvature(objective, nameless, onsets, learning_rate=RATE)
    xr.testing.assert_equal(found, onset_curvature(objective, path, onsets))


def test_no_onsets_give_an_empty_result(path):
    found = onset_curvature(objective_of(quartic, 5), path, onsets_at())
    assert found.sizes == {"onset": 0}
    assert {"eigenvalue", "overlap", "floquet_multiplier", "threshold", "onset_step"} <= set(found.data_vars)
