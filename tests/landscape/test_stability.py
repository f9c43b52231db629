"""The threshold separates descents that converge on a quadratic from those that diverge."""

import math

import numpy as np
import pytest
import torch

import dynloss
from landscape import open_run, stability_threshold


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("learning_rate", [0.05, 1.0])
@pytest.mark.parametrize("name", ["gd", "sgd", "momentum"])
def test_descent_converges_just_below_the_threshold_and_diverges_just_above(name, learning_rate, momentum):
    attrs = {"optimizer": name, "learning_rate": learning_rate, "momentum": momentum}
    sharpness = stability_threshold(attrs) * torch.tensor([0.98, 1.02], dtype=torch.float64)
    params = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([params], lr=learning_rate, momentum=momentum)
    for _ in range(1000):
        optimizer.zero_grad()
        (sharpness * params**2 / 2).sum().backward()
        optimizer.step()
    below, above = np.abs(params.detach().numpy())
    assert below < 1e-4
    assert above > 1e4


def quadratic(preconditioner, sharpness):
    """A Hessian H, not diagonal, such that the largest eigenvalue of P^(−1/2) H P^(−1/2) is `sharpness`."""
    n = len(preconditioner)
    square = np.random.default_rng(2).standard_normal((n, n))
    hessian, root = square @ square.T, np.diag(preconditioner**-0.5)
    return hessian * (sharpness / np.linalg.eigvalsh(root @ hessian @ root)[-1])


def descend(hessian, preconditioner, attrs, corrected=1.0, n_steps=4000):
    """‖θ‖ after `n_steps` of RMSProp or Adam whose preconditioner and bias correction stay as they are."""
    theta, mean = np.ones(len(hessian)), np.zeros(len(hessian))
    beta1 = attrs["beta1"] if attrs["optimizer"] == "adam" else 0.0
    for _ in range(n_steps):
        mean = beta1 * mean + (1 - beta1) * (hessian @ theta)
        theta = theta - attrs["learning_rate"] * (mean / corrected) / preconditioner
        if not np.abs(theta).max() < 1e100:
            break
    return np.abs(theta).max()


PRECONDITIONERS = [np.ones(4), np.array([0.01, 0.3, 2.0, 70.0])]
ADAPTIVE = [
    {"optimizer": "rmsprop", "learning_rate": 0.02},
    {"optimizer": "rmsprop", "learning_rate": 3.0, "alpha": 0.9},
    {"optimizer": "adam", "learning_rate": 0.02, "beta1": 0.9},
    {"optimizer": "adam", "learning_rate": 1.0, "beta1": 0.5, "beta2": 0.9},
    {"optimizer": "adam", "learning_rate": 0.3, "beta1": 0.0},
]


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS, ids=["no preconditioner", "of four scales"])
@pytest.mark.parametrize("attrs", ADAPTIVE, ids=lambda attrs: f"{attrs['optimizer']} {attrs.get('beta1', '')}")
def test_adaptive_descent_turns_unstable_where_the_preconditioned_sharpness_passes_its_threshold(attrs, preconditioner):
    threshold = stability_threshold(attrs, preconditioned=True)
    # The smallest eigenvalue sets how long convergence takes; what decides is that the largest mode does not grow.
    below, above = (
        descend(quadratic(preconditioner, factor * threshold), preconditioner, attrs) for factor in (0.98, 1.02)
    )
    assert below < 1.0
    assert above > 1e10


