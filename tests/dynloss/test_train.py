"""What a run records is what its parameters give by numpy and autograd, also after interruption or divergence."""

import dataclasses
import math
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from dynloss.kernels import NetworkObjective
from landscape import motion, open_run

RATE, N_STEPS, WINDOWS = 1.5, 200, [(0, 8), (90, 120)]
EIGENPAIRS_EVERY, CHECKPOINT_EVERY = 15, 20


def descend(path, *, model=None, loss=None, data=None, **options):
    """A run of a small network; `options` go to dynloss.train."""
    return dynloss.train(
        dynloss.mlp(2, 12, 3, seed=2) if model is None else model,
        dynloss.DynamicalCrossEntropy(3, amplitude=2, period=60) if loss is None else loss,
        dynloss.spiral(20, 3, seed=0) if data is None else data,
        record=path,
        **{"learning_rate": RATE, "n_steps": N_STEPS, "checkpoint_every": CHECKPOINT_EVERY} | options,
    )


RECORDING = {
    "validation": dynloss.spiral(20, 3, seed=1),
    "windows": WINDOWS,
    "eigenpairs": 2,
    "eigenpairs_every": EIGENPAIRS_EVERY,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An undisturbed run, its model after training and its parameters before it."""
    model = dynloss.mlp(2, 12, 3, seed=2)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    path = descend(tmp_path_factory.mktemp("runs") / "run.h5", model=model, **RECORDING)
    with open_run(path) as run:
        loaded = SimpleNamespace(
            path=path, model=model, before=before, status=run.status, history=run.history.load(), config=run.config
        )
        loaded.checkpoints, loaded.eigenpairs = run.checkpoints.load(), run.eigenpairs.load()
        loaded.data = {name: samples.load() for name, samples in run.data.items()}
    loaded.loss = dynloss.DynamicalCrossEntropy(3, amplitude=2, period=60)
    return loaded


def outputs_by_numpy(theta, inputs):
    """Of Linear(2, 12) – ReLU – Linear(12, 3), its tensors in the order weight, bias, weight, bias."""
    w, b, u, c = np.split(theta, [24, 36, 72])
    return np.maximum(inputs @ w.reshape(12, 2).T + b, 0) @ u.reshape(3, 12).T + c


def loss_of(theta, step, loss, inputs, targets):
    """The dynamical cross entropy of flat parameters, a torch scalar, by torch's own functions."""
    w, b, u, c = theta.split([24, 12, 36, 3])
    outputs = torch.relu(inputs @ w.reshape(12, 2).T + b) @ u.reshape(3, 12).T + c
    weights = torch.as_tensor(loss.class_weights(step))
    return (weights[targets] * torch.nn.functional.cross_entropy(outputs, targets, reduction="none")).mean()


def test_history_has_a_row_for_each_update_and_checkpoints_stand_where_they_were_asked_for(trained):
    assert trained.status == "complete"
    assert trained.history.step.values.tolist() == list(range(N_STEPS))
    windows = {step for first, stop in WINDOWS for step in range(first, stop)}
    assert trained.checkpoints.step.values.tolist() == sorted({*range(0, 201, CHECKPOINT_EVERY), *windows, N_STEPS})
    assert trained.eigenpairs.step.values.tolist() == sorted({*range(0, N_STEPS, EIGENPAIRS_EVERY), *windows})


def test_the_last_state_is_saved_once_whether_or_not_the_stride_meets_it(tmp_path):
    for n_steps, expected in [(40, [0, 20, 40]), (41, [0, 20, 40, 41]), (1, [0, 1])]:
        with open_run(descend(tmp_path / f"{n_steps}.h5", n_steps=n_steps, windows=[(1000, 2000)])) as run:
            assert run.checkpoints.step.values.tolist() == expected
            assert run.history.sizes["step"] == n_steps


def test_the_first_row_holds_the_parameters_before_any_update_and_the_model_ends_with_the_last(trained):
    np.testing.assert_array_equal(trained.checkpoints.params.sel(step=0), trained.before)
    after = torch.nn.utils.parameters_to_vector(trained.model.parameters()).detach().numpy()
    np.testing.assert_array_equal(trained.checkpoints.params.sel(step=N_STEPS), after)
    assert all(p.requires_grad and p.grad is None for p in trained.model.parameters())


def test_the_update_rule_read_back_from_the_file_holds(trained):
    data = dynloss.spiral(20, 3, seed=0)
    steps = trained.checkpoints.step.values
    consecutive = steps[:-1][np.diff(steps) == 1]
    assert len(consecutive) > 35
    for step in consecutive.tolist():
        now, after = (trained.checkpoints.params.sel(step=s).values for s in (step, step + 1))
        theta = torch.from_numpy(now).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(theta, step, trained.loss, *data), theta)
        np.testing.assert_allclose(after, now - RATE * gradient.numpy(), rtol=0, atol=1e-14)
        np.testing.assert_allclose(trained.history.gradient_norm.sel(step=step), gradient.norm(), rtol=1e-12)


