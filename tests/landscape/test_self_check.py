"""The check on first use refuses wrong Hessian products and names the module; right ones are never refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynloss.kernels import NetworkObjective
from landscape import Objective
from landscape import objective as objective_module
from landscape.self_check import self_check


def cross_entropy(outputs, targets, step):
    return F.cross_entropy(outputs, targets)


def cube(derivative):
    """x³ with the backward ``derivative(x, grad)``."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return derivative(ctx.saved_tensors[0], grad)

    return Cube


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class RawWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6, 1))

    def forward(self, inputs):
        return inputs @ torch._weight_norm(self.v, self.g, 0).T


class Inner(nn.Module):
    """Wrong in its own forward pass, not in the layer that it holds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, inputs):
        hidden = self.linear(inputs)
        return hidden * hidden.detach()


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


def margins(x):
    return x + F.multi_margin_loss(x, torch.zeros(len(x), dtype=torch.long), reduction="none")[:, None]


def network(layer, dtype=torch.float64):
    """A network with `layer` at 1.0, its objective's arguments and a point."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(layer(), nn.Tanh()), nn.Linear(6, 3)).to(dtype).eval()
        data = torch.randn(20, 4, dtype=dtype), torch.randint(3, (20,))
    return model, (model, cross_entropy, *data)


def product(objective, model):
    params = objective.layout.flatten_model(model)
    return objective.hvp(params, torch.ones_like(params), 0)


WRONG = {
    "saved input detached": (lambda: Layer(cube(lambda x, g: 3 * x.detach() ** 2 * g).apply), r"1\.0 \(Layer\) differ"),
    "gradient detached": (lambda: Layer(cube(lambda x, g: 3 * x**2 * g.detach()).apply), r"1\.0 \(Layer\) differ"),
    "gradient too large": (lambda: Layer(cube(lambda x, g: 3.3 * x**2 * g).apply), r"1\.0 \(Layer\)"),
    "straight through": (lambda: Layer(lambda x: x + (x.sign() - x).detach()), r"1\.0 \(Layer\)"),
    "weight norm of torch": (RawWeightNorm, r"1\.0 \(RawWeightNorm\) differ.*v \* \(g / v\.norm\(\)\)"),
    "wrong outside of its layer": (Inner, r"1\.0 \(Inner\)"),
    "once differentiable": (lambda: Layer(OnceOnly.apply), r"1\.0 \(Layer\) differ"),  # of which torch says nothing
    "no double backward": (lambda: Layer(margins), r"1\.0 \(Layer\) do not exist \(derivative for \S+ is not impl"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_derivatives_are_refused_and_the_module_is_named(kind, dtype):
    layer, message = WRONG[kind]
    model, arguments = network(layer, dtype)
    objective = Objective(*arguments)
    for _ in range(2):  # it does not pass the second time
        with pytest.raises(ValueError, match=f"^Hessian products are wrong: those of {message}") as error:
            product(objective, model)
        assert "\n" not in str(error.value)
    if kind != "no double backward":
        assert product(Objective(*arguments, check=False), model).isfinite().all()


def test_a_wrong_loss_is_told_from_a_wrong_model():
    wrong = cube(lambda x, grad: 3 * x.detach() ** 2 * grad)
    model, (_, _, *data) = network(nn.Tanh)
    objective = Objective(model, lambda o, t, s: wrong.apply(o).mean() + (o**2).mean(), *data)
    with pytest.raises(ValueError, match="those of the loss differ"):
        product(objective, model)


def test_a_defect_in_a_small_layer_does_not_drown_in_large_ones():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return inputs + 1e-4 * cube(lambda x, g: 3 * x.detach() ** 2 * g).apply(self.scale * inputs[:, :1])

    _, (_, _, *data) = network(nn.Tanh)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 6), Gate(), nn.Linear(6, 3)).double()
    objective = Objective(model, cross_entropy, *data)
    with pytest.raises(ValueError, match=r"3 \(Gate\)"):
        product(objective, model)


