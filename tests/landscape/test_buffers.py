"""Statistics of batch norms travel with their checkpoint: each row is evaluated as its own model would be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import landscape
from landscape import Objective, ParamLayout, RunWriter, open_run, read_state_dicts
from landscape.checkpoints import matched

STEPS = [3, 40, 500]
torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(12, 2, 5, 5, dtype=torch.float64), torch.randint(3, (12,))


class Terms:
    """Cross entropy as a sum over classes, with weights that depend on the step."""

    def terms(self, outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return torch.stack([(losses * (targets == c)).sum() for c in range(3)]) / len(targets)

    def class_weights(self, step):
        phase = torch.as_tensor(step)[..., None] / 100 + torch.arange(3)
        return 1 + 0.5 * torch.sin(phase.double())

    def __call__(self, outputs, targets, step):
        return (self.class_weights(step) * self.terms(outputs, targets)).sum()


def network(seed):
    """A small convolutional network with a batch norm that has seen data, in evaluation mode."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(27, 3)
    ).double()
    model.train()(2 * torch.randn(30, 2, 5, 5, dtype=torch.float64) + seed)
    return model.eval()


MODELS = [network(seed) for seed in range(3)]
ALONE = [Objective(model, Terms(), INPUTS, TARGETS) for model in MODELS]
THETA = [one.layout.flatten_model(model) for one, model in zip(ALONE, MODELS, strict=True)]


def one_row(i):
    return xr.Dataset({"params": (("step", "param"), THETA[i][None].numpy())}, {"step": [STEPS[i]]})


def loss_of(i, params):
    values = ALONE[i].layout.unflatten(params)
    return Terms()(torch.func.functional_call(MODELS[i], values, (INPUTS,)), TARGETS, STEPS[i])


@pytest.fixture
def checkpoints(tmp_path):
    for step, model in zip(STEPS, MODELS, strict=True):
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    return read_state_dicts(tmp_path, ALONE[0].layout)


@pytest.fixture
def objective():
    return Objective(network(7), Terms(), INPUTS, TARGETS)


def test_values_and_products_are_those_of_each_model_by_itself(objective, checkpoints):
    own, rows = matched(objective, checkpoints)
    order = [2, 0, 1, 0]
    params, steps = own.as_params(rows.params.values[order]), np.array(STEPS)[order]
    vectors = torch.randn(4, 2, own.n_params, dtype=torch.float64)
    losses, gradients = own.value_and_gradient(params, steps)
    products, quadratic = own.linearize(params, steps)(vectors), own.gauss_newton(params, steps)(vectors)
    for row, i in enumerate(order):
        step = STEPS[i]
        torch.testing.assert_close(losses[row], ALONE[i].loss(THETA[i], step))
        torch.testing.assert_close(losses[row], Terms()(MODELS[i](INPUTS), TARGETS, step).detach())
        torch.testing.assert_close(own.losses(params, steps)[row], losses[row])
        torch.testing.assert_close(own.terms(params, steps)[row], ALONE[i].terms(THETA[i])[0])
        torch.testing.assert_close(gradients[row], ALONE[i].gradient(THETA[i], step))
        torch.testing.assert_close(products[row], ALONE[i].linearize(THETA[i][None], step)(vectors[row][None])[0])
        torch.testing.assert_close(quadratic[row], ALONE[i].gauss_newton(THETA[i][None], step)(vectors[row][None])[0])
        torch.testing.assert_close(own.accuracy(params, steps)[row], ALONE[i].accuracy(THETA[i])[0])
        torch.testing.assert_close(own.outputs(THETA[i], INPUTS, step), MODELS[i](INPUTS).detach())
        one = own.linearize(THETA[i], step)(vectors[row, 0])
        torch.testing.assert_close(one, products[row, 0])
    assert abs(objective.loss(THETA[0], 3) - losses[1]) > 0.01


def test_analyses_use_them_and_say_so(objective, checkpoints):
    eigs = landscape.top_eigenpairs(objective, checkpoints, k=2, tol=1e-8)
    grads = landscape.gradient_decomposition(objective, checkpoints, eigs)
    widths = landscape.valley_width(objective, checkpoints, eigs, rise=0.05)
    at = {"step": 40}
    plane = landscape.plane_slice(
        objective, checkpoints.sel(at), eigs.sel(at), half_width=0.5, n_points=3, quantities=["accuracy"]
    )
    path = landscape.project(objective, checkpoints, plane)
    for i, step in enumerate(STEPS):
        hessian = torch.autograd.functional.hessian(lambda params, i=i: loss_of(i, params), THETA[i])
        expected = torch.linalg.eigvalsh(hessian).flip(0)[:2]
        np.testing.assert_allclose(eigs.eigenvalue[i], expected, rtol=1e-7)
        gradient = ALONE[i].gradient(THETA[i], step)
        np.testing.assert_allclose(grads.gradient_norm[i], gradient.norm(), rtol=1e-9)
        alone = landscape.valley_width(ALONE[i], one_row(i), eigs.sel(step=[step]), rise=0.05)
        np.testing.assert_allclose(widths.width[i], alone.width[0], rtol=1e-9)
        np.testing.assert_allclose(path.loss[i], ALONE[i].loss(THETA[i], step), rtol=1e-12)
    np.testing.assert_allclose(plane.loss[1, 1], ALONE[1].loss(THETA[1], 40), rtol=1e-12)
    np.testing.assert_allclose(plane.accuracy[1, 1], ALONE[1].accuracy(THETA[1])[0])
    for found in (eigs, grads, widths, plane, path):
        assert found.attrs["batch_norm"] == "running statistics of each checkpoint"
    del checkpoints["buffers"]
    plain = landscape.top_eigenpairs(objective, checkpoints, k=1)
    assert plain.attrs["batch_norm"] == "running statistics of the model"
    assert abs(plain.eigenvalue[0, 0] / eigs.eigenvalue[0, 0] - 1) > 0.01


