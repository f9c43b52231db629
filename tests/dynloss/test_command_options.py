"""The options of python -m dynloss train that choose loss, schedule, optimiser and mini-batches."""

import numpy as np
import pytest

import dynloss
from dynloss.__main__ import main
from landscape import open_run

SMALL = ["--width", "5", "--n-per-class", "8", "--n-steps", "24", "--learning-rate", "0.05", "--amplitude", "6"]
SMALL += ["--period", "8", "--checkpoint-every", "6"]


def command(path, *options):
    return main(["train", str(path), *SMALL, *options])


def triangle(**options):
    return dynloss.TriangleSchedule(3, 6, 8, **options)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ([], dynloss.DynamicalCrossEntropy(3, 6, 8)),
        (["--loss", "cross_entropy"], dynloss.CrossEntropy(3)),
        (["--loss", "squared_error"], dynloss.SquaredError(3)),
        (["--loss", "squared_error", "--weighting", "component"], dynloss.SquaredError(3, weighting="component")),
        (["--loss", "dynamical_squared_error"], dynloss.DynamicalSquaredError(3, 6, 8)),
        (
            ["--loss", "dynamical_squared_error", "--weighting", "component"],
            dynloss.DynamicalSquaredError(3, 6, 8, weighting="component"),
        ),
        (["--schedule", "sine"], dynloss.DynamicalCrossEntropy(3, schedule=dynloss.SineSchedule(3, 6, 8))),
        (
            ["--loss", "dynamical_squared_error", "--schedule", "square"],
            dynloss.DynamicalSquaredError(3, schedule=dynloss.SquareSchedule(3, 6, 8)),
        ),
        (["--order", "random"], dynloss.DynamicalCrossEntropy(3, schedule=triangle(order="random"))),
        (["--static-from", "9"], dynloss.DynamicalCrossEntropy(3, schedule=dynloss.StaticTail(triangle(), 9))),
        (["--static-from", "0"], dynloss.DynamicalCrossEntropy(3, schedule=dynloss.StaticTail(triangle(), 0))),
        (
            ["--schedule", "sine", "--order", "random", "--static-from", "20", "--n-classes", "4"],
            dynloss.DynamicalCrossEntropy(
                4, schedule=dynloss.StaticTail(dynloss.SineSchedule(4, 6, 8, order="random"), 20)
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_loss_weighting_schedule_order_and_static_tail_are_chosen_by_name(tmp_path, options, loss):
    assert command(tmp_path / "a.h5", *options) == 0
    with open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"
        assert run.config["loss"] == loss.config()
        expected = loss.class_weights(np.arange(24))
        np.testing.assert_allclose(run.history.class_weight, expected, rtol=1e-12)
        data = dynloss.spiral(8, loss.n_classes, seed=0)
        model = dynloss.mlp(2, 5, loss.n_classes, seed=0)
        np.testing.assert_allclose(run.history.loss[0], loss(model(data.inputs), data.targets, 0).detach(), rtol=1e-12)


def test_static_from_makes_the_rest_of_the_run_static(tmp_path):
    assert command(tmp_path / "a.h5", "--static-from", "12") == 0
    with open_run(tmp_path / "a.h5") as run:
        weights = run.history.class_weight.values
    raw = np.ones((24, 3))
    raw[:8, 0] = [1, 2.25, 3.5, 4.75, 6, 4.75, 3.5, 2.25]
    raw[8:12, 1] = [1, 2.25, 3.5, 4.75]
    np.testing.assert_allclose(weights, 3 * raw / raw.sum(1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--optimizer", "sgd", "--batch-size", "7"], {"optimizer": "sgd", "batch_size": 7}),
        (["--optimizer", "momentum", "--momentum", "0.5"], {"optimizer": "momentum", "momentum": 0.5}),
        (
            ["--optimizer", "rmsprop", "--alpha", "0.9", "--epsilon", "1e-6"],
            {"optimizer": "rmsprop", "alpha": 0.9, "epsilon": 1e-6},
        ),
        (
            ["--optimizer", "adam", "--beta1", "0.8", "--beta2", "0.95", "--batch-size", "24", "--seed", "3"],
            {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95, "batch_size": 24, "seed": 3},
        ),
    ],
    ids=lambda value: value["optimizer"] if isinstance(value, dict) else "",
)
def test_the_optimiser_its_settings_and_mini_batches_are_those_of_the_options(tmp_path, options, settings):
    assert command(tmp_path / "a.h5", *options) == 0
    expected = dynloss.train(
        dynloss.mlp(2, 5, 3, seed=0),
        dynloss.DynamicalCrossEntropy(3, 6, 8),
        dynloss.spiral(8, 3, seed=0),
        validation=dynloss.spiral(8, 3, seed=1),
        record=tmp_path / "b.h5",
        n_steps=24,
        checkpoint_every=6,
        learning_rate=0.05,
        **settings,
    )
    with open_run(tmp_path / "a.h5") as run, open_run(expected) as expected:
        assert settings.items() <= run.config["training"].items()
        assert run.config == expected.config
        assert run.history.equals(expected.history)
        assert run.checkpoints.identical(expected.checkpoints)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "mse"], "unknown loss 'mse'; known losses: cross_entropy, "),
        (["--loss", "dynamical_mse"], "unknown loss 'dynamical_mse'; known losses: cross_entropy, "),
        (["--loss", "squared_error", "--weighting", "pixel"], "weighting must be"),
        (["--schedule", "sawtooth"], "unknown schedule 'sawtooth'; known schedules: triangle, sine, square"),
        (["--order", "sideways"], "order must be"),
        (["--static-from", "-1"], "start must be a step of at least 0, got -1"),
        (["--optimizer", "sgd"], 'optimizer "sgd" draws mini-batches: give batch_size'),
        (["--batch-size", "5"], 'optimizer "gd" uses all samples at each step'),
        (["--optimizer", "adam", "--batch-size", "25"], "batch_size must be between 1 and 24"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_choices_end_with_status_2_and_one_line(tmp_path, capsys, options, message):
    assert command(tmp_path / "a.h5", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dynloss: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "adam", "--beta1", "1"], "beta1 must be at least 0 and less than 1, got 1.0"),
        (["--optimizer", "sgd", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--optimizer", "lion"], "unknown optimizer 'lion'; known optimizers: gd, sgd, momentum, rmsprop, adam"),
        (["--batch-size", "many"], "--batch-size"),
        (["--static-from", "soon"], "--static-from"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_out_of_range_end_with_status_2_and_no_traceback(tmp_path, capsys, options, message):
    assert command(tmp_path / "a.h5", *options) == 2
    text = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert message in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())