def test_loss_and_accuracies_are_those_of_the_saved_parameters_at_their_step(trained):
    data, validation = dynloss.spiral(20, 3, seed=0), RECORDING["validation"]
    seen = set()
    for step in trained.checkpoints.step.values[:-1].tolist():
        theta, row = trained.checkpoints.params.sel(step=step).values, trained.history.sel(step=step)
        loss = loss_of(torch.from_numpy(theta), step, trained.loss, *data)
        np.testing.assert_allclose(row.loss, loss, rtol=1e-12)
        for name, (inputs, targets) in [("accuracy", data), ("validation_accuracy", validation)]:
            answers = outputs_by_numpy(theta, inputs.numpy()).argmax(1)
            assert row[name] == np.mean(answers == targets.numpy())
        seen.add(float(row.accuracy))
    assert len(seen) > 3


def test_recorded_loss_is_that_of_the_rebuilt_objective(trained):
    with open_run(trained.path) as run:
        objective = dynloss.objective(run)
    rows = trained.checkpoints.isel(step=slice(None, -1))
    losses = objective.losses(rows.params.values, rows.step.values)
    np.testing.assert_allclose(trained.history.loss.sel(step=rows.step), losses, rtol=1e-12)


def test_motion_in_the_history_is_that_of_the_saved_states(trained):
    history, expected = trained.history, motion(trained.checkpoints)
    assert np.isnan(history.update_norm.values[0])
    assert np.isnan(history.update_cosine.values[:2]).all()
    assert np.isfinite(history.update_norm.values[1:]).all()
    assert np.isfinite(history.update_cosine.values[2:]).all()
    for name in ("update_norm", "update_cosine"):
        known = expected[name].dropna("step")
        known = known.sel(step=known.step < N_STEPS)
        assert known.sizes["step"] > 30
        np.testing.assert_allclose(history[name].sel(step=known.step), known, rtol=1e-9)
    moved = np.diff(trained.checkpoints.params.sel(step=[90, 91, 92]), axis=0)
    norms = np.linalg.norm(moved, axis=1)
    np.testing.assert_allclose(history.update_norm.sel(step=[91, 92]), norms, rtol=1e-12)
    np.testing.assert_allclose(history.update_cosine.sel(step=92), moved[0] @ moved[1] / norms.prod(), rtol=1e-12)


def test_class_weights_of_every_step_are_those_of_the_loss(trained):
    assert trained.history.class_weight.dims == ("step", "class")
    expected = [trained.loss.class_weights(step).tolist() for step in range(N_STEPS)]
    np.testing.assert_array_equal(trained.history.class_weight, expected)