def test_a_run_that_was_recorded_gives_what_the_files_give(objective, checkpoints, tmp_path):
    layout, buffers = objective.layout, ParamLayout.of_buffers(MODELS[0])
    with RunWriter(tmp_path / "run.h5", layout, history=[], buffers=buffers) as writer:
        for step, model in zip(STEPS, MODELS, strict=True):
            writer.append(step, layout.flatten_model(model), buffers=buffers.flatten_model(model))
        with pytest.raises(ValueError, match="append must give buffers, as RunWriter was told to save them"):
            writer.append(501, layout.flatten_model(MODELS[0]))
    assert landscape.verify(tmp_path / "run.h5", progress=False).damaged == ()
    with open_run(tmp_path / "run.h5") as run:
        recorded = landscape.top_eigenpairs(objective, run.checkpoints, k=2)
    read = landscape.top_eigenpairs(objective, checkpoints, k=2)
    for name in read.data_vars:
        np.testing.assert_array_equal(recorded[name], read[name])
    with RunWriter(tmp_path / "none.h5", layout, history=[]) as writer:
        with pytest.raises(ValueError, match="append must give no buffers, as RunWriter was told to save none"):
            writer.append(0, THETA[0], buffers=torch.zeros(6))
        writer.append(0, THETA[0])


def test_a_run_with_buffers_is_resumed_with_the_same_ones(tmp_path):
    layout, buffers, path = ALONE[0].layout, ParamLayout.of_buffers(MODELS[0]), tmp_path / "run.h5"
    writer = RunWriter(path, layout, history=[], buffers=buffers)
    writer.append(0, THETA[0], buffers=np.zeros(6))
    writer.finish("interrupted")
    with pytest.raises(ValueError, match="its buffers is"):
        RunWriter(path, layout, history=[], resume=True)
    with RunWriter(path, layout, history=[], buffers=buffers, resume=True) as writer:
        writer.append(1, THETA[1], buffers=np.ones(6))
    with open_run(path) as run:
        np.testing.assert_array_equal(run.checkpoints.buffers, [np.zeros(6), np.ones(6)])


def test_an_attribute_of_ones_own_may_be_called_a_layout(tmp_path):
    options = {"history": [], "attrs": {"data_layout": "rows"}, "resume": True}
    for _ in range(2):
        writer = RunWriter(tmp_path / "run.h5", ALONE[0].layout, **options)
        writer.finish("interrupted")
    with open_run(tmp_path / "run.h5") as run:
        assert run.checkpoints.attrs["data_layout"] == "rows"


def test_one_checkpoint_has_its_buffers_at_every_step(objective, checkpoints):
    last = checkpoints.sel(step=500)
    path = landscape.replay(objective, last, 3, learning_rate=0.01)
    expected = landscape.replay(ALONE[2], one_row(2).isel(step=0), 3, learning_rate=0.01)
    np.testing.assert_allclose(path.params, expected.params, rtol=1e-12)
    frozen = landscape.attractor_diagram(
        objective, last, class_weights=[[1, 1, 1], [2, 1, 1]], learning_rate=0.01, n_transient=0, n_keep=34
    )
    other = landscape.attractor_diagram(
        ALONE[2], one_row(2).isel(step=0), class_weights=[[1, 1, 1], [2, 1, 1]], learning_rate=0.01, n_transient=0,
        n_keep=34,
    )  # fmt: skip
    np.testing.assert_allclose(frozen.loss, other.loss, rtol=1e-9)


def test_steps_without_buffers_and_other_models_are_refused_in_a_line(objective, checkpoints):
    own, rows = matched(objective, checkpoints)
    for refused, message in (
        (lambda: own.losses(THETA[0], 41), "no buffers were saved at step 41, the nearest are 40, 3"),
        (lambda: own.accuracy(THETA[0]), "differ from step to step; say which: step="),
        (lambda: own.reweighted(np.ones((2, 3))), "select one checkpoint"),
        (lambda: own.linearize(own.as_params(rows.params.values), STEPS)(torch.zeros(2, own.n_params)), "do not fit"),
        (
            lambda: matched(objective, checkpoints.assign_attrs(buffer_layout='[["1.mean", [3]], ["1.var", [3]]]')),
            r"the buffer 1\.mean \[3\], but the objective's model has no such buffer; build the model that was saved",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_products_are_checked_once_for_all_steps(objective, checkpoints, monkeypatch):
    made = []
    original = landscape.objective.self_check
    monkeypatch.setattr("landscape.objective.self_check", lambda *args: made.append(1) or original(*args))
    landscape.top_eigenpairs(objective, checkpoints, k=1)
    assert len(made) == 1
