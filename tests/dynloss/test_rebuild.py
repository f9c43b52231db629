"""From a run file alone comes the loss that the run descended, or one line that says what is missing."""

from importlib.metadata import entry_points

import numpy as np
import pytest
import torch

import dynloss
from landscape import ParamLayout, RunWriter, open_run

DATA, VALIDATION = dynloss.spiral(15, 3, seed=0), dynloss.spiral(9, 3, seed=1)
LOSSES = {
    "static": (dynloss.CrossEntropy(3), lambda step: [1.0, 1.0, 1.0]),
    # A = 4, T = 10: at step 13, in the second period, raw weights are 1, 1 + 3 · 6/10, 1.
    "dynamical": (dynloss.DynamicalCrossEntropy(3, 4, 10), lambda step: [3 / 4.8, 3 * 2.8 / 4.8, 3 / 4.8]),
}


def recorded(path, model=None, loss=None, **options):
    return dynloss.train(
        dynloss.mlp(2, 7, 3, seed=1) if model is None else model,
        dynloss.CrossEntropy(3) if loss is None else loss,
        DATA,
        validation=VALIDATION,
        record=path,
        n_steps=3,
        checkpoint_every=1,
        **options,
    )


def tanh_network(n_hidden=5):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(2, n_hidden), torch.nn.Tanh(), torch.nn.Linear(n_hidden, 3)).double()


def weighted_cross_entropy(model, theta, data, weights):
    """Value and gradient at θ by torch's own cross entropy of the module."""
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    each = torch.nn.functional.cross_entropy(model(data.inputs), data.targets, reduction="none")
    value = (torch.tensor(weights, dtype=torch.float64)[data.targets] * each).mean()
    return value.detach(), torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dataset", ["training", "validation"])
def test_the_objective_is_the_loss_that_was_trained_on_the_data_asked_for(tmp_path, name, dataset):
    loss, weights = LOSSES[name]
    with open_run(recorded(tmp_path / "a.h5", loss=loss)) as run:
        objective = dynloss.objective(run, dataset=dataset)
    theta = torch.from_numpy(np.random.default_rng(0).standard_normal(objective.n_params))
    data = {"training": DATA, "validation": VALIDATION}[dataset]
    value, gradient = weighted_cross_entropy(dynloss.mlp(2, 7, 3), theta, data, weights(13))
    np.testing.assert_allclose(objective.loss(theta, 13), value, rtol=1e-12)
    np.testing.assert_allclose(objective.gradient(theta, 13), gradient, rtol=0, atol=1e-12)


TRIANGLE = dynloss.TriangleSchedule(3, 9, 4)
SCHEDULES = {
    "triangle": TRIANGLE,
    "sine": dynloss.SineSchedule(3, 9, 4),
    "square in random order": dynloss.SquareSchedule(3, 9, 4, order="random", seed=5),
    "static tail": dynloss.StaticTail(TRIANGLE, start=2),
    "decaying amplitude": dynloss.DecayingAmplitude(TRIANGLE, time=3),
}


@pytest.mark.parametrize(
    "loss",
    [
        *(dynloss.SquaredError(3, weighting=weighting) for weighting in ("sample", "component")),
        *(dynloss.DynamicalCrossEntropy(3, schedule=schedule) for schedule in SCHEDULES.values()),
        *(dynloss.DynamicalSquaredError(3, schedule=schedule) for schedule in SCHEDULES.values()),
        *(
            dynloss.DynamicalSquaredError(3, weighting="component", schedule=schedule)
            for schedule in SCHEDULES.values()
        ),
    ],
    ids=lambda loss: f"{loss.name} {getattr(loss, 'weighting', '')} {loss.schedule and loss.schedule.name}",
)
def test_every_loss_and_schedule_is_rebuilt_as_it_was(tmp_path, loss):
    with open_run(recorded(tmp_path / "a.h5", loss=loss, learning_rate=0.2)) as run:
        objective = dynloss.objective(run)
        assert type(objective.loss_fn) is type(loss)
        assert objective.loss_fn.config() == loss.config()
        np.testing.assert_array_equal(run.history.class_weight, [loss.class_weights(step) for step in range(3)])
        losses = objective.losses(run.checkpoints.params.values[:3], [0, 1, 2])
        np.testing.assert_allclose(losses, run.history.loss, rtol=1e-12)
        model = dynloss.mlp(2, 7, 3)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(run.checkpoints.params.values[1]), model.parameters())
        np.testing.assert_allclose(losses[1], loss(model(DATA.inputs), DATA.targets, 1).detach(), rtol=1e-12)


def test_a_loss_with_a_function_as_schedule_is_asked_for(tmp_path):
    def rising(step):
        return 1 + step[..., None] * np.arange(3)

    loss = dynloss.DynamicalCrossEntropy(3, schedule=dynloss.FunctionSchedule(rising, 3))
    with open_run(recorded(tmp_path / "a.h5", loss=loss)) as run:
        with pytest.raises(ValueError, match=r"schedule was a function, which a file cannot hold; .*loss=…"):
            dynloss.objective(run)
        losses = dynloss.objective(run, loss=loss).losses(run.checkpoints.params.values[:3], [0, 1, 2])
        np.testing.assert_allclose(losses, run.history.loss, rtol=1e-12)
        expected = [np.ones(3), np.array([1, 2, 3]) / 2, np.array([1, 3, 5]) / 3]
        np.testing.assert_allclose(run.history.class_weight, expected, rtol=1e-12)