def test_recorded_eigenpairs_are_those_of_dense_hessians(trained):
    data = dynloss.spiral(20, 3, seed=0)
    assert trained.eigenpairs.converged.all()
    assert trained.eigenpairs.certified.all()
    np.testing.assert_allclose(trained.eigenpairs.threshold, 2 / RATE)
    for step in trained.eigenpairs.step.values[::3].tolist():
        pairs = trained.eigenpairs.sel(step=step)
        theta = torch.from_numpy(
            trained.checkpoints.params.sel(step=step).values
            if step in trained.checkpoints.step
            else trained_state(step)
        )
        hessian = torch.autograd.functional.hessian(lambda t, s=step: loss_of(t, s, trained.loss, *data), theta).numpy()
        exact = np.linalg.eigvalsh(hessian)[::-1]
        np.testing.assert_allclose(pairs.eigenvalue, exact[:2], rtol=1e-4)
        rest = pairs.eigenvector.values @ hessian - pairs.eigenvalue.values[:, None] * pairs.eigenvector.values
        assert (np.linalg.norm(rest, axis=1) <= 1.01e-4 * pairs.eigenvalue.values).all()
        np.testing.assert_allclose(pairs.eigenvector.values @ pairs.eigenvector.values.T, np.eye(2), atol=1e-9)


def trained_state(step):
    """θ at a step that was not saved, by descent with torch's own gradients."""
    theta = torch.nn.utils.parameters_to_vector(dynloss.mlp(2, 12, 3, seed=2).parameters()).detach()
    for t in range(step):
        leaf = theta.clone().requires_grad_()
        loss = loss_of(leaf, t, dynloss.DynamicalCrossEntropy(3, 2, 60), *dynloss.spiral(20, 3, seed=0))
        theta = theta - RATE * torch.autograd.grad(loss, leaf)[0]
    return theta.numpy()


def test_settings_and_data_are_stored(trained):
    given = {
        "optimizer": "gd",
        "learning_rate": RATE,
        "n_steps": N_STEPS,
        "checkpoint_every": CHECKPOINT_EVERY,
        "eigenpairs": 2,
        "eigenpairs_every": EIGENPAIRS_EVERY,
        "windows": [list(window) for window in WINDOWS],
        "tol": 1e-4,
        "seed": 0,
    }
    assert given.items() <= trained.config["training"].items()
    assert trained.config["training"].keys() == {field.name for field in dataclasses.fields(dynloss.TrainingSettings)}
    attrs = trained.checkpoints.attrs
    assert (attrs["optimizer"], attrs["learning_rate"], attrs["period"]) == ("gd", RATE, 60)
    for name, expected in [("training", dynloss.spiral(20, 3, seed=0)), ("validation", RECORDING["validation"])]:
        np.testing.assert_array_equal(trained.data[name].inputs, expected.inputs)
        np.testing.assert_array_equal(trained.data[name].targets, expected.targets)


def test_other_programs_open_the_file(trained):
    with h5py.File(trained.path) as file:
        assert file["history/loss"].shape == (N_STEPS,)
        np.testing.assert_array_equal(file["checkpoints/params"][0], trained.before)
    with xr.open_dataset(trained.path, engine="h5netcdf", group="history") as history:
        np.testing.assert_array_equal(history.loss, trained.history.loss)
        np.testing.assert_array_equal(history.step, range(N_STEPS))
    with xr.open_datatree(trained.path, engine="h5netcdf") as tree:
        assert {"history", "checkpoints", "eigenpairs", "layout", "data"} <= set(tree.children)
        np.testing.assert_array_equal(tree["checkpoints/params"], trained.checkpoints.params)
        np.testing.assert_array_equal(tree["eigenpairs/eigenvalue"], trained.eigenpairs.eigenvalue)


def test_the_same_call_gives_the_same_bits_and_what_is_recorded_changes_no_parameter(trained, tmp_path):
    with open_run(descend(tmp_path / "bare.h5")) as run:
        assert run.eigenpairs is None
        assert np.isnan(run.history.validation_accuracy).all()
        for name in ("loss", "accuracy", "gradient_norm", "update_cosine"):
            np.testing.assert_array_equal(run.history[name], trained.history[name])
        np.testing.assert_array_equal(run.checkpoints.params, trained.checkpoints.params.sel(step=run.checkpoints.step))