def running_mean():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, inputs):
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean()
            return inputs - self.mean

    return Running()


IMPURE = {
    "dropout in a forward pass": (lambda: Layer(lambda x: F.dropout(x, 0.3, training=True)), r"1\.0 \(Layer\)"),
    "rare noise": (lambda: Layer(lambda x: x * (torch.rand(len(x), 1).to(x) > 0.05)), r"1\.0 \(Layer\)"),
    "a running mean": (running_mean, r"1\.0 \(Running\)"),
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", IMPURE)
def test_losses_that_differ_when_evaluated_again_are_refused_by_name(kind, rows):
    layer, name = IMPURE[kind]
    model, arguments = network(layer)
    objective = Objective(*arguments)
    params = objective.layout.flatten_model(model).expand(rows, -1)
    with pytest.raises(ValueError, match=rf"another one when evaluated again: {name} draws random.*model\.eval\(\)"):
        objective.hvp(params, params, 0)
    if kind != "a running mean" and rows > 1:
        with pytest.raises(ValueError, match="draws random numbers"):
            objective.losses(params, 0)


def test_a_buffer_that_does_not_touch_the_loss_may_change():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs):
            self.seen += 1
            return inputs

    model, arguments = network(Counting)
    assert product(Objective(*arguments), model).isfinite().all()
    assert model[1][0].seen == 0


@pytest.mark.parametrize("random", [True, False])
def test_what_torch_does_not_know_to_differ_in_training_mode_is_refused(random):
    class Doubling(nn.Module):
        def forward(self, inputs):
            factor = 2 * torch.rand(len(inputs), 1).to(inputs) if random else 2
            return factor * inputs if self.training else inputs

    model, arguments = network(Doubling)
    assert product(Objective(*arguments), model).isfinite().all()
    model.train()
    with pytest.raises(ValueError, match=r"1\.0 \(Doubling\).*call model\.eval\(\) first"):
        product(Objective(*arguments), model)


@pytest.mark.parametrize("remedy", ["the list", "the list is a ParameterList"])
def test_parameters_that_are_not_replaced_are_refused(remedy):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            weights = [self.layer.weight]
            self.weights = weights if remedy == "the list" else nn.ParameterList(weights)

        def forward(self, inputs):
            return inputs @ self.weights[0]

    model, arguments = network(Listed)
    objective = Objective(*arguments)
    if remedy == "the list":
        with pytest.raises(ValueError, match=r"depends on a parameter of shape \(6, 6\) that is not the objective's"):
            product(objective, model)
    else:
        assert product(objective, model).isfinite().all()


def test_a_penalty_on_the_users_own_weights_is_refused():
    model, (_, _, *data) = network(nn.Tanh)
    objective = Objective(model, lambda o, t, s: cross_entropy(o, t, s) + model[0].weight.square().sum(), *data)
    with pytest.raises(ValueError, match=r"a parameter of shape \(6, 4\).*penalties on weights in the model's forward"):
        product(objective, model)


def test_writing_to_parameters_is_refused():
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, inputs):
            self.scale.data.clamp_(-0.5, 0.5)
            return self.scale * inputs

    model, arguments = network(Clipped)
    with pytest.raises(ValueError, match="writes to its parameters"):
        product(Objective(*arguments), model)


