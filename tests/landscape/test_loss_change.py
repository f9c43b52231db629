"""The change of the loss from step to step, and which part of it the motion made."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, load_dataset, loss_change, save_dataset

RATE = 0.1


def descent_of(loss_fn, n_steps=120):
    """Gradient descent of a small network, by autograd alone; every state saved, and F of any state and step."""
    model, data = dynloss.mlp(2, 8, 3, seed=1), dynloss.spiral(15, 3, seed=0)
    trained, saved = copy.deepcopy(model), []
    optimizer = torch.optim.SGD(trained.parameters(), lr=RATE)
    for step in range(n_steps):
        saved.append(torch.nn.utils.parameters_to_vector(trained.parameters()).detach().numpy())
        optimizer.zero_grad()
        loss_fn(trained(data.inputs), data.targets, step).backward()
        optimizer.step()

    def value(params, step):
        torch.nn.utils.vector_to_parameters(torch.as_tensor(params), trained.parameters())
        return float(loss_fn(trained(data.inputs), data.targets, step).detach())

    checkpoints = xr.Dataset({"params": (("step", "param"), np.stack(saved))}, {"step": np.arange(n_steps)})
    return Objective(model, loss_fn, *data), checkpoints.assign_attrs(optimizer="gd", learning_rate=RATE), value


@pytest.fixture(scope="module")
def dynamical():
    return descent_of(dynloss.DynamicalCrossEntropy(3, amplitude=40, period=40))


def test_each_part_is_the_difference_of_two_losses_of_the_model_itself(dynamical):
    objective, checkpoints, value = dynamical
    found = loss_change(objective, checkpoints)
    theta = checkpoints.params.values
    for t in range(1, 120, 7):
        before, after = value(theta[t - 1], t - 1), value(theta[t], t)
        between = value(theta[t], t - 1)
        np.testing.assert_allclose(found.change[t], after - before, atol=1e-14)
        np.testing.assert_allclose(found.motion_part[t], between - before, atol=1e-14)
        np.testing.assert_allclose(found.time_part[t], after - between, atol=1e-14)


def test_the_parts_add_up(dynamical):
    found = loss_change(*dynamical[:2])
    np.testing.assert_allclose(found.motion_part + found.time_part, found.change, rtol=0, atol=1e-15)
    assert np.abs(found.time_part[1:]).min() > 1e-12  # the weights move at every step


def test_a_stable_descent_goes_down_even_where_the_loss_rises(dynamical):
    found = loss_change(*dynamical[:2]).isel(step=slice(1, None))
    assert (found.motion_part < 0).all()
    rising = found.change > 0
    assert 10 < rising.sum() < 110
    # To first order the motion part is −η‖g‖², of the gradient at the step before.
    objective, checkpoints, _ = dynamical
    gradient = objective.gradient(objective.as_params(checkpoints.params.values), checkpoints.step.values)
    expected = -RATE * (gradient**2).sum(1).numpy()[:-1]
    np.testing.assert_allclose(found.motion_part, expected, rtol=0.2)


def test_a_static_loss_has_no_time_part_to_the_last_bit():
    objective, checkpoints, _ = descent_of(dynloss.CrossEntropy(3))
    found = loss_change(objective, checkpoints)
    assert (found.time_part[1:] == 0).all()
    np.testing.assert_array_equal(found.motion_part[1:], found.change[1:])
    assert np.isnan(found.time_part[0])


def test_the_first_row_and_rows_after_a_gap_are_nan(dynamical):
    objective, checkpoints, _ = dynamical
    whole = loss_change(objective, checkpoints)
    kept = np.r_[0:3, 5, 8:90]
    found = loss_change(objective, checkpoints.isel(step=kept).transpose())
    first = [0, 5, 8]
    for name in ("change", "motion_part", "time_part"):
        assert found[name].dims == ("step",)
        assert np.isnan(found[name].sel(step=first)).all()
        rest = np.setdiff1d(kept, first)
        np.testing.assert_allclose(found[name].sel(step=rest), whole[name].sel(step=rest), rtol=0, atol=1e-15)
    assert np.isnan(loss_change(objective, checkpoints.sel(step=4)).change).all()


def test_a_loss_that_is_not_finite_stays_so_and_the_result_survives_its_file(dynamical, tmp_path):
    objective, checkpoints, _ = dynamical
    broken = checkpoints.copy(deep=True)
    broken["params"][10] = np.nan
    found = loss_change(objective, broken)
    assert np.isnan(found.change[[10, 11]]).all()
    assert np.isfinite(found.change[[9, 12]]).all()
    assert found.attrs == checkpoints.attrs
    xr.testing.assert_identical(load_dataset(save_dataset(found, tmp_path / "change.h5")), found)
