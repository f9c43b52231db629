"""Torch's optimisers in a run's attrs: a threshold is named only where it was derived for the update."""

import numpy as np
import pytest
import torch

from landscape.optimizer_attrs import optimizer_attrs
from landscape.stability import stability_threshold


def attrs_of(kind, **settings):
    return optimizer_attrs(kind([torch.nn.Parameter(torch.zeros(3))], lr=0.5, **settings))


@pytest.mark.parametrize(
    ("kind", "settings", "name", "threshold"),
    [
        ("SGD", {}, "sgd", 4.0),
        ("SGD", {"momentum": 0.9}, "momentum", 7.6),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "sgd with nesterov", np.nan),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, "sgd with dampening", np.nan),
        ("RMSprop", {}, "rmsprop", 4.0),
        ("RMSprop", {"momentum": 0.9}, "rmsprop with momentum", np.nan),
        ("RMSprop", {"centered": True}, "rmsprop with centered", np.nan),
        ("Adam", {"betas": (0.5, 0.9)}, "adam", 12.0),
        ("Adam", {"amsgrad": True}, "adam with amsgrad", np.nan),
        ("AdamW", {"betas": (0.5, 0.9), "weight_decay": 0.0}, "adam", 12.0),
        ("AdamW", {}, "adamw", np.nan),
        ("Adagrad", {}, "adagrad", np.nan),
    ],
)
def test_only_updates_with_a_known_threshold_are_named_by_it(kind, settings, name, threshold):
    attrs = attrs_of(getattr(torch.optim, kind), **settings)
    assert attrs["optimizer"] == name
    np.testing.assert_allclose(stability_threshold(attrs, preconditioned=True), threshold)


def test_settings_are_named_where_all_groups_agree():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": decay} for decay in (0.0, 0.1)]
    attrs = optimizer_attrs(torch.optim.Adam(groups, lr=0.1))
    assert attrs == {"optimizer": "adam", "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    groups[0]["lr"] = 0.2
    assert "learning_rate" not in optimizer_attrs(torch.optim.Adam(groups, lr=0.1))
    assert attrs_of(torch.optim.Adam, weight_decay=0.1)["weight_decay"] == 0.1