def test_any_model_and_loss_are_trained_by_autograd(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def fading(outputs, targets, step):
        return torch.nn.functional.cross_entropy(outputs, targets) / (1 + step)

    data = dynloss.spiral(20, 3, seed=0)
    inputs, targets = data
    path = descend(tmp_path / "a.h5", model=model, loss=fading, n_steps=12, checkpoint_every=1, eigenpairs=1, tol=1e-6)
    with open_run(path) as run:
        assert "class_weight" not in run.history
        assert run.checkpoints.attrs["kernel"] == "autograd"
        for step in range(12):
            torch.nn.utils.vector_to_parameters(
                torch.from_numpy(run.checkpoints.params.values[step]), model.parameters()
            )
            loss = fading(model(inputs), targets, step)
            np.testing.assert_allclose(run.history.loss.values[step], loss.detach(), rtol=1e-12)
            gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
            update = np.diff(run.checkpoints.params.values[step : step + 2], axis=0)[0]
            np.testing.assert_allclose(update, -RATE * gradient, rtol=0, atol=1e-14)
        assert run.eigenpairs.step.values.tolist() == [0]


def test_frozen_parameters_stay_as_they_are(tmp_path):
    model = dynloss.mlp(2, 8, 3)
    model.hidden.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open_run(descend(tmp_path / "a.h5", model=model, n_steps=20)) as run:
        assert run.checkpoints.sizes["param"] == 16 + 24 + 3
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"hidden.weight", "output.weight", "output.bias"}


