"""The threshold separates descents that converge on a quadratic from those that diverge."""

import math

import numpy as np
import pytest
import torch

from landscape import stability_threshold


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


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"optimizer": "gd"},
        {"learning_rate": 0.1},
        {"optimizer": "adam", "learning_rate": 0.1},
        {"optimizer": None, "learning_rate": None},
    ],
)
def test_where_the_attrs_do_not_say_enough_the_threshold_is_nan(attrs):
    assert math.isnan(stability_threshold(attrs))


def test_no_momentum_is_plain_descent():
    assert stability_threshold({"optimizer": "gd", "learning_rate": 0.5, "momentum": None}) == 4