def deep_relu(seed, blank):
    """He-initialised, so that no layer dies; with zero biases on blank samples, every unit stands on its kink there."""
    torch.manual_seed(seed)
    width = 15 + 10 * (seed % 3)
    layers = [layer for i in range(6 + seed % 6) for layer in (nn.Linear(width if i else 4, width), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        if blank:
            nn.init.zeros_(layer.bias)
    inputs = torch.randn(20, 4)
    inputs[: 4 if blank else 0] = 0
    return model, inputs, torch.randint(3, (20,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_deep_relu_networks_are_not_refused(seed, blank, dtype):
    with torch.random.fork_rng(devices=[]):
        model, inputs, targets = deep_relu(seed, blank)
    objective = Objective(model, cross_entropy, inputs, targets, dtype=dtype)
    product(objective, model)
    assert not objective.check


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("scale", [1e2, 3e2, 1e4])
def test_saturated_losses_whose_hessian_is_rounding_are_not_refused(scale, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3))
        data = 0.01 * torch.randn(20, 4), torch.randint(3, (20,))
    objective = Objective(model, lambda o, t, s: F.cross_entropy(scale * o, t), *data, dtype=dtype)
    product(objective, model)
    assert not objective.check


@pytest.mark.parametrize("loss_fn", [lambda o, t, s: o.mean(), lambda o, t, s: F.relu(o - 1e6).sum()])
def test_zero_hessians_are_not_refused(loss_fn):
    model, (_, _, *data) = network(nn.ReLU)
    objective = Objective(model, loss_fn, *data)
    product(objective, model)
    assert not objective.check


def test_products_that_the_objective_itself_gets_wrong_are_refused():
    class Wrong(Objective):
        def linearize(self, params, step):
            product = super().linearize(params, step)
            return lambda vectors: 1.01 * product(vectors)

    model, arguments = network(nn.Tanh)
    with pytest.raises(ValueError, match=r"those of the model and its loss differ from .* 0\.9\d+ %"):
        product(Wrong(*arguments), model)


def test_a_model_that_asks_for_float32_is_checked_all_the_same():
    def hidden(x):
        return x.float() + torch.ones(6)

    model, arguments = network(lambda: Layer(hidden), torch.float32)
    assert product(Objective(*arguments), model).isfinite().all()
    wrong = cube(lambda x, grad: 3 * x.detach() ** 2 * grad)
    model, arguments = network(lambda: Layer(lambda x: wrong.apply(hidden(x))), torch.float32)
    with pytest.raises(ValueError, match=r"1\.0 \(Layer\) differ"):
        product(Objective(*arguments), model)


def test_a_loss_that_holds_float32_tensors_is_checked_in_float64():
    model, (_, _, *data) = network(nn.Tanh, torch.float32)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    objective = Objective(model, lambda o, t, s: weighted(o, t), *data)
    product(objective, model)
    assert weighted.weight.dtype == torch.float32


def test_what_cannot_be_evaluated_in_float64_is_said_not_to_be_compared():
    def insist(inputs):
        if inputs.dtype != torch.float32:
            raise TypeError("only float32\nis taken")
        return inputs

    model, arguments = network(lambda: Layer(insist), torch.float32)
    with pytest.warns(UserWarning, match=r"not compared with finite differences.*float64 \(only float32\)"):
        product(Objective(*arguments), model)
    wrong = cube(lambda x, grad: 3 * x**2 * grad.detach())
    model, arguments = network(lambda: Layer(lambda x: wrong.apply(insist(x))), torch.float32)
    objective = Objective(*arguments)
    with (
        pytest.warns(UserWarning, match="not compared"),
        pytest.raises(ValueError, match="are not symmetric in float32"),
    ):
        product(objective, model)


def test_models_that_differentiate_by_their_inputs_are_taken():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, inputs):
            inputs = inputs.detach().requires_grad_()
            return torch.autograd.grad(self.network(inputs).sum(), inputs, create_graph=True)[0]

    model, targets = Slope().double(), torch.zeros(9, 4).double()
    objective = Objective(model, lambda o, t, s: ((o - t) ** 2).mean(), torch.randn(9, 4).double(), targets)
    assert product(objective, model).isfinite().all()


def test_stacked_params_that_vmap_gets_wrong_are_evaluated_row_by_row():
    class WrongRule(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad

        @staticmethod
        def vmap(info, in_dims, x):
            return 1.1 * x, in_dims[0]

    model, arguments = network(lambda: Layer(WrongRule.apply))
    objective = Objective(*arguments)
    params = objective.layout.flatten_model(model).expand(2, -1)
    single = objective.gradient(params[0], 0)
    assert not torch.allclose(objective.gradient(params, 0)[0], single)
    objective.hvp(params, params, 0)
    assert not objective.vmaps
    torch.testing.assert_close(objective.gradient(params, 0), single.expand(2, -1))


def loader(inputs, targets, **options):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4, **options)


class Noisy(torch.utils.data.Dataset):
    """A random transform of every sample but the first four."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i] + (torch.rand(()) if i > 3 else 0), self.targets[i]


def test_batches_that_are_others_in_a_second_pass_are_refused():
    model, (_, _, *data) = network(nn.Tanh)
    product(Objective(model, cross_entropy, loader(*data)), model)
    noisy = torch.utils.data.DataLoader(Noisy(*data), batch_size=4)
    for batches in (loader(*data, shuffle=True), noisy):
        with pytest.raises(ValueError, match=r"others in a second pass.*shuffle=False"):
            product(Objective(model, cross_entropy, batches), model)


@pytest.mark.parametrize("method", ["losses", "gradient", "linearize"])
def test_bad_batches_of_an_iterable_are_refused_where_they_are_met(method):
    model, (_, _, inputs, targets) = network(nn.Tanh)
    good, bad = (inputs, targets), (inputs.clone(), targets)
    bad[0][3, 1] = torch.nan
    params = torch.zeros(1, 51)
    for batch, message in ((bad, "inputs of batch 1 hold NaN or inf"), (inputs, "a pair.*batch 1 is Tensor")):
        with pytest.raises(ValueError, match=message):
            getattr(Objective(model, cross_entropy, [good, batch]), method)(params, 0)


def test_what_is_first_along_a_batch_need_not_be_samples():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, inputs):
            return self.out(self.layer(inputs)[0][-1])

    model = TimeFirst().double()
    batches = [(torch.randn(9, 20, 4).double(), torch.randint(3, (20,)))]  # (time, sample, feature)
    objective = Objective(model, cross_entropy, batches)
    product(objective, model)
    assert not objective.check


def test_the_check_is_made_once_where_something_is_finite(monkeypatch):
    made = []
    check = objective_module.self_check
    monkeypatch.setattr(objective_module, "self_check", lambda *arguments: made.append(1) or check(*arguments))
    model, arguments = network(nn.Tanh)
    objective = Objective(*arguments)
    params = objective.layout.flatten_model(model)
    objective.gradient(params, 0)
    assert not made
    assert objective.hvp(params * torch.nan, params, 0).isnan().all()
    assert objective.check  # still to be made
    stack = torch.stack([params * torch.nan, params])
    objective.linearize(stack, np.array([4, 2]))
    assert not objective.check
    for _ in range(3):
        objective.hvp(params, params, 0)
    assert len(made) == 2
    product(Objective(*arguments, check=False), model)
    assert len(made) == 2


def test_closed_forms_are_not_checked(monkeypatch):
    import dynloss

    monkeypatch.setattr(objective_module, "self_check", lambda *arguments: pytest.fail("was called"))
    model = dynloss.mlp(2, 5, 3)
    objective = NetworkObjective(model, dynloss.CrossEntropy(3), *dynloss.spiral(4, 3))
    product(objective, model)


class Drawing(nn.Module):
    """Draws random numbers and counts its evaluations, to no effect."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        self.seen += 1
        return inputs + 0 * torch.randn_like(inputs)


def test_the_check_changes_nothing():
    model, arguments = network(lambda: nn.Sequential(Drawing(), nn.BatchNorm1d(6), nn.Dropout(0.4)))
    objective = Objective(model, cross_entropy, loader(*arguments[2:]))
    params = objective.layout.flatten_model(model)
    given, random_state = params.clone(), torch.get_rng_state()
    before = [copy.deepcopy(m.state_dict()) for m in (model, objective.model)]
    assert self_check(objective, params, 0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(params, given)
    for m, state in zip((model, objective.model), before, strict=True):
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip_values(m.state_dict(), state))
        assert all(p.grad is None for p in m.parameters())
    assert objective.model[1][0][0].seen == 0


def zip_values(a, b):
    assert a.keys() == b.keys()
    return zip(a.values(), b.values(), strict=True)
