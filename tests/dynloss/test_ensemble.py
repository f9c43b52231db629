"""Members of an ensemble are trained as `dynloss.train` trains each of them alone, and none disturbs another."""

import numpy as np
import pytest
import torch

import dynloss
from landscape import Objective, find_onsets, gradient_decomposition, open_run, top_eigenpairs

DATA, VALIDATION = (dynloss.spiral(20, 3, seed=seed) for seed in range(2))
N_STEPS = 300
RATES = [1.0, 0.5, 1.0, 2.0]
KINDS = {
    "cross entropy": dynloss.DynamicalCrossEntropy,
    "by sample": lambda *args: dynloss.DynamicalSquaredError(*args, weighting="sample"),
    "by component": lambda *args: dynloss.DynamicalSquaredError(*args, weighting="component"),
}


def models(n=4, dtype=None):
    made = [dynloss.mlp(2, width=12, n_classes=3, seed=seed) for seed in range(n)]
    return made if dtype is None else [model.to(dtype) for model in made]


def losses(kind="cross entropy"):
    scale = 1 if kind == "cross entropy" else 0.2
    return [KINDS[kind](3, 1 + scale * height, 40 + i) for i, height in enumerate((0, 9, 29, 69))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_member_is_trained_as_alone(kind, n_threads, dtype, tmp_path):
    rates = RATES if kind == "cross entropy" else [0.1 * rate for rate in RATES]
    options = {"n_steps": N_STEPS, "checkpoint_every": 70, "validation": VALIDATION}
    trained = dynloss.train_ensemble(
        models(4, dtype), losses(kind), DATA, learning_rate=rates, n_threads=n_threads, **options
    )
    assert trained.attrs["kernel"] == "closed form, numba"
    for i, (model, loss, rate) in enumerate(zip(models(4, dtype), losses(kind), rates, strict=True)):
        path = dynloss.train(model, loss, DATA, learning_rate=rate, record=tmp_path / f"{i}.h5", **options)
        history, checkpoints = dynloss.member(trained, i)
        with open_run(path) as run:
            np.testing.assert_array_equal(checkpoints.params, run.checkpoints.params)
            np.testing.assert_array_equal(checkpoints.step, run.checkpoints.step)
            for name in ("loss", "accuracy", "validation_accuracy"):
                np.testing.assert_array_equal(history[name], run.history[name])
            for name in ("gradient_norm", "update_norm", "update_cosine"):
                np.testing.assert_allclose(history[name], run.history[name], rtol=1e-5, atol=1e-6)
            for name in ("optimizer", "learning_rate", "amplitude", "period"):
                assert history.attrs[name] == checkpoints.attrs[name] == run.checkpoints.attrs[name]


@pytest.mark.parametrize("without_numba", [True, False])
def test_steps_are_those_of_autograd(without_numba, monkeypatch):
    if without_numba:
        monkeypatch.setattr("dynloss.kernels.find_spec", lambda name: None)
    trained = dynloss.train_ensemble(models(2), losses()[2:], DATA, learning_rate=[1.0, 2.0], n_steps=3)
    assert ("numba" in trained.attrs["kernel"]) != without_numba
    for i, (model, loss, rate) in enumerate(zip(models(2), losses()[2:], [1.0, 2.0], strict=True)):
        for step in range(3):
            value = loss(model(DATA.inputs), DATA.targets, step)
            np.testing.assert_allclose(trained.loss[i, step], value.item(), rtol=1e-12)
            gradient = torch.autograd.grad(value, list(model.parameters()))
            norm = torch.cat([part.flatten() for part in gradient]).norm()
            np.testing.assert_allclose(trained.gradient_norm[i, step], norm, rtol=1e-12)
            with torch.no_grad():
                for parameter, part in zip(model.parameters(), gradient, strict=True):
                    parameter -= rate * part
        end = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        np.testing.assert_allclose(trained.params[i, -1], end, rtol=1e-11, atol=1e-13)


def test_any_model_whose_loss_has_class_terms(tmp_path):
    def deep():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)]
        return torch.nn.Sequential(*layers).double()

    trained = dynloss.train_ensemble(deep(), losses()[:2], DATA, n_steps=40, learning_rate=0.5)
    for i, loss in enumerate(losses()[:2]):
        path = dynloss.train(deep(), loss, DATA, record=tmp_path / f"{i}.h5", n_steps=40, learning_rate=0.5)
        with open_run(path) as run:
            np.testing.assert_allclose(trained.loss[i], run.history.loss, rtol=1e-10)