def test_a_float32_model_is_trained_and_recorded_in_float32(tmp_path):
    model = dynloss.mlp(2, 8, 3, dtype=torch.float32)
    with open_run(descend(tmp_path / "a.h5", model=model, n_steps=20)) as run:
        assert run.checkpoints.params.dtype == np.float32
        after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        np.testing.assert_array_equal(run.checkpoints.params[-1], after)
    exact = dynloss.mlp(2, 8, 3)
    descend(tmp_path / "b.h5", model=exact, n_steps=20)
    np.testing.assert_allclose(
        after, torch.nn.utils.parameters_to_vector(exact.parameters()).detach(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("n_steps", "checkpoint_every"), [(50, 20), (50, 1), (2, 20)])
def test_a_run_that_diverges_stops_and_keeps_what_it_recorded(tmp_path, n_steps, checkpoint_every):
    model = dynloss.mlp(2, 8, 3)
    options = {"learning_rate": 1e200, "n_steps": n_steps, "checkpoint_every": checkpoint_every}
    with pytest.warns(RuntimeWarning, match=r"not finite at step 1; .*a\.h5\. A learning_rate below 1e\+200 may help"):
        path = descend(tmp_path / "a.h5", model=model, **options)
    with open_run(path) as run:
        assert run.status == "diverged"
        assert run.history.step.values.tolist() == run.checkpoints.step.values.tolist() == [0, 1]
        assert np.isfinite(run.history.loss.values).tolist() == [True, False]
        assert run.history.gradient_norm.values[0] > 0
        np.testing.assert_array_equal(
            run.checkpoints.params[1], torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        )


def test_an_infinite_last_update_is_a_divergence(tmp_path):
    data = dynloss.spiral(20, 3, seed=0)
    data = data._replace(inputs=1e20 * data.inputs)
    with pytest.warns(RuntimeWarning, match="not finite at step 1"):
        path = descend(tmp_path / "a.h5", data=data, learning_rate=1e300, n_steps=1)
    with open_run(path) as run:
        assert run.status == "diverged"
        assert run.history.step.values.tolist() == run.checkpoints.step.values.tolist() == [0]


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("thesis")
    with pytest.raises(FileExistsError, match=r"a\.h5 exists; .*overwrite=True"):
        descend(path)
    assert path.read_text() == "thesis"
    descend(path, n_steps=5, overwrite=True)
    with open_run(path) as run:
        assert run.history.sizes["step"] == 5


def changed_data(**changes):
    return dynloss.spiral(20, 3, seed=0)._replace(**changes)


INPUTS, TARGETS = dynloss.spiral(20, 3, seed=0)
NAN_AT_ONE_PLACE = INPUTS.clone()
NAN_AT_ONE_PLACE[17, 1] = math.nan
SAMPLER = dynloss.OscillatingSampler(TARGETS, 10, dynloss.TriangleSchedule(3, 2, 60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": changed_data(inputs=NAN_AT_ONE_PLACE)}, "data holds NaN or inf in its inputs"),
        ({"validation": changed_data(inputs=INPUTS / 0)}, "validation holds NaN or inf in its inputs"),
        ({"data": changed_data(targets=TARGETS + 1)}, "data has targets from 1 to 3; the model's classes are 0 … 2"),
        ({"data": changed_data(targets=TARGETS - 1)}, "data has targets from -1 to 1"),
        ({"validation": changed_data(targets=TARGETS + 1)}, "validation has targets from 1 to 3"),
        (
            {"data": changed_data(targets=TARGETS.double())},
            r"data needs integer targets of shape \(P,\), got torch.float64",
        ),
        ({"data": changed_data(targets=TARGETS[:, None])}, r"data needs integer targets of shape \(P,\)"),
        ({"data": changed_data(targets=TARGETS[:-1])}, "data needs one target a sample"),
        ({"data": changed_data(inputs=INPUTS[:0], targets=TARGETS[:0])}, "data needs one target a sample"),
        ({"data": changed_data(inputs=INPUTS[:, :1])}, r"data: the model does not take inputs \(60, 1\)"),
        ({"validation": changed_data(inputs=INPUTS[:, 0])}, r"validation: the model does not take inputs \(60,\)"),
        ({"loss": dynloss.CrossEntropy(4)}, r"outputs must have shape \(n_samples, 4\), got \(60, 3\)"),
        ({"optimizer": "adamw"}, "unknown optimizer 'adamw'; known optimizers: gd"),
        ({"learning_rate": 0}, "learning_rate must be a positive number, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"n_steps": 10.0}, r"n_steps must be a whole number, got 10\.0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"eigenpairs": -1}, r"eigenpairs must be 0 \(none\) or the number"),
        ({"eigenpairs": 76}, "eigenpairs must be at most 75, the number of parameters, got 76"),
        ({"eigenpairs": 2, "eigenpairs_every": 10}, "eigenpairs_every must be odd, got 10"),
        ({"eigenpairs": 2, "tol": 0}, "tol must be a positive number, got 0"),
        ({"eigenpairs": 2, "seed": -1}, "seed must be at least 0, got -1"),
        ({"optimizer": "sgd"}, 'optimizer "sgd" draws mini-batches: give batch_size or a sampler, or use "gd"'),
        ({"optimizer": "gd", "batch_size": 10}, 'optimizer "gd" uses all samples at each step; .* it is "sgd"'),
        ({"optimizer": "gd", "sampler": SAMPLER}, 'optimizer "gd" uses all samples at each step; .* it is "sgd"'),
        ({"optimizer": "sgd", "batch_size": 10, "sampler": SAMPLER}, "give either batch_size or a sampler"),
        ({"optimizer": "sgd", "batch_size": 61}, "batch_size must be between 1 and 60, the number of samples, got 61"),
        ({"optimizer": "sgd", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"optimizer": "sgd", "batch_size": 10.0}, r"batch_size must be a whole number, got 10\.0"),
        ({"optimizer": "adam", "batch_size": 2.5}, r"batch_size must be a whole number, got 2\.5"),
        ({"optimizer": "sgd", "sampler": SAMPLER, "data": dynloss.spiral(9, 3)}, "sampler is of 60 samples, .* 27"),
        ({"optimizer": "momentum", "momentum": 1}, "momentum must be at least 0 and less than 1, got 1"),
        ({"optimizer": "momentum", "momentum": -0.1}, r"momentum must be at least 0 and less than 1, got -0\.1"),
        ({"optimizer": "adam", "beta1": 1.0}, r"beta1 must be at least 0 and less than 1, got 1\.0"),
        ({"optimizer": "adam", "beta1": -1e-9}, "beta1 must be at least 0 and less than 1, got -1e-09"),
        ({"optimizer": "adam", "beta2": 1.5}, r"beta2 must be at least 0 and less than 1, got 1\.5"),
        ({"optimizer": "adam", "beta2": math.nan}, "beta2 must be at least 0 and less than 1, got nan"),
        ({"optimizer": "adam", "epsilon": 0}, "epsilon must be a positive number, got 0"),
        ({"optimizer": "rmsprop", "alpha": 1}, "alpha must be at least 0 and less than 1, got 1"),
        ({"optimizer": "rmsprop", "epsilon": math.inf}, "epsilon must be a positive number, got inf"),
        ({"loss": dynloss.DynamicalSquaredError(4, 2, 60)}, r"outputs must have shape \(n_samples, 4\), got \(60, 3\)"),
        ({"windows": [(20, 10)]}, r"a window is a range of steps .* got \(20, 10\)"),
        ({"windows": [(1, 2, 3)]}, "windows must be pairs of steps"),
        ({"windows": [5]}, "windows must be pairs of steps"),
        ({"model": dynloss.mlp(2, 12, 3).requires_grad_(False)}, "no parameter that requires gradients"),
        ({"model": dynloss.mlp(2, 12, 3).append(torch.nn.Dropout())}, "in training mode"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_refused_in_one_line_before_any_file_is_touched(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        descend(tmp_path / "a.h5", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.h5").write_text("thesis")
    with pytest.raises(ValueError, match=message):
        descend(tmp_path / "a.h5", overwrite=True, **options)
    assert (tmp_path / "a.h5").read_text() == "thesis"


def test_a_model_whose_parameters_are_nan_is_refused(tmp_path):
    model = dynloss.mlp(2, 12, 3)
    torch.nn.init.constant_(model.output.bias, math.nan)
    with pytest.raises(ValueError, match="parameters of model hold NaN"):
        descend(tmp_path / "a.h5", model=model)
    assert not list(tmp_path.iterdir())


class Stop(Exception):
    """What a broken disk, a bug or Ctrl-C does to a run."""


def interrupt(path, monkeypatch, at, error=Stop, **options):
    """Train until the gradient of step `at` is asked for."""
    gradient = NetworkObjective.value_and_gradient

    def failing(self, params, step):
        if step == at:
            raise error
        return gradient(self, params, step)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkObjective, "value_and_gradient", failing)
        with pytest.raises(error):
            descend(path, **RECORDING, **options)


def assert_same_run(path, expected):
    with open_run(path) as run:
        assert run.status == "complete"
        assert run.history.identical(expected.history)
        assert run.checkpoints.identical(expected.checkpoints)
        assert run.eigenpairs.identical(expected.eigenpairs)


# A state is saved at steps 0, 64, 128, …; 100 lies in a window, and 110 in a batch of eigenpairs.
@pytest.mark.parametrize("at", [0, 10, 63, 64, 65, 100, 110, 129, 199])
def test_an_interrupted_run_resumes_to_the_same_bits_as_an_undisturbed_one(trained, tmp_path, monkeypatch, at):
    path = tmp_path / "a.h5"
    interrupt(path, monkeypatch, at)
    with open_run(path) as run:
        assert run.status == "interrupted"
        assert run.history.step.values.tolist() == list(range(at))
        assert run.history.equals(trained.history.isel(step=slice(at)))
    model = dynloss.mlp(2, 12, 3, seed=2)
    descend(path, model=model, resume=True, **RECORDING)
    assert_same_run(path, trained)
    for mine, theirs in zip(model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_interrupted_again_and_again_ends_as_an_undisturbed_one(trained, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    interrupt(path, monkeypatch, 70)
    for at in (70, 95, 150, 151):
        interrupt(path, monkeypatch, at, KeyboardInterrupt, resume=True)
    descend(path, resume=True, **RECORDING)
    assert_same_run(path, trained)


def test_an_interruption_among_eigenpairs_leaves_no_gap(trained, tmp_path, monkeypatch):
    path, calls, products = tmp_path / "a.h5", [], NetworkObjective.linearize

    def failing(self, params, step):
        calls.append(step)
        if len(calls) == 9:
            raise Stop
        return products(self, params, step)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkObjective, "linearize", failing)
        with pytest.raises(Stop):
            descend(path, **RECORDING)
    with open_run(path) as run:
        assert 0 < run.eigenpairs.sizes["step"] < trained.eigenpairs.sizes["step"]
    descend(path, resume=True, **RECORDING)
    assert_same_run(path, trained)


def test_resuming_begins_a_run_where_there_is_none_and_refuses_a_finished_one(trained, tmp_path):
    path = descend(tmp_path / "a.h5", resume=True, **RECORDING)
    assert_same_run(path, trained)
    with pytest.raises(ValueError, match="is complete; there is nothing to resume"):
        descend(path, resume=True, **RECORDING)


def with_schedule(schedule):
    return dynloss.DynamicalCrossEntropy(3, schedule=schedule)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The bytes of a run interrupted at step 100."""
    path = tmp_path_factory.mktemp("unfinished") / "a.h5"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(path, monkeypatch, 100)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"n_steps": 300}, "its n_steps is 200, not 300"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"learning_rate": 1.0}, r"its learning_rate is 1\.5, not 1\.0"),
        ({"loss": dynloss.DynamicalCrossEntropy(3, 30, 60)}, "its amplitude is 2, not 30"),
        ({"loss": dynloss.CrossEntropy(3)}, "its name is dynamical_cross_entropy, not cross_entropy"),
        ({"loss": dynloss.DynamicalCrossEntropy(3, 2, 61)}, "its period is 60, not 61"),
        ({"loss": with_schedule(dynloss.SineSchedule(3, 2, 60))}, "its name is triangle, not sine"),
        ({"loss": with_schedule(dynloss.TriangleSchedule(3, 2, 60, order="random"))}, "its order is cyclic, not ran"),
        ({"loss": with_schedule(dynloss.StaticTail(dynloss.TriangleSchedule(3, 2, 60), 150))}, "its start is None"),
        ({"loss": dynloss.DynamicalSquaredError(3, 2, 60)}, "its weighting is None, not sample"),
        ({"optimizer": "momentum"}, "its optimizer is gd, not momentum"),
        ({"optimizer": "adam", "batch_size": 9}, "its batch_size is None, not 9"),
        ({"model": dynloss.mlp(2, 13, 3, seed=2)}, "its width is 12, not 13"),
        ({"model": dynloss.mlp(2, 12, 3, seed=3)}, "it began with other parameters"),
        ({"data": dynloss.spiral(20, 3, seed=5)}, "its training data are others"),
        ({"validation": None}, "its validation data are others"),
        ({"validation": dynloss.spiral(20, 3, seed=5)}, "its validation data are others"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_the_same_run_is_resumed_and_another_leaves_the_file_as_it_is(
    trained, unfinished, tmp_path, change, message
):
    path = tmp_path / "a.h5"
    path.write_bytes(unfinished)
    if message is None:
        descend(path, resume=True, **RECORDING)
        assert_same_run(path, trained)
    else:
        with pytest.raises(ValueError, match=rf"a\.h5 holds another run, .*{message}"):
            descend(path, resume=True, **RECORDING | change)
        assert path.read_bytes() == unfinished
