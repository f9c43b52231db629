"""Gradients and Hessian products of many architectures are those of the user's own model, which is never changed.

The oracle knows nothing of the library: it sets the parameters of another instance of the model, takes its gradient by
plain autograd in float64, and central differences of gradients for Hessian products, or a second derivative column by
column for eigenvalues.
"""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.utils import parametrizations

from landscape import Objective, top_eigenpairs
from landscape.model_copy import twice_differentiable


class Last(nn.Module):
    """The answer of a recurrent layer at the last time, through a linear layer."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 3)

    def forward(self, inputs):
        return self.out(self.layer(inputs)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.need_weights = need_weights

    def forward(self, inputs):
        return self.out(self.attention(inputs, inputs, inputs, need_weights=self.need_weights)[0].mean(1))


class Causal(nn.Module):
    """Attention by the function itself, as language models write it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, inputs):
        q, k, v = self.qkv(inputs)[:, None].chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))


class Mean(nn.Module):
    def forward(self, inputs):
        return inputs.mean(1)


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, inputs):
        return self.head(torch.tanh(self.mix(self.embedding(inputs).mean(1))))


def chain(*layers):
    return nn.Sequential(*layers)


def old_weight_norm(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


def images(*layers):
    return chain(nn.Conv2d(1, 4, 3), *layers, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def transformer(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options)
    return chain(layer, Mean(), nn.Linear(4, 3))


SEQUENCES, IMAGES, POINTS, WORDS = (7, 3, 4), (7, 1, 4, 4), (7, 4), None
ARCHITECTURES = {
    "tanh": (lambda: chain(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), POINTS),
    "softplus": (lambda: chain(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3)), POINTS),
    "gelu": (lambda: chain(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), POINTS),
    "deep relu": (lambda: chain(*(layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.ReLU()))), POINTS),
    "one layer used four times": (lambda: chain(*(nn.Linear(4, 4), nn.Tanh()) * 4), POINTS),
    "relu in place": (lambda: chain(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), POINTS),
    "lstm": (lambda: Last(nn.LSTM(4, 3, batch_first=True), 3), SEQUENCES),
    "lstm, two layers": (lambda: Last(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), 6), SEQUENCES),
    "gru": (lambda: Last(nn.GRU(4, 3, batch_first=True), 3), SEQUENCES),
    "convolution, max pool": (
        lambda: chain(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        IMAGES,
    ),
    "convolution, average pool": (
        lambda: chain(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        IMAGES,
    ),
    "batch norm": (lambda: images(nn.BatchNorm2d(4)), IMAGES),
    "batch norm of the batch": (lambda: images(nn.BatchNorm2d(4, track_running_stats=False)), IMAGES),
    "instance norm": (lambda: images(nn.InstanceNorm2d(4, affine=True)), IMAGES),
    "group norm": (lambda: images(nn.GroupNorm(2, 4)), IMAGES),
    "layer norm": (lambda: chain(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)), POINTS),
    "embedding": (lambda: chain(nn.Embedding(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), WORDS),
    "tied embedding": (TiedHead, WORDS),
    "attention": (lambda: Attention(need_weights=False), SEQUENCES),
    "attention with weights": (lambda: Attention(need_weights=True), SEQUENCES),
    "scaled dot product": (Causal, SEQUENCES),
    "transformer": (transformer, SEQUENCES),
    "transformer, gelu, norm first": (lambda: transformer(norm_first=True, activation="gelu"), SEQUENCES),
    "weight norm": (
        lambda: chain(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        POINTS,
    ),
    "weight norm of the whole": (
        lambda: chain(parametrizations.weight_norm(nn.Linear(4, 5), dim=None), nn.Tanh(), nn.Linear(5, 3)),
        POINTS,
    ),
    "weight norm of a convolution": (
        lambda: chain(
            parametrizations.weight_norm(nn.Conv2d(1, 4, 3), dim=1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
        ),
        IMAGES,
    ),
    "weight norm, old": (lambda: chain(old_weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)), POINTS),
    "weight norm of an lstm, old": (
        lambda: Last(old_weight_norm(nn.LSTM(4, 3, batch_first=True), name="weight_hh_l0"), 3),
        SEQUENCES,
    ),
    "spectral norm": (
        lambda: chain(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        POINTS,
    ),
    "spectral norm, old": (
        lambda: chain(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        POINTS,
    ),
    "orthogonal": (
        lambda: chain(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)),
        POINTS,
    ),
}


def loss_fn(outputs, targets, step):
    return nn.functional.cross_entropy(outputs, targets) + 0.1 * outputs.pow(2).mean()


def built(name, dtype):
    """The model, always with the same parameters, and its data."""
    build, shape = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = build()
        inputs = torch.randint(5, (7, 3)) if shape is WORDS else torch.randn(shape)
        if "batch norm" in name:
            model(3 * torch.randn(50, *shape[1:]) + 1)  # running mean and variance other than 0 and 1
        targets = torch.randint(3, (7,))
    return model.to(dtype).eval(), inputs.to(dtype) if inputs.is_floating_point() else inputs, targets


class Oracle:
    def __init__(self, name):
        self.model, self.inputs, self.targets = built(name, torch.float64)
        self.parameters = list(self.model.parameters())

    def gradient(self, params):
        nn.utils.vector_to_parameters(params.double(), self.parameters)
        loss = loss_fn(self.model(self.inputs), self.targets, 0)
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss, self.parameters)).detach()

    def product(self, params, vector):
        move = 1e-6 * vector.double()
        return (self.gradient(params.double() + move) - self.gradient(params.double() - move)) / 2e-6


def state(model):
    """Everything of a model that an evaluation could change."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [(p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()],
        [(m.training, len(m._forward_pre_hooks), len(m._forward_hooks), type(m)) for m in model.modules()],
    )


def assert_unchanged(model, before):
    after = state(model)
    assert after[1:] == before[1:]
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(after[0][key], before[0][key]) for key in before[0])


def assert_close(found, expected, rtol):
    assert (found - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_derivatives_are_those_of_the_users_model_which_stays_as_it_is(name, dtype):
    oracle, (model, inputs, targets) = Oracle(name), built(name, dtype)
    before, random_state = state(model), torch.get_rng_state()
    objective = Objective(model, loss_fn, inputs, targets)
    generator = torch.Generator().manual_seed(3)
    params = objective.layout.flatten_model(model)
    params = params + 0.1 * torch.randn(3, len(params), generator=generator, dtype=torch.float64).to(dtype)
    vectors = torch.randn(params.shape, generator=generator, dtype=torch.float64).to(dtype)
    gradients = torch.stack([oracle.gradient(p) for p in params])
    products = torch.stack([oracle.product(p, v) for p, v in zip(params, vectors, strict=True)])
    assert products.norm() > 0
    rtol = {torch.float64: 1e-7, torch.float32: 1e-4}[dtype]
    assert_close(objective.gradient(params, 0), gradients, rtol)
    assert_close(objective.hvp(params, vectors, 0), products, rtol)
    assert_close(objective.gradient(params[1], 0), gradients[1], rtol)
    assert_close(objective.hvp(params[1], vectors[1], 0), products[1], rtol)
    assert not objective.check  # it was made
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", ["lstm", "transformer", "weight norm, old", "batch norm"])
def test_one_row_gives_what_it_gives_in_a_stack(name):
    model, inputs, targets = built(name, torch.float64)
    objective = Objective(model, loss_fn, inputs, targets, batch_size=3)
    params = objective.layout.flatten_model(model) * torch.tensor([[1.0], [0.5], [1.5]])
    singles = torch.stack([objective.loss(p) for p in params])
    torch.testing.assert_close(objective.losses(params, 0), singles, rtol=1e-12, atol=0)


def test_what_vmap_does_not_take_is_evaluated_row_by_row():
    taken = {}
    for name in ("tanh", "group norm", "lstm"):
        model, inputs, targets = built(name, torch.float64)
        objective = Objective(model, loss_fn, inputs, targets)
        objective.losses(objective.layout.flatten_model(model).expand(2, -1), 0)
        taken[name] = objective.vmaps
    assert taken == {"tanh": True, "group norm": True, "lstm": False}


CURVED = ["batch norm", "lstm", "transformer", "tied embedding", "attention", "layer norm"]


@pytest.mark.parametrize("name", CURVED)
def test_eigenvalues_are_those_of_the_dense_hessian(name):
    model, inputs, targets = built(name, torch.float64)
    objective = Objective(model, loss_fn, inputs, targets)
    theta = objective.layout.flatten_model(model)
    params = torch.stack([theta, 1.5 * theta])
    rows = xr.Dataset({"params": (("step", "param"), params.numpy())}, {"step": [0, 1]})
    eigs = top_eigenpairs(objective, rows, k=3, tol=1e-9)
    assert eigs.certified.all()
    for row, point in enumerate(params):
        np.testing.assert_allclose(eigs.eigenvalue[row], dense_eigenvalues(name, point)[:3], rtol=1e-6)


def dense_eigenvalues(name, point):
    """Largest first, of the Hessian of the user's own model, one column after the other."""
    model, inputs, targets = built(name, torch.float64)
    parameters = list(model.parameters())
    nn.utils.vector_to_parameters(point, parameters)
    with twice_differentiable(recurrent=True):  # of torch's kernels, those that have a double backward
        gradient = torch.autograd.grad(loss_fn(model(inputs), targets, 0), parameters, create_graph=True)
        gradient = nn.utils.parameters_to_vector(gradient)
        columns = [
            torch.cat(
                [
                    part.flatten()
                    for part in torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
                ]
            )
            for entry in gradient
        ]
    hessian = torch.stack(columns)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-9, atol=1e-11)
    return torch.linalg.eigvalsh(hessian).flip(0).numpy()
