"""Directions are what they say: lengths and angles, filters as long as the parameters', planes through the points."""

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import (
    ParamLayout,
    eigenvector_directions,
    interpolation_directions,
    pca_directions,
    random_directions,
    top_eigenpairs,
)


def checkpoints_of(params, layout=None):
    params = np.asarray(params, dtype=float)
    attrs = {"layout": layout.to_json()} if layout else {}
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": 10 * np.arange(len(params))}, attrs)


@pytest.fixture(scope="module")
def convolutional():
    """Layout of a network with a convolution, a norm layer and a linear layer, and its parameters as a checkpoint."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Flatten(), torch.nn.Linear(80, 4)
    )
    layout = ParamLayout.of(net)
    return layout, checkpoints_of([layout.flatten_model(net).numpy()], layout).isel(step=0)


def test_eigenvectors_stay_as_they_are(descent):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints.sel(step=[20]), k=3).isel(step=0)
    found = eigenvector_directions(eigs, modes=(2, 0))
    np.testing.assert_array_equal(found.direction, eigs.eigenvector.isel(mode=[2, 0]).values)
    np.testing.assert_array_equal(found.eigenvalue, eigs.eigenvalue.isel(mode=[2, 0]).values)
    assert found.axis_name.values.tolist() == ["v3", "v1"]
    assert found.attrs["unit"] == found.attrs["orthogonal"] == 1
    with pytest.raises(ValueError, match="one step"):
        eigenvector_directions(eigs.expand_dims("step"))
    with pytest.raises(ValueError, match=r"not \[5\]"):
        eigenvector_directions(eigs, modes=(0, 5))


def test_random_directions_of_many_parameters_are_nearly_orthogonal():
    layout = ParamLayout(("w",), ((100, 100),))
    found = random_directions(checkpoints_of(np.ones((1, 10_000)), layout).isel(step=0), 6, normalisation="none")
    unit = found.direction / found.length
    cosines = (unit @ unit.rename(axis="other")).values - np.eye(6)
    assert np.abs(cosines).max() < 0.05
    assert found.attrs["largest_overlap"] == pytest.approx(np.abs(cosines).max(), rel=1e-6)
    assert found.attrs["unit"] == found.attrs["orthogonal"] == 0  # as drawn, and said so


def test_filters_are_as_long_as_those_of_the_parameters(convolutional):
    layout, checkpoint = convolutional
    drawn = random_directions(checkpoint, 3, normalisation="filter", seed=4)
    own = layout.unflatten(torch.from_numpy(checkpoint.params.values))
    for direction in drawn.direction.values:
        tensors = layout.unflatten(torch.from_numpy(direction))
        for name, tensor in tensors.items():
            if tensor.ndim == 1:
                assert not tensor.any(), f"{name} should not move"
            else:
                norms, expected = (t.flatten(1).norm(dim=1).numpy() for t in (tensor, own[name]))
                np.testing.assert_allclose(norms, expected, rtol=1e-12)
    weights = [own[name] for name in layout.names if own[name].ndim > 1]
    np.testing.assert_allclose(drawn.length, float(torch.cat([w.reshape(-1) for w in weights]).norm()), rtol=1e-12)


def test_layers_are_as_long_as_those_of_the_parameters(convolutional):
    layout, checkpoint = convolutional
    drawn = random_directions(checkpoint, normalisation="layer", with_biases=True)
    own = layout.unflatten(torch.from_numpy(checkpoint.params.values))
    for name, tensor in layout.unflatten(torch.from_numpy(drawn.direction.values)).items():
        expected = float(own[name].norm())
        np.testing.assert_allclose(tensor.flatten(1).norm(dim=1), expected, rtol=1e-12, atol=1e-300)


def test_seeds_repeat_and_differ(convolutional):
    _, checkpoint = convolutional
    one, same, other = (random_directions(checkpoint, seed=seed) for seed in (1, 1, 2))
    assert one.identical(same)
    assert not np.allclose(one.direction, other.direction)


def test_random_directions_refuse_what_cannot_move(convolutional):
    layout, checkpoint = convolutional
    biases = checkpoints_of(np.ones((1, 3)), ParamLayout(("b",), ((3,),))).isel(step=0)
    with pytest.raises(ValueError, match="with_biases=True"):
        random_directions(biases)
    with pytest.raises(ValueError, match="give layout="):
        random_directions(checkpoint.drop_attrs())
    with pytest.raises(ValueError, match="normalisation must be one of"):
        random_directions(checkpoint, normalisation="weight")
    with pytest.raises(ValueError, match="one checkpoint"):
        random_directions(checkpoint.expand_dims("step"))
    assert random_directions(checkpoint.drop_attrs(), layout=layout).sizes["axis"] == 2


@pytest.mark.parametrize(("n_states", "n_params"), [(30, 7), (12, 400)])
def test_principal_axes_are_those_of_the_singular_value_decomposition(n_states, n_params):
    rng = np.random.default_rng(3)
    states = rng.normal(size=(n_states, 4)) * [9, 5, 2, 1] @ rng.normal(size=(4, n_params)) + rng.normal(size=n_params)
    found = pca_directions(checkpoints_of(states), 3)
    _, sizes, expected = np.linalg.svd(states - states.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(found.direction.values * expected[:3], axis=1)), 1, rtol=1e-10)
    np.testing.assert_allclose(found.explained_variance, sizes[:3] ** 2 / (sizes**2).sum(), rtol=1e-10)
    np.testing.assert_allclose(found.direction.values @ found.direction.values.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.center, states.mean(0))
    assert found.attrs["unit"] == found.attrs["orthogonal"] == 1


@pytest.mark.parametrize("center", ["mean", "last"])
def test_a_planar_path_is_explained_by_two_axes(center, monkeypatch):
    monkeypatch.setattr("landscape.directions.BLOCK_BYTES", 8 * 50 * 7)  # several blocks
    rng = np.random.default_rng(0)
    plane, angle = np.linalg.qr(rng.normal(size=(90, 2)))[0].T, np.linspace(0, 5, 50)
    states = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) @ plane + rng.normal(size=90)
    found = pca_directions(checkpoints_of(states), center=center)
    assert float(found.explained_variance.sum()) == pytest.approx(1, abs=1e-12)
    off = states - found.center.values
    off = off - off @ found.direction.values.T @ found.direction.values
    assert np.linalg.norm(off, axis=1).max() < 1e-6 * np.linalg.norm(states - states[0], axis=1).max()
    with pytest.raises(ValueError, match="fewer than 3 directions"):
        pca_directions(checkpoints_of(states), 3, center=center)


def test_pca_refuses_what_has_no_axes():
    states = np.arange(12.0).reshape(4, 3) ** 2
    with pytest.raises(ValueError, match="at least 5 checkpoints"):
        pca_directions(checkpoints_of(states), 4)
    states[1, 1] = np.nan
    for center in ("mean", "last"):
        with pytest.raises(ValueError, match="NaN or inf"):
            pca_directions(checkpoints_of(states), center=center)
    with pytest.raises(ValueError, match='"mean" or "last"'):
        pca_directions(checkpoints_of(states), center="first")


def test_a_plane_through_three_checkpoints_holds_them():
    states = np.random.default_rng(1).normal(size=(3, 20))
    found = interpolation_directions(checkpoints_of(states))
    np.testing.assert_allclose(found.center.values + found.point.values @ found.direction.values, states, atol=1e-12)
    np.testing.assert_allclose(found.direction.values @ found.direction.values.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.distance, np.linalg.norm(states[1:] - states[0], axis=1))
    assert (states[1] - states[0]) @ found.direction.values[0] == pytest.approx(float(found.distance[0]))


def test_a_line_through_two_checkpoints_and_what_spans_nothing():
    states = np.random.default_rng(1).normal(size=(2, 20))
    found = interpolation_directions(checkpoints_of(states))
    np.testing.assert_allclose(found.point.values[:, 0], found.distance.values[0] * np.array([-0.5, 0.5]))
    line = checkpoints_of([states[0], states[1], 2 * states[1] - states[0]])
    for bad, message in ((line, "one line"), (line.isel(step=[0, 0]), "one point"), (line.isel(step=[0]), "got 1")):
        with pytest.raises(ValueError, match=message):
            interpolation_directions(bad)
