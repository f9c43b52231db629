"""Decision regions are the answers of the model at the points of the grid."""

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, ParamLayout, decision_regions

LOSS = dynloss.CrossEntropy(3)


def checkpoints_of(models):
    layout = ParamLayout.of(models[0])
    params = np.stack([layout.flatten_model(model).detach().numpy() for model in models])
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": np.arange(len(models))})


@pytest.fixture
def half_planes():
    """Class 0 where x_1 is above, class 1 where −x_1 is, class 2 where x_2 exceeds both."""
    model = torch.nn.Linear(2, 3).double()
    with torch.no_grad():
        model.weight[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        model.bias[:] = 0
    return model, dynloss.spiral(10, 3, seed=0)


def test_regions_and_margins_of_half_planes_are_known(half_planes):
    model, data = half_planes
    regions = decision_regions(Objective(model, LOSS, *data), checkpoints_of([model]), half_width=2, n_points=41)
    x, y = np.meshgrid(regions.x, regions.y)
    outputs = np.sort([x, -x, y], axis=0)
    np.testing.assert_allclose(regions.margin[0], outputs[2] - outputs[1], atol=1e-15)
    clear = regions.margin.values[0] > 1e-9
    np.testing.assert_array_equal(regions.predicted.values[0][clear], np.argmax([x, -x, y], axis=0)[clear])


def test_each_checkpoint_has_its_own_regions_by_any_kernel():
    models = [dynloss.mlp(2, 8, 3, seed=seed) for seed in range(3)]
    data, checkpoints = dynloss.spiral(10, 3, seed=0), checkpoints_of(models)
    regions = decision_regions(dynloss.fastest_objective(models[0], LOSS, *data), checkpoints, n_points=11)
    assert regions.x[-1] == -regions.y[0]
    np.testing.assert_allclose(regions.x[-1], 1.05 * data.inputs.abs().max())
    points = torch.from_numpy(np.stack(np.meshgrid(regions.x, regions.y), -1).reshape(-1, 2))
    for model, predicted in zip(models, regions.predicted.values, strict=True):
        np.testing.assert_array_equal(predicted.ravel(), model(points).argmax(1))
    assert not np.array_equal(regions.predicted[0], regions.predicted[1])
    one = decision_regions(Objective(models[0], LOSS, *data), checkpoints.isel(step=1), n_points=11)
    np.testing.assert_array_equal(one.predicted, regions.predicted[1])
    assert one.predicted.dims == ("y", "x")


def test_outputs_that_are_not_finite_belong_to_no_class(half_planes):
    model, data = half_planes
    checkpoints = checkpoints_of([model])
    checkpoints.params[0, 0] = np.nan
    assert (decision_regions(Objective(model, LOSS, *data), checkpoints, n_points=5).predicted == -1).all()


@pytest.mark.parametrize("options", [{"half_width": 0.0}, {"n_points": 1}])
def test_an_empty_grid_is_refused(half_planes, options):
    model, data = half_planes
    with pytest.raises(ValueError, match="half_width must be positive and n_points at least 2"):
        decision_regions(Objective(model, LOSS, *data), checkpoints_of([model]), **options)


def test_classifiers_of_other_inputs_are_refused():
    model = torch.nn.Linear(3, 2).double()
    objective = Objective(model, dynloss.CrossEntropy(2), torch.zeros(4, 3).double(), torch.arange(4) % 2)
    with pytest.raises(ValueError, match="of two inputs"):
        decision_regions(objective, checkpoints_of([model]))