@pytest.mark.parametrize("step", [0, 1, 4, 20, 300])
@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_at_the_first_updates_of_adam_the_threshold_is_lower_by_the_bias_correction(beta1, step):
    attrs = {"optimizer": "adam", "learning_rate": 0.1, "beta1": beta1}
    threshold, limit = (stability_threshold(attrs, preconditioned=True, step=s) for s in (step, None))
    # Of the update after `step` others the mean is divided by 1 − β1^(step + 1), as in Kingma and Ba's algorithm.
    corrected = 1 - math.prod([beta1] * (step + 1))
    preconditioner = PRECONDITIONERS[1]
    below, above = (
        descend(quadratic(preconditioner, factor * threshold), preconditioner, attrs, corrected)
        for factor in (0.98, 1.02)
    )
    assert below < 1.0
    assert above > 1e10
    assert 0 < threshold <= limit
    if step < 20:
        assert threshold < 0.999 * limit


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_adam_of_torch_with_a_constant_second_moment_has_that_threshold(beta1):
    attrs = {"optimizer": "adam", "learning_rate": 0.3, "beta1": beta1}
    sharpness = stability_threshold(attrs, preconditioned=True) * torch.tensor([0.98, 1.02], dtype=torch.float64)
    params = torch.nn.Parameter(torch.full((2,), 1e-3, dtype=torch.float64))
    optimizer = torch.optim.Adam([params], lr=0.3, betas=(beta1, 1 - 1e-15), eps=1e-30)
    params.grad = torch.zeros_like(params)
    optimizer.step()  # makes the state, and moves nothing
    # So late, and with such a β2, the second moment and its bias correction stay 1 whatever the gradients are.
    optimizer.state[params]["exp_avg_sq"].fill_(1.0)
    optimizer.state[params]["step"].fill_(1e17)
    above = 0.0
    for _ in range(500):
        optimizer.zero_grad()
        (sharpness * params**2 / 2).sum().backward()
        optimizer.step()
        above = max(above, abs(params[1].item()))  # at last it is large enough to change even that second moment
    assert abs(params[0].item()) < 1e-4
    assert above > 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_for_descent_without_preconditioner_both_thresholds_are_one(momentum):
    attrs = {"optimizer": "momentum", "learning_rate": 0.5, "momentum": momentum}
    assert stability_threshold(attrs, preconditioned=True, step=3) == stability_threshold(attrs)


def test_adam_without_beta1_has_torch_s_default():
    attrs = {"optimizer": "adam", "learning_rate": 0.5}
    with_default = attrs | {"beta1": torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).defaults["betas"][0]}
    found, expected = (stability_threshold(a, preconditioned=True) for a in (attrs, with_default))
    assert found == expected


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"optimizer": "gd"},
        {"learning_rate": 0.1},
        {"optimizer": "adam", "learning_rate": 0.1},
        {"optimizer": "rmsprop", "learning_rate": 0.1},
        {"optimizer": "lion", "learning_rate": 0.1},
        {"optimizer": None, "learning_rate": None},
    ],
)
def test_where_the_attrs_do_not_say_enough_the_threshold_is_nan(attrs):
    assert math.isnan(stability_threshold(attrs))


@pytest.mark.parametrize(
    "attrs", [{}, {"optimizer": "adam"}, {"learning_rate": 0.1}, {"optimizer": "lion", "learning_rate": 0.1}]
)
def test_the_preconditioned_threshold_of_what_is_not_known_is_nan_too(attrs):
    assert math.isnan(stability_threshold(attrs, preconditioned=True))


def test_no_momentum_is_plain_descent():
    assert stability_threshold({"optimizer": "gd", "learning_rate": 0.5, "momentum": None}) == 4


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        ({"optimizer": "gd"}, 2 / 0.01),
        ({"optimizer": "sgd", "batch_size": 10}, 2 / 0.01),
        ({"optimizer": "momentum", "momentum": 0.8}, 2 * 1.8 / 0.01),
        ({"optimizer": "rmsprop"}, math.nan),
        ({"optimizer": "adam"}, math.nan),
    ],
    ids=lambda value: value["optimizer"] if isinstance(value, dict) else "",
)
def test_recorded_eigenpairs_carry_the_threshold_of_their_optimiser_where_it_is_one_on_the_hessian(
    tmp_path, options, threshold
):
    model, data = dynloss.mlp(2, 4, 3), dynloss.spiral(8, 3)
    path = dynloss.train(
        model, dynloss.SquaredError(3), data, record=tmp_path / "a.h5", learning_rate=0.01, n_steps=4, eigenpairs=1,
        eigenpairs_every=3, **options,
    )  # fmt: skip
    with open_run(path) as run:
        assert run.eigenpairs.converged.all()
        np.testing.assert_allclose(run.eigenpairs.threshold, [threshold, threshold], rtol=1e-12)