def test_a_member_that_diverges_stops_and_the_others_go_on():
    alone = dynloss.train_ensemble(models(3), losses("by sample")[0], DATA, n_steps=200, learning_rate=0.1)
    rates = [0.1, 50.0, 0.1]
    with pytest.warns(RuntimeWarning, match=r"1 of 3 members diverged \(1\)"):
        trained = dynloss.train_ensemble(
            models(3), losses("by sample")[0], DATA, n_steps=200, learning_rate=rates, checkpoint_every=100
        )
    assert trained.status.values.tolist() == ["complete", "diverged", "complete"]
    last = int(trained.last_step[1])
    assert 0 < last < 200
    assert not np.isfinite(trained.loss[1, last])
    assert np.isfinite(trained.loss[1, :last]).all()
    assert trained.loss[1, last + 1 :].isnull().all()
    assert trained.params[1, -1].isnull().all()
    for i in (0, 2):
        np.testing.assert_array_equal(trained.loss[i], alone.loss[i])
        np.testing.assert_array_equal(trained.params[i, -1], alone.params[i, -1])
    history, checkpoints = dynloss.member(trained, 1)
    assert history.step[-1] == last
    assert checkpoints.step.max() <= last


@pytest.mark.filterwarnings("ignore:1 of 3 members diverged")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("history_every", [3, 50, 1000])
def test_steps_between_rows_are_the_same_to_the_last_bit(history_every, dtype):
    several = [model.to(dtype) for model in models(3)]
    data = (DATA.inputs.to(dtype), DATA.targets)
    options = {"n_steps": 400, "learning_rate": [0.1, 30.0, 0.2], "checkpoint_every": 170}
    dense = dynloss.train_ensemble(several, losses("by sample")[0], data, history_every=1, **options)
    thin = dynloss.train_ensemble(several, losses("by sample")[0], data, history_every=history_every, **options)
    assert dense.status.values.tolist() == ["complete", "diverged", "complete"]
    assert 0 < dense.last_step[1] < 400
    for name in ("params", "status", "last_step"):
        np.testing.assert_array_equal(thin[name], dense[name])
    for name in ("loss", "update_norm", "update_cosine"):
        np.testing.assert_array_equal(thin[name], dense[name].sel(step=thin.step))


def test_all_members_may_diverge():
    with pytest.warns(RuntimeWarning, match="2 of 2 members diverged"):
        trained = dynloss.train_ensemble(
            models(2), dynloss.SquaredError(3), DATA, n_steps=1000, learning_rate=100.0, n_threads=1
        )
    assert (trained.last_step < 1000).all()
    assert trained.amplitude.isnull().all()


def test_members_have_data_of_their_own_and_are_grouped_by_it():
    several = [DATA, VALIDATION, DATA]
    trained = dynloss.train_ensemble(models(3), dynloss.CrossEntropy(3), several, n_steps=50)
    for i, data in enumerate(several):
        alone = dynloss.train_ensemble(models(3)[i], dynloss.CrossEntropy(3), data, n_steps=50)
        np.testing.assert_array_equal(trained.loss[i], alone.loss[0])
    assert not np.array_equal(trained.loss[0], trained.loss[1])


