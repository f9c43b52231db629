"""Closed forms are chosen only where they hold, and a run goes on with the kernel that trained it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import dynloss
from dynloss import kernels
from dynloss.kernels import NetworkObjective, fastest_objective, kernels_for
from landscape import Objective, open_run, replay

LOSSES = [
    dynloss.CrossEntropy(3),
    dynloss.DynamicalCrossEntropy(3, 30, 50),
    dynloss.SquaredError(3, weighting="component"),
    dynloss.DynamicalSquaredError(3, 30, 50, weighting="sample"),
]
NUMBA, TORCH = "closed form, numba", "closed form, torch"


@pytest.fixture
def without_numba(monkeypatch):
    """A machine without numba."""
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)


def need_numba():
    pytest.importorskip("numba", reason="the compiled closed forms need numba: pip install '.[fast]'")


def assert_equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


class OtherLoss(dynloss.CrossEntropy):
    """Twice a cross entropy, so that the closed form would be wrong for it."""

    def terms(self, outputs, targets):
        return 2 * super().terms(outputs, targets)


class OtherCall(dynloss.DynamicalSquaredError):
    """A squared error and something more."""

    def __call__(self, outputs, targets, step):
        return super().__call__(outputs, targets, step) + outputs.mean()


def frozen():
    model = dynloss.mlp(2, 6, 3)
    model.hidden.bias.requires_grad_(False)
    return model


def with_tanh():
    model = dynloss.mlp(2, 6, 3)
    model.activation = torch.nn.Tanh()
    return model


def without_bias():
    model = dynloss.mlp(2, 6, 3)
    model.output = torch.nn.Linear(6, 3, bias=False, dtype=torch.float64)
    return model


def with_dropout():
    return dynloss.mlp(2, 6, 3).append(torch.nn.Dropout(0.5)).eval()


def sequential():
    return torch.nn.Sequential(*dynloss.mlp(2, 6, 3))


def plain_cross_entropy(outputs, targets, step):
    return torch.nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (frozen(), dynloss.CrossEntropy(3)),
        (with_tanh(), dynloss.CrossEntropy(3)),
        (without_bias(), dynloss.CrossEntropy(3)),
        (with_dropout(), dynloss.CrossEntropy(3)),
        (sequential(), dynloss.CrossEntropy(3)),
        (dynloss.mlp(2, 6, 3), plain_cross_entropy),
        (dynloss.mlp(2, 6, 3), OtherLoss(3)),
        (dynloss.mlp(2, 6, 3), OtherCall(3, 5, 10)),
        (with_tanh(), dynloss.DynamicalSquaredError(3, 5, 10, weighting="component")),
    ],
    ids=[
        *["frozen bias", "tanh", "no bias", "a layer more", "sequential", "function as loss", "other terms"],
        *["other call", "tanh, squared error"],
    ],
)
def test_every_other_model_or_loss_gets_the_generic_objective_and_its_own_values(model, loss):
    data = dynloss.spiral(9, 3, seed=0)
    objective = fastest_objective(model, loss, *data)
    assert type(objective) is Objective
    expected = torch.autograd.grad(
        loss(model(data.inputs), data.targets, 0), [p for p in model.parameters() if p.requires_grad]
    )
    found = objective.gradient(objective.layout.flatten_model(model), 0)
    assert_equal(found, torch.cat([tensor.reshape(-1) for tensor in expected]))


class OtherWeights(dynloss.CrossEntropy):
    """A cross entropy that counts the first class only."""

    def class_weights(self, step):
        return torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64).expand(*torch.as_tensor(step).shape, 3)


@pytest.mark.parametrize("kernel", [TORCH, NUMBA])
def test_a_cross_entropy_with_class_weights_of_its_own_gets_the_closed_form_with_them(kernel):
    if kernel == NUMBA:
        need_numba()
    model, data = dynloss.mlp(2, 6, 3), dynloss.spiral(9, 3, seed=0)
    closed = fastest_objective(model, OtherWeights(3), *data, kernel=kernel)
    params = closed.layout.flatten_model(model)
    first = data.inputs[data.targets == 0], data.targets[data.targets == 0]
    assert_equal(closed.gradient(params, 5), Objective(model, plain_cross_entropy, *first).gradient(params, 5))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_network_gets_the_compiled_closed_form_for_every_loss_of_this_package(loss, dtype):
    need_numba()
    objective = fastest_objective(dynloss.mlp(2, 6, 3, dtype=dtype), loss, *dynloss.spiral(9, 3, seed=0))
    assert objective.kernel == NUMBA
    assert isinstance(objective, NetworkObjective)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_without_numba_the_network_gets_the_closed_form_of_torch(loss, without_numba):
    assert type(fastest_objective(dynloss.mlp(2, 6, 3), loss, *dynloss.spiral(9, 3, seed=0))) is NetworkObjective


def test_other_types_and_devices_are_served_by_torch():
    for model in (dynloss.mlp(2, 6, 3, dtype=torch.bfloat16), dynloss.mlp(2, 6, 3).to("meta")):
        assert next(iter(kernels_for(model, dynloss.CrossEntropy(3)))) == TORCH


def test_where_inputs_and_classes_are_many_autograd_comes_first_and_closed_forms_serve_by_name():
    kinds = kernels_for(dynloss.mlp(50, 6, 10), dynloss.CrossEntropy(10))
    assert next(iter(kinds)) == "autograd"
    assert TORCH in kinds


def test_a_kernel_that_does_not_serve_is_refused_with_those_that_do(without_numba):
    arguments = dynloss.mlp(2, 6, 3), dynloss.CrossEntropy(3), *dynloss.spiral(9, 3, seed=0)
    for kernel in (TORCH, "autograd"):
        assert fastest_objective(*arguments, kernel=kernel).kernel == kernel
    with pytest.raises(ValueError, match=r"'closed form, numba' does not serve here; .*torch', 'autograd'.*\[fast\]"):
        fastest_objective(*arguments, kernel=NUMBA)
    with pytest.raises(ValueError, match="'closed form, torch' does not serve here"):
        fastest_objective(with_tanh(), *arguments[1:], kernel=TORCH)


def test_numba_loads_with_the_first_objective_and_if_it_is_broken_that_is_said(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('this numba is broken')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import dynloss; dynloss.train; dynloss.objective\n"
        "from dynloss.kernels import fastest_objective; print('loaded')\n"
        "fastest_objective(dynloss.mlp(2, 3, 3), dynloss.CrossEntropy(3), *dynloss.spiral(3, 3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr
    assert done.stderr.rstrip().endswith("ImportError: this numba is broken")


class Stop(Exception):
    """Ends a training."""


def trained(path, **options):
    return dynloss.train(
        dynloss.mlp(2, 12, 3, seed=2),
        dynloss.DynamicalCrossEntropy(3, 5, 30),
        dynloss.spiral(20, 3, seed=0),
        record=path,
        n_steps=100,
        checkpoint_every=5,
        eigenpairs=1,
        **options,
    )


def interrupted(path, monkeypatch):
    """A run stopped at step 80."""
    gradient = NetworkObjective.value_and_gradient

    def failing(self, params, step):
        if step == 80:
            raise Stop
        return gradient(self, params, step)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkObjective, "value_and_gradient", failing)
        with pytest.raises(Stop):
            trained(path)
    return path


@pytest.mark.parametrize("kernel", [TORCH, NUMBA])
def test_a_run_is_resumed_and_replayed_by_the_kernel_that_trained_it(tmp_path, monkeypatch, kernel):
    need_numba()
    with monkeypatch.context() as patched:
        if kernel == TORCH:
            patched.setattr(kernels, "find_spec", lambda name: None)
        undisturbed = trained(tmp_path / "a.h5")
        path = interrupted(tmp_path / "b.h5", monkeypatch)
    trained(path, resume=True)
    with open_run(path) as run, open_run(undisturbed) as expected:
        assert run.checkpoints.attrs["kernel"] == kernel
        assert run.history.identical(expected.history)
        assert run.checkpoints.identical(expected.checkpoints)
        assert run.eigenpairs.identical(expected.eigenpairs)
        objective = dynloss.objective(run)
        assert objective.kernel == kernel
        again = replay(objective, run.checkpoints.sel(step=10), 90, checkpoints=run.checkpoints)
        assert (again.attrs["exact"], again.attrs["n_compared"]) == (1, 18)
        other = dynloss.objective(run, kernel=TORCH if kernel == NUMBA else NUMBA)
        again = replay(other, run.checkpoints.sel(step=10), 90, checkpoints=run.checkpoints)
        assert again.attrs["exact"] == 0
        assert 0 < again.attrs["largest_deviation"] < 1e-9


def test_without_its_kernel_a_run_is_not_resumed_and_its_replay_is_not_called_exact(tmp_path, monkeypatch):
    need_numba()
    path, complete = interrupted(tmp_path / "a.h5", monkeypatch), trained(tmp_path / "b.h5")
    before = path.read_bytes()
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match='its attribute kernel is "closed form, numba", not "closed form, torch"'):
        trained(path, resume=True)
    assert path.read_bytes() == before
    with open_run(complete) as run:
        objective = dynloss.objective(run)
        assert objective.kernel == TORCH
        again = replay(objective, run.checkpoints.sel(step=10), 90, checkpoints=run.checkpoints)
        assert again.attrs["exact"] == 0
