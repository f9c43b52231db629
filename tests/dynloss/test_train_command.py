"""python -m dynloss train: what it records, what it says, and its exit status."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest

import dynloss
from dynloss.__main__ import main
from dynloss.kernels import NetworkObjective
from dynloss.settings import TrainingSettings
from landscape import open_run

SMALL = ["--width", "8", "--n-per-class", "10", "--n-steps", "30"]


def train(path, *options):
    return main(["train", str(path), *SMALL, *options])


def test_the_command_records_the_run_that_its_options_describe(tmp_path):
    options = ["--period", "20", "--amplitude", "5", "--model-seed", "3", "--data-seed", "7", "--learning-rate", "0.5"]
    options += ["--checkpoint-every", "10", "--eigenpairs", "1", "--eigenpairs-every", "15", "--windows", "3", "6"]
    command = [sys.executable, "-W", "error", "-m", "dynloss", "train", "a.h5", *SMALL, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.h5: complete" in done.stdout
    assert "python -m landscape inspect a.h5" in done.stdout
    expected = dynloss.train(
        dynloss.mlp(2, 8, 3, seed=3),
        dynloss.DynamicalCrossEntropy(3, 5, 20),
        dynloss.spiral(10, 3, seed=7),
        validation=dynloss.spiral(10, 3, seed=8),
        record=tmp_path / "b.h5",
        learning_rate=0.5,
        n_steps=30,
        checkpoint_every=10,
        eigenpairs=1,
        eigenpairs_every=15,
        windows=[(3, 6)],
    )
    with open_run(tmp_path / "a.h5") as run, open_run(expected) as expected:
        assert run.config == expected.config
        assert run.eigenpairs.step.values.tolist() == [0, 3, 4, 5, 15]
        np.testing.assert_allclose(run.history.loss, expected.history.loss, rtol=1e-9)
        np.testing.assert_allclose(run.history.validation_accuracy, expected.history.validation_accuracy)
        for name, samples in expected.data.items():
            assert run.data[name].identical(samples)


def test_static_and_dynamical_losses_are_chosen_by_name(tmp_path):
    assert train(tmp_path / "a.h5", "--loss", "cross_entropy") == 0
    assert train(tmp_path / "b.h5", "--period", "10", "--amplitude", "3") == 0
    with open_run(tmp_path / "a.h5") as static, open_run(tmp_path / "b.h5") as dynamical:
        assert (static.history.class_weight == 1).all()
        np.testing.assert_allclose(dynamical.history.class_weight[5], [9 / 5, 3 / 5, 3 / 5])


def test_help_names_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainingSettings):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--loss", "crossentropy"],
            "unknown loss 'crossentropy'; known losses: cross_entropy, dynamical_cross_entropy",
        ),
        (["--amplitude", "0.5"], "amplitude must be a finite number of at least 1"),
        (["--period", "1"], "period must be at least 2 steps, got 1"),
        (["--width", "0"], "width"),
        (["--n-per-class", "0"], "n_per_class"),
        (["--eigenpairs", "52"], "eigenpairs must be at most 51, the number of parameters, got 52"),
    ],
)
def test_bad_settings_end_with_status_2_and_one_line(tmp_path, capsys, options, message):
    assert train(tmp_path / "a.h5", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dynloss: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-steps", "many"], "--n-steps"),
        (["--n-steps", "0"], "n_steps must be at least 1, got 0"),
        (["--eigenpairs", "2", "--eigenpairs-every", "4"], "eigenpairs_every must be odd, got 4"),
        (["--optimizer", "adamw"], "unknown optimizer 'adamw'; known optimizers: gd"),
        (["--windows", "9", "5"], "0 ≤ first < stop, got (9, 5)"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_arguments_that_do_not_fit_end_with_status_2_and_no_traceback(tmp_path, capsys, options, message):
    assert train(tmp_path / "a.h5", *options) == 2
    out, err = capsys.readouterr()
    text = " ".join((out + err).replace("│", " ").split())
    assert message in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["fit"], ["train"]])
def test_a_missing_or_unknown_command_or_file_ends_with_status_2(arguments, capsys):
    assert main(arguments) == 2
    text = "".join(capsys.readouterr())
    assert "train" in text
    assert "Traceback" not in text


def test_a_folder_that_does_not_exist_is_named(tmp_path, capsys):
    assert train(tmp_path / "runs" / "a.h5") == 2
    assert f"the folder {tmp_path / 'runs'} does not exist; create it first" in capsys.readouterr().err


def test_an_existing_file_is_kept_unless_overwriting_is_asked_for(tmp_path, capsys):
    (tmp_path / "a.h5").write_text("thesis")
    assert train(tmp_path / "a.h5") == 2
    assert "a.h5 exists; --overwrite replaces it, --resume goes on with it" in capsys.readouterr().err
    assert (tmp_path / "a.h5").read_text() == "thesis"
    assert train(tmp_path / "a.h5", "--resume") == 2  # it is no run
    assert (tmp_path / "a.h5").read_text() == "thesis"
    assert train(tmp_path / "a.h5", "--overwrite") == 0
    with open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"


def test_a_run_that_diverges_ends_with_status_1_and_says_where(tmp_path, capsys):
    assert train(tmp_path / "a.h5", "--learning-rate", "1e200") == 1
    out, err = capsys.readouterr()
    assert "a.h5: diverged" in out
    assert "the loss is not finite at step 1" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_status_and_resume_goes_on(tmp_path, capsys, monkeypatch, number, status):
    gradient = NetworkObjective.value_and_gradient

    def interrupted(self, params, step):
        if step == 20:
            signal.raise_signal(number)
        return gradient(self, params, step)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkObjective, "value_and_gradient", interrupted)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
        try:
            assert train(tmp_path / "a.h5") == status
        finally:
            signal.signal(signal.SIGINT, before)
    assert "a.h5 goes on with --resume" in capsys.readouterr().err
    with open_run(tmp_path / "a.h5") as run:
        assert (run.status, run.history.sizes["step"]) == ("interrupted", 20)
    assert train(tmp_path / "a.h5", "--resume", "--model-seed", "5") == 2
    assert "it began with other parameters" in capsys.readouterr().err
    assert train(tmp_path / "a.h5", "--resume") == 0
    assert train(tmp_path / "b.h5") == 0
    with open_run(tmp_path / "a.h5") as run, open_run(tmp_path / "b.h5") as undisturbed:
        assert run.history.identical(undisturbed.history)
        assert run.checkpoints.identical(undisturbed.checkpoints)


def test_a_full_disk_ends_with_status_2_and_one_line_and_resume_goes_on(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        assert train(tmp_path / "a.h5", "--n-steps", "3000", "--checkpoint-every", "1") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"dynloss: cannot write to {tmp_path / 'a.h5'}: File too large; what was committed is safe")
    with open_run(tmp_path / "a.h5") as run:
        assert 0 < run.history.sizes["step"] < 3000
    assert train(tmp_path / "a.h5", "--n-steps", "3000", "--checkpoint-every", "1", "--resume") == 0
    assert train(tmp_path / "b.h5", "--n-steps", "3000", "--checkpoint-every", "1") == 0
    with open_run(tmp_path / "a.h5") as run, open_run(tmp_path / "b.h5") as undisturbed:
        assert run.history.identical(undisturbed.history)
        assert run.checkpoints.identical(undisturbed.checkpoints)
