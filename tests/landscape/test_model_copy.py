"""What cannot be evaluated as a function of its parameters is refused by name; the rest is copied, not changed."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from landscape import Objective
from landscape.model_copy import duplicate, private_copy, refuse_training_mode, twice_differentiable


def mean_square(outputs, targets, step):
    return ((outputs - targets) ** 2).mean()


class First(nn.Module):
    """The first of the outputs of a layer that has several."""

    def __init__(self, layer, n_inputs=1):
        super().__init__()
        self.layer, self.n_inputs = layer, n_inputs

    def forward(self, inputs):
        return self.layer(*[inputs] * self.n_inputs)[0]


POINTS, SEQUENCES, IMAGES = torch.randn(6, 4), torch.randn(6, 3, 4), torch.randn(6, 4, 2, 2)
TRAINING = {
    "dropout": (nn.Dropout(0.1), POINTS, "1"),
    "alpha dropout": (nn.AlphaDropout(0.1), POINTS, "1"),
    "feature dropout": (nn.Dropout1d(0.1), SEQUENCES, "1"),
    "batch norm": (nn.BatchNorm1d(4), POINTS, "1"),
    "instance norm": (nn.InstanceNorm2d(4, track_running_stats=True), IMAGES, "1"),
    "rrelu": (nn.RReLU(), POINTS, "1"),
    "attention": (First(nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True), 3), SEQUENCES, "1.layer"),
    "transformer": (nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), SEQUENCES, r"1.self_attn"),
    "lstm": (First(nn.LSTM(4, 4, 2, dropout=0.1)), SEQUENCES, "1.layer"),
    "gru": (First(nn.GRU(4, 4, 2, dropout=0.1)), SEQUENCES, "1.layer"),
    "spectral norm": (parametrizations.spectral_norm(nn.Linear(4, 4)), POINTS, "1.parametrizations.weight.0"),
    "spectral norm, old": (nn.utils.spectral_norm(nn.Linear(4, 4)), POINTS, "1"),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_training_mode_is_refused_by_name_where_it_changes_the_loss(kind):
    layer, inputs, name = TRAINING[kind]
    model = nn.Sequential(nn.Identity(), layer, nn.Flatten(), nn.LazyLinear(2))
    model.eval()(inputs)
    Objective(model, mean_square, inputs, torch.zeros(6, 2))
    with pytest.raises(ValueError, match=rf"^{name} \(\w+\) is in training mode.*call model\.eval\(\) first$"):
        Objective(model.train(), mean_square, inputs, torch.zeros(6, 2))


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.0), nn.LSTM(4, 4, dropout=0.0), nn.MultiheadAttention(4, 2), nn.InstanceNorm1d(4), nn.LayerNorm(4)],
)
def test_training_mode_is_taken_where_it_changes_nothing(layer):
    refuse_training_mode(nn.Sequential(layer).train())


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))


class Compiled(nn.Module):
    """What torch.compile returns, as far as it can be told apart."""

    def __init__(self):
        super().__init__()
        self._orig_mod = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: nn.Sequential(nn.ReLU(), scripted()),
            r"^1 \(RecursiveScriptModule\) is a ScriptModule.*nn\.Module itself",
        ),
        (lambda: traced(), r"^the model \(TopLevelTracedModule\) is a ScriptModule"),
        (Compiled, r"compiled.*give model\._orig_mod"),
        (lazy, r"^0 \(LazyLinear\) has parameters without a shape.*run the model once"),
        (lambda: nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)), r"^0 \(Embedding\).*max_norm=None"),
    ],
    ids=["script", "trace", "compiled", "lazy", "max norm"],
)
def test_models_whose_parameters_cannot_be_replaced_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        Objective(model(), mean_square, POINTS, torch.zeros(6, 2))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(4, 2))


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(nn.Linear(4, 2), POINTS)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_of_the_batch_are_refused_with_several_batches(training):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).train(training)
    data = POINTS, torch.zeros(6, 3)
    for options in ({}, {"batch_size": 6}):
        Objective(model, mean_square, *data, **options)
    Objective(model, mean_square, [data])
    random_state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=2)
    for batches, options in ((data, {"batch_size": 4}), ((loader,), {})):
        with pytest.raises(ValueError, match=r"^1 \(BatchNorm1d\) keeps no running statistics.*batch_size=None"):
            Objective(model, mean_square, *batches, **options)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_answers_that_are_no_tensor_are_refused():
    objective = Objective(nn.LSTM(4, 4), mean_square, SEQUENCES, torch.zeros(6, 4))
    with pytest.raises(ValueError, match="must answer with a tensor, got tuple; wrap it"):
        objective.loss(torch.zeros(objective.n_params))


def test_the_copys_own_parameters_are_never_read():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.hidden = [self.layer.weight]

        def forward(self, inputs):
            return inputs @ self.hidden[0]

    assert Objective(Listed(), mean_square, POINTS, torch.zeros(6, 4)).loss(torch.zeros(20)).isnan()
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4).requires_grad_(False)).eval()
    private = private_copy(model, torch.device("cpu"), torch.float64)
    assert all(p.isnan().all() == p.requires_grad for p in private.parameters())
    assert torch.equal(private[1].running_var, torch.ones(4).double())


@pytest.mark.parametrize("dim", [0, 1, 2, None, -2])
@pytest.mark.parametrize("old", [True, False])
def test_weight_norm_has_torchs_values_and_the_double_backward_of_its_formula(dim, old):
    layer = nn.Conv1d(3, 4, 2).double()
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            layer = nn.utils.weight_norm(layer, dim=dim)
        names = "weight_g", "weight_v"
    else:
        layer = parametrizations.weight_norm(layer, dim=dim)
        names = "parametrizations.weight.original0", "parametrizations.weight.original1"
    inputs = torch.randn(5, 3, 4).double()
    objective = Objective(layer, lambda o, t, s: (o**3).mean(), inputs, torch.zeros(5))
    params = objective.layout.flatten_model(layer)
    torch.testing.assert_close(objective.outputs(params, inputs), layer(inputs).detach(), rtol=1e-14, atol=1e-15)

    def loss(vector):
        values = objective.layout.unflatten(vector)
        g, v = (values[name] for name in names)
        whole = [d for d in range(3) if dim is None or d != dim % 3]
        weight = g * v / v.square().sum(whole, keepdim=dim is not None).sqrt()
        return (nn.functional.conv1d(inputs, weight, values["bias"]) ** 3).mean()

    hessian = torch.autograd.functional.hessian(loss, params)
    columns = objective.linearize(params[None], 0)(torch.eye(len(params)).double()[None])[0]
    torch.testing.assert_close(columns, hessian, rtol=0, atol=1e-12 * float(hessian.abs().max()))


def test_a_copy_does_without_what_evaluations_left_in_the_model():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.register_buffer("mean", None, persistent=False)

        def forward(self, inputs):
            self.answer = self.layer(inputs)
            self.mean = self.answer.mean()
            return self.answer

    model = Remembering()
    answer = model(POINTS)
    copied = duplicate(model)
    assert torch.equal(copied.answer, answer)
    assert not copied.answer.requires_grad
    assert model.answer is answer
    assert answer.requires_grad
    objective = Objective(model, mean_square, POINTS, torch.zeros(6, 2))
    params = objective.layout.flatten_model(model).expand(3, -1)
    objective.losses(params, 0)  # by vmap, which leaves tensors that nothing can be done with
    objective.hvp(params, params, 0)
    assert model.answer is answer


def test_models_that_cannot_be_copied_are_refused_with_the_remedy():
    model = nn.Linear(4, 2)
    model.past = [model(POINTS)]
    with pytest.raises(ValueError, match=r"cannot be copied \(.*\); remove what it keeps.*load its state_dict$"):
        Objective(model, mean_square, POINTS, torch.zeros(6, 2))


def test_kernels_are_restored_after_an_evaluation_and_after_an_error():
    cuda, backends = torch.backends.cuda, torch.backends

    def kernels():
        return (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
            cuda.math_sdp_enabled(),
            backends.mha.get_fastpath_enabled(),
            backends.cudnn.enabled,
            backends.mkldnn.enabled,
        )

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        before = kernels()
        assert before[:4] == (True, False, False, False)
        inside = []
        with pytest.raises(TypeError), twice_differentiable(recurrent=True):
            inside.append(kernels(), "one argument too many")
        with twice_differentiable(recurrent=True):
            inside.append(kernels())
        assert inside == [(False, False, False, True, False, False, False)]
        assert kernels() == before
    before = kernels()
    with twice_differentiable(recurrent=False):
        assert kernels()[4:] == (False, *before[5:])
    assert kernels() == before


def test_gradients_of_activation_checkpoints_are_not_silently_those_of_other_parameters():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, inputs):
            return torch.utils.checkpoint.checkpoint(self.layer, inputs, use_reentrant=False)

    objective = Objective(Checkpointed(), mean_square, POINTS, torch.zeros(6, 4))
    params = torch.full((20,), 0.3)
    assert objective.loss(params).isfinite()
    assert objective.gradient(params, 0).isnan().any()
    with pytest.raises(ValueError, match="switch activation checkpointing off"):
        objective.hvp(params, params, 0)


def test_a_used_up_copy_stays_apart_from_the_model_it_was_made_of():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    objective = Objective(model, mean_square, POINTS, torch.zeros(6, 3))
    with torch.no_grad():
        for tensor in (*objective.model.parameters(), *objective.model.buffers()):
            tensor.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