def test_the_last_update_of_the_run_is_that_of_its_objective(tmp_path):
    with open_run(recorded(tmp_path / "a.h5", learning_rate=0.5)) as run:
        objective, params = dynloss.objective(run), run.checkpoints.params.values
        assert objective.kernel == run.checkpoints.attrs["kernel"]
    np.testing.assert_array_equal(params[3], params[2] - 0.5 * objective.gradient(params[2], 2).numpy())


def test_a_float32_run_gives_a_float32_objective(tmp_path):
    with open_run(recorded(tmp_path / "a.h5", dynloss.mlp(2, 7, 3, dtype=torch.float32))) as run:
        objective = dynloss.objective(run)
        assert objective.loss(run.checkpoints.params.values[0]).dtype == torch.float32
        np.testing.assert_allclose(objective.losses(run.checkpoints.params.values[:3], 0), run.history.loss, rtol=1e-6)


def test_a_model_of_ones_own_is_asked_for_and_only_its_shape_is_used(tmp_path):
    with open_run(recorded(tmp_path / "a.h5", tanh_network())) as run:
        with pytest.raises(ValueError, match=r"a\.h5 trained a model of its own; give it: .*model=…"):
            dynloss.objective(run)
        with pytest.raises(
            ValueError, match=r"not that of .*a\.h5: 0\.weight \[5, 2\] stands against 0\.weight \[6, 2\]"
        ):
            dynloss.objective(run, model=tanh_network(6))
        model = tanh_network()
        torch.nn.init.zeros_(model[0].weight)
        objective = dynloss.objective(run, model=model)
        losses = objective.losses(run.checkpoints.params.values[:3], [0, 1, 2])
        np.testing.assert_allclose(losses, run.history.loss, rtol=1e-12)
    assert not model[0].weight.any()


def test_a_network_with_a_layer_replaced_is_not_rebuilt_as_if_it_had_not(tmp_path):
    model = dynloss.mlp(2, 7, 3, seed=1)
    model.activation = torch.nn.Tanh()
    with open_run(recorded(tmp_path / "a.h5", model)) as run:
        with pytest.raises(ValueError, match="trained a model of its own"):
            dynloss.objective(run)
        losses = dynloss.objective(run, model=model).losses(run.checkpoints.params.values[:3], 0)
        np.testing.assert_allclose(losses, run.history.loss, rtol=1e-12)


def squared_outputs(outputs, targets, step):
    return (outputs**2).mean() / (1 + step)


class Doubled(dynloss.CrossEntropy):
    """Twice the cross entropy."""

    def terms(self, outputs, targets):
        return 2 * super().terms(outputs, targets)


@pytest.mark.parametrize("loss", [squared_outputs, Doubled(3)], ids=["function", "subclass"])
def test_a_loss_of_ones_own_is_asked_for(tmp_path, loss):
    with open_run(recorded(tmp_path / "a.h5", loss=loss)) as run:
        with pytest.raises(ValueError, match=r"a\.h5 descended a loss of its own; give it: .*loss=…"):
            dynloss.objective(run)
        objective = dynloss.objective(run, loss=loss)
        losses = objective.losses(run.checkpoints.params.values[:3], [0, 1, 2])
        np.testing.assert_allclose(losses, run.history.loss, rtol=1e-12)


def test_a_data_set_that_the_run_lacks_is_refused_and_those_it_has_are_named(tmp_path):
    with (
        open_run(recorded(tmp_path / "a.h5")) as run,
        pytest.raises(ValueError, match=r"no data set 'test'; it holds training, validation"),
    ):
        dynloss.objective(run, dataset="test")


@pytest.mark.parametrize(
    ("producer", "message"),
    [
        ("torchtrainer", r"recorded by torchtrainer, not by dynloss; build landscape\.Objective"),
        ("", "recorded by an unnamed program, not by dynloss"),
        ("dynloss", "no data set 'training'; it holds none"),
    ],
)
def test_runs_of_other_programs_or_without_data_are_refused(tmp_path, producer, message):
    with RunWriter(
        tmp_path / "a.h5", ParamLayout(("w",), ((2,),)), history=["loss"], producer=producer, config={"loss": {}}
    ) as writer:
        writer.append(0, np.zeros(2), loss=1.0)
    with open_run(tmp_path / "a.h5") as run, pytest.raises(ValueError, match=message):
        dynloss.objective(run)


def test_the_installed_package_offers_its_objective_by_the_producer_that_runs_name(tmp_path):
    (entry,) = entry_points(group="landscape.objectives", name="dynloss")
    assert entry.load() is dynloss.objective
    with open_run(recorded(tmp_path / "a.h5")) as run:
        assert run.producer == entry.name
