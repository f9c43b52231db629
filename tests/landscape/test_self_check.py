"""What an objective refuses when its Hessian products are first asked for, and what it must never refuse."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Objective


def cross_entropy(outputs, targets, step):
    return nn.functional.cross_entropy(outputs, targets)


def data(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 4, generator=generator, dtype=dtype), torch.arange(12) % 3


def product(model, loss_fn=cross_entropy, inputs=None, targets=None, **options):
    """A Hessian product, which the objective checks first."""
    dtype = next(model.parameters()).dtype
    if inputs is None:
        inputs, targets = data(dtype)
    objective = Objective(model, loss_fn, inputs, targets, **options)
    theta = objective.layout.flatten_model(model)
    return objective.hvp(theta, torch.ones_like(theta), 0)


class Halved(torch.autograd.Function):
    """sin, with its own derivative; that of the derivative is half of what it should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return HalvedSlope.apply(x) * grad


class HalvedSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return -0.5 * x.sin() * grad


class Sine(nn.Module):
    def forward(self, x):
        return Halved.apply(x)


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class RawWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.ones(5, 1))

    def forward(self, x):
        return x @ torch._weight_norm(self.v, self.g, 0).mT


class Counting(nn.Module):
    """Remembers how often it was evaluated."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return x * self.n


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("module", "named"),
    [(Sine, r"\(Sine\)"), (Dropping, r"\(Dropping\)"), (RawWeightNorm, r"\(RawWeightNorm\)"), (Counting, "Counting")],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_the_module(module, named, dtype):
    torch.manual_seed(0)
    wide = 5 if module is RawWeightNorm else 4
    model = nn.Sequential(nn.Linear(4, 4), module(), nn.Linear(wide, 3)).to(dtype)
    with pytest.raises(ValueError, match=named) as error:
        product(model)
    assert "\n" not in str(error.value)
    assert product(model, check=False).shape == (sum(p.numel() for p in model.parameters()),)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", range(8))
def test_deep_relu_networks_with_their_kinks_are_not_refused(seed, dtype):
    torch.manual_seed(seed)
    layers = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 16), *layers, nn.Linear(16, 3)).to(dtype)
    assert product(model).isfinite().all()


def test_the_check_changes_neither_model_nor_random_state_and_is_made_once():
    torch.manual_seed(0)
    calls = []

    class Watched(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = nn.Sequential(Watched(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    objective = Objective(model, cross_entropy, *data(torch.float32))
    theta = objective.layout.flatten_model(model)
    objective.linearize(theta, 0)
    first = len(calls)
    objective.linearize(theta, 0)
    assert len(calls) - first < first / 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_params_that_are_not_finite_give_nan_and_leave_the_check_to_the_next():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Sine(), nn.Linear(4, 3)).double()
    objective = Objective(model, cross_entropy, *data())
    theta = objective.layout.flatten_model(model)
    assert objective.hvp(theta * np.nan, torch.ones_like(theta), 0).isnan().any()
    with pytest.raises(ValueError, match="Sine"):
        objective.hvp(theta, torch.ones_like(theta), 0)


def test_a_loader_that_shuffles_anew_is_refused_and_one_in_order_is_not():
    inputs, targets = data()
    samples = torch.utils.data.TensorDataset(inputs, targets)
    model = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match="shuffle=False"):
        product(model, inputs=torch.utils.data.DataLoader(samples, batch_size=4, shuffle=True))
    ordered = product(model, inputs=torch.utils.data.DataLoader(samples, batch_size=5))
    torch.testing.assert_close(ordered, product(model), rtol=1e-12, atol=1e-14)


def dropout_in_attention():
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.Dropout, r"0 \(Dropout\) is in training mode.*model\.eval\(\)"),
        (lambda: nn.BatchNorm1d(4), r"0 \(BatchNorm1d\) is in training mode"),
        (nn.RReLU, r"0 \(RReLU\) is in training mode"),
        (lambda: nn.LSTM(4, 4, 2, dropout=0.2), r"0 \(LSTM\) is in training mode"),
        (dropout_in_attention, r"self_attn \(MultiheadAttention\) is in training mode"),
        (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)), r"0 \(Linear\) is in training mode"),
        (lambda: torch.jit.script(nn.Linear(4, 4)), "is a ScriptModule"),
        (lambda: nn.LazyLinear(4), "without a shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(torch.jit|Lazy|weight_norm|spectral_norm).*")
def test_models_that_are_no_function_of_their_parameters_are_refused_at_once(part, message):
    model = nn.Sequential(part(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=message):
        Objective(model, cross_entropy, *data(torch.float32))


def test_batch_norm_without_running_statistics_takes_all_samples_as_one_batch_or_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3))
    model = model.double().eval()
    assert product(model).isfinite().all()
    with pytest.raises(ValueError, match=r"each batch.*batch_size=None"):
        product(model, batch_size=5)
