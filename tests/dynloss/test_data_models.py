"""The spiral and the network are those described, repeatable by seed, and leave the global random state alone."""

import numpy as np
import pytest
import torch

import dynloss


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(("n", "n_classes", "noise", "seed"), [(100, 3, 0.2, 0), (7, 5, 0.0, 1), (1, 2, 0.5, 2)])
def test_spiral_points_follow_the_formula(n, n_classes, noise, seed):
    data = dynloss.spiral(n, n_classes, noise=noise, seed=seed)
    rng = np.random.default_rng(seed)
    for j in range(n_classes):
        deviation = rng.standard_normal(n)
        for i in range(n):
            r = i / (n - 1) if n > 1 else 0
            angle = 2 * np.pi * j / n_classes + (4 * np.pi * r) + noise * deviation[i]
            x, y = data.inputs[j * n + i].tolist()
            assert complex(x, y) == pytest.approx(r * np.exp(1j * angle), abs=1e-14)
    assert data.inputs.dtype == torch.float64
    assert data.targets.dtype == torch.int64
    np.testing.assert_array_equal(data.targets, np.repeat(np.arange(n_classes), n))


def test_angles_have_the_noise_asked_for():
    data = dynloss.spiral(20_000, 2, noise=0.2, seed=3)
    z = torch.view_as_complex(data.inputs).numpy().reshape(2, -1)
    exact = np.linspace(0, 4 * np.pi, 20_000) + np.pi * np.arange(2)[:, None]
    deviation = np.angle(z * np.exp(-1j * exact))[:, 1:]  # the point at radius 0 has no angle
    assert deviation.std() == pytest.approx(0.2, rel=0.02)  # four standard errors
    assert deviation.mean() == pytest.approx(0, abs=0.004)


def test_the_same_seed_gives_the_same_spiral_and_another_seed_another():
    first, again, other = dynloss.spiral(seed=0), dynloss.spiral(seed=0), dynloss.spiral(seed=1)
    assert torch.equal(first.inputs, again.inputs)
    moved = (first.inputs - other.inputs).norm(dim=1)
    assert (moved > 0).sum() == 297  # all but the three points at radius 0
    assert torch.equal(first.targets, other.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_per_class": 0}, "n_per_class ≥ 1"),
        ({"n_classes": 1}, "n_classes ≥ 2"),
        ({"noise": -0.1}, "noise .* got -0.1"),
        ({"noise": np.nan}, "noise .* got nan"),
        ({"noise": np.inf}, "noise .* got inf"),
    ],
)
def test_spirals_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dynloss.spiral(**options)


@pytest.mark.parametrize("sizes", [(300, 400, 200), (50, 2000, 10)])
def test_weights_are_glorot_normal_and_biases_have_deviation_one_hundredth(sizes):
    model = dynloss.mlp(*sizes, seed=5)
    for layer in (model.hidden, model.output):
        std = np.sqrt(2 / (layer.in_features + layer.out_features))
        for tensor, expected in ((layer.weight, std), (layer.bias, 0.01)):
            draws = tensor.detach().numpy().ravel() / expected
            error = 1 / np.sqrt(draws.size)
            assert abs(draws.mean()) < 4 * error
            assert abs(draws.std() - 1) < 4 * error / np.sqrt(2)
            assert abs((draws**4).mean() - 3) < 4 * error * np.sqrt(96)  # a normal's kurtosis, not a uniform's


def test_the_network_is_linear_relu_linear():
    model, x = dynloss.mlp(2, 6, 3, seed=1), np.random.default_rng(0).normal(size=(9, 2))
    W, b, U, c = (p.detach().numpy() for p in model.parameters())
    assert [p.shape for p in (W, b, U, c)] == [(6, 2), (6,), (3, 6), (3,)]
    np.testing.assert_allclose(model(torch.tensor(x)).detach(), np.maximum(x @ W.T + b, 0) @ U.T + c, rtol=1e-12)
    assert model.config() == {"name": "mlp", "n_inputs": 2, "width": 6, "n_classes": 3}


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    first, again, other = (flat(dynloss.mlp(2, 50, 3, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert (first != other).all()
    assert first.dtype == torch.float64


def test_parameters_do_not_depend_on_the_global_random_state_nor_move_it():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = flat(dynloss.mlp(2, 50, 3, seed=7))
    dynloss.spiral(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(flat(dynloss.mlp(2, 50, 3, seed=7)), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_another_type_are_those_of_float64_rounded(dtype):
    exact, rounded = flat(dynloss.mlp(2, 50, 3, seed=7)), flat(dynloss.mlp(2, 50, 3, seed=7, dtype=dtype))
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, -1, 3)])
def test_networks_without_units_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        dynloss.mlp(*sizes)
