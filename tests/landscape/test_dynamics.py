"""The descent map replayed against plain loops, and against the runs it repeats."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, open_run, replay


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
        assert path.attrs["exact"] == 0
        # Nor where all the states that it meets happen to agree.
        start = run.checkpoints.sel(step=30)
        met = replay(objective, start, 1)
        again = replay(objective, start, 20, checkpoints=met)
        assert (again.attrs["n_compared"], again.attrs["largest_deviation"], again.attrs["exact"]) == (1, 0, 0)


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
