"""What planes of any model are computed with: the same values, however convolutions and batch norms are laid out."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import evaluation


def cross_entropy(outputs, targets, step):
    return nn.functional.cross_entropy(outputs, targets)


def block(**options):
    return [nn.Conv2d(3, 4, 3, padding=1, **options), nn.BatchNorm2d(4), nn.ReLU()]


class Tapped(nn.Module):
    """Also uses what lies between the convolution and its norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*block())

    def forward(self, x):
        return self.body(x).mean((2, 3)) + self.body[0](x).square().mean((2, 3))


class Viewing(nn.Module):
    """Works only with images in the usual layout."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(*block()), nn.Linear(4 * 36, 4)

    def forward(self, x):
        return self.head(self.body(x).view(len(x), -1))


class Twice(nn.Module):
    """One convolution before two norms."""

    def __init__(self):
        super().__init__()
        convolution = nn.Conv2d(3, 4, 3)
        self.first = nn.Sequential(convolution, nn.BatchNorm2d(4))
        self.second = nn.Sequential(convolution, nn.BatchNorm2d(4))

    def forward(self, x):
        return (self.first(x) * self.second(x).tanh()).mean((2, 3))


def hooked():
    model = nn.Sequential(*block(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def sequential(**options):
    return nn.Sequential(*block(**options), nn.AdaptiveAvgPool2d(1), nn.Flatten())


MODELS = {
    "sequence": sequential,
    "sequence without biases": lambda: sequential(bias=False),
    "one dimension": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 4, 3, stride=2), nn.Identity(), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten()
    ),
    "no affine norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()),
    "tapped": Tapped,
    "viewing": Viewing,
    "twice": Twice,
    "hooked": hooked,
}
FOLDED = {"sequence", "sequence without biases", "one dimension"}
UNFIT = {"tapped", "viewing"}


def case(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    inputs = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    objective = landscape.Objective(model.eval(), cross_entropy, inputs, torch.arange(5) % 4)
    return model, objective, objective.layout.flatten_model(model)


@pytest.mark.parametrize("name", MODELS)
def test_planes_are_the_models_own(name):
    model, objective, center = case(name)
    ((inputs, targets),) = objective.batches
    directions = torch.randn(2, len(center), dtype=torch.float64)
    alpha, beta = np.linspace(-1, 1, 3), np.linspace(-1, 1, 4)
    gradient = objective.gradient(center, 0)
    found = objective.plane_losses(center, directions, alpha, beta, 0)
    assert found.shape == (1, 3, 4)
    for a, x in enumerate(alpha):
        for b, y in enumerate(beta):
            torch.nn.utils.vector_to_parameters(center + x * directions[0] + y * directions[1], model.parameters())
            np.testing.assert_allclose(found[0, a, b], cross_entropy(model(inputs), targets, 0).item(), rtol=1e-10)
    assert torch.equal(objective.gradient(center, 0), gradient)  # the objective itself is as it was


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_used_only_where_it_computes_the_same(name):
    _, objective, center = case(name)
    same, at_once = evaluation.for_values(objective, center, 0)
    assert at_once == evaluation.POINTS_AT_ONCE
    assert (same is objective) == (name in UNFIT)
    if name not in UNFIT:
        folded = [m for m in same.model.modules() if vars(m).get("forward") is evaluation._unchanged]
        assert len(folded) == (name in FOLDED)
        assert not any(m.inplace for m in objective.model.modules() if isinstance(m, nn.ReLU))


def test_points_at_once_are_fewer_for_larger_layers(monkeypatch):
    _, objective, center = case("sequence")
    largest = 5 * 4 * 6 * 6
    monkeypatch.setattr(evaluation, "ACTIVATION_BYTES", 3 * largest * center.element_size())
    assert evaluation.for_values(objective, center, 0)[1] == 3
    monkeypatch.setattr(evaluation, "ACTIVATION_BYTES", largest * center.element_size() - 1)
    assert evaluation.for_values(objective, center, 0)[1] == 1


def test_other_samples_have_their_own_plane():
    model, objective, center = case("sequence")
    directions = torch.randn(2, len(center), dtype=torch.float64)
    objective.plane_losses(center, directions, [0.0], [0.0], 0)
    inputs, targets = torch.randn(3, 3, 6, 6, dtype=torch.float64), torch.arange(3)
    found = objective.on(inputs, targets).plane_losses(center, directions, [0.0], [0.0, 1.0], 0)
    np.testing.assert_allclose(found[0, 0, 0], cross_entropy(model(inputs), targets, 0).item(), rtol=1e-10)