def test_a_thinned_history_holds_every_so_many_rows_and_the_steps_are_the_same():
    every = dynloss.train_ensemble(models(2), losses()[3], DATA, n_steps=100)
    thin = dynloss.train_ensemble(models(2), losses()[3], DATA, n_steps=100, history_every=7)
    assert thin.step.values.tolist() == list(range(0, 100, 7))
    for name in ("loss", "accuracy", "gradient_norm", "update_norm", "update_cosine"):
        np.testing.assert_array_equal(thin[name], every[name].sel(step=thin.step))
    assert every.checkpoint.values.tolist() == [0, 100]
    np.testing.assert_array_equal(thin.params, every.params)
    assert every.validation_accuracy.isnull().all()
    motion = ["update_cosine", "update_norm"]
    some = dynloss.train_ensemble(models(2), losses()[3], DATA, n_steps=100, scalars=motion)
    assert sorted(some.data_vars.keys() - {"params", "status", "last_step"}) == motion
    assert all(some[name].identical(every[name]) for name in motion)


def test_a_member_is_analysed_as_a_run_is():
    loss = losses()[3]
    trained = dynloss.train_ensemble(models(2), loss, DATA, n_steps=60, checkpoint_every=20, learning_rate=0.7)
    history, checkpoints = dynloss.member(trained, 1)
    objective = Objective(models(2)[1], loss, *DATA)
    eigs = top_eigenpairs(objective, checkpoints, k=1)
    np.testing.assert_allclose(eigs.threshold, 2 / 0.7)
    grads = gradient_decomposition(objective, checkpoints, eigs)
    np.testing.assert_allclose(grads.gradient_norm[:-1], history.gradient_norm.sel(step=grads.step[:-1]), rtol=1e-9)
    assert find_onsets(history).attrs["period"] == loss.period


def test_models_and_losses_stay_as_they_were():
    made = models(2)
    before = [torch.nn.utils.parameters_to_vector(model.parameters()).clone() for model in made]
    dynloss.train_ensemble(made, losses()[3], DATA, n_steps=5)
    for model, vector in zip(made, before, strict=True):
        assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), vector)


def test_an_error_in_one_thread_ends_all(monkeypatch):
    class Failing(dynloss.DynamicalCrossEntropy):
        def class_weights(self, step):
            if np.ndim(step) and step[0] > 0:
                raise RuntimeError("no weights here")
            return super().class_weights(step)

    with pytest.raises(RuntimeError, match="no weights here"):
        dynloss.train_ensemble(models(2), Failing(3, 10, 50), DATA, n_steps=10**9, n_threads=2, history_every=10**6)


WRONG = {
    "n_steps must be a whole number": {"n_steps": 0},
    "history_every must be": {"history_every": 0},
    "checkpoint_every must be": {"checkpoint_every": 1.5},
    "scalars must be some of loss": {"scalars": ["lost"]},
    "n_threads must be": {"n_threads": 0},
    "learning_rate must be positive": {"learning_rate": [1.0, -1.0]},
    "got 2 models, 1 losses, 1 data, 3 learning_rate": {"learning_rate": [1.0] * 3},
    "of one architecture": {"models": [dynloss.mlp(2, 5, 3), dynloss.mlp(2, 6, 3)]},
    "of one kind": {"losses": [dynloss.CrossEntropy(3), dynloss.SquaredError(3)]},
    "with class terms": {"losses": lambda outputs, targets, step: outputs.sum()},
    "data holds NaN": {"data": (torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64))},
    "hold NaN or inf": {"models": [dynloss.mlp(2, 5, 3), dynloss.mlp(2, 5, 3)]},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_input_is_one_clear_error(message):
    options = {"models": models(2), "losses": losses()[0], "data": DATA, "n_steps": 5} | WRONG[message]
    if message == "hold NaN or inf":
        with torch.no_grad():
            next(options["models"][1].parameters())[0] = torch.nan
    with pytest.raises(ValueError, match=message):
        dynloss.train_ensemble(**options)
