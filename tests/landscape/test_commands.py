"""The analyses on the command line: each writes what its function returns, and bad input is one line."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import dynloss
import landscape
from landscape.__main__ import main
from landscape.analysis import OPTIONS
from landscape.analysis_commands import ANALYSES
from landscape.analysis_inputs import Steps


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of 120 steps: a checkpoint every 10, eigenpairs every 15, both at every step from 60 up to 69."""
    path = tmp_path_factory.mktemp("commands") / "run.h5"
    loss, settings = dynloss.DynamicalCrossEntropy(3, amplitude=20, period=60), {"n_steps": 120, "learning_rate": 0.5}
    settings |= {"checkpoint_every": 10, "eigenpairs": 2, "eigenpairs_every": 15, "windows": [(60, 70)]}
    dynloss.train(dynloss.mlp(2, 6, 3, seed=0), loss, dynloss.spiral(10, 3, seed=0), record=path, **settings)
    return path


@pytest.fixture
def run_file(recorded, tmp_path):
    return shutil.copy(recorded, tmp_path / "run.h5")


@pytest.fixture
def opened(recorded):
    with landscape.open_run(recorded) as run:
        yield run, dynloss.objective(run)


def result_of(capsys, *arguments):
    """The Dataset that a command wrote, where it said that it did, and what it printed."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (line,) = [line for line in captured.out.splitlines() if line.startswith("written to ")]
    return landscape.load_dataset(line.removeprefix("written to ").split(";")[0]), captured.out


def fails(capsys, *arguments):
    """The one line that a command answers, with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("landscape: ")
    return captured.err


def test_eigenpairs_are_those_of_the_function_and_lie_beside_the_run(run_file, opened, capsys):
    run, objective = opened
    found, text = result_of(capsys, "eigenpairs", run_file, "--steps", "0:120:30", "--k", 3, "--tol", 1e-6)
    expected = landscape.top_eigenpairs(objective, run.checkpoints.sel(step=range(0, 121, 30)), k=3, tol=1e-6)
    np.testing.assert_allclose(found.eigenvalue, expected.eigenvalue, rtol=1e-9)
    assert found.step.values.tolist() == [0, 30, 60, 90, 120]
    assert sorted(path.name for path in run_file.parent.iterdir()) == ["run.eigenpairs.h5", "run.h5"]
    assert "5 of 5 steps certified" in text
    assert f"{float(found.eigenvalue[:, 0].max()):.4g}" in text


def test_a_result_is_replaced_only_when_asked_and_a_file_that_is_read_never(run_file, tmp_path, capsys):
    first, _ = result_of(capsys, "eigenpairs", run_file, "--steps", "0")
    error = fails(capsys, "eigenpairs", run_file, "--steps", "10")
    assert "run.eigenpairs.h5 exists; --overwrite replaces it" in error
    xr.testing.assert_identical(landscape.load_dataset(tmp_path / "run.eigenpairs.h5"), first)
    second, _ = result_of(capsys, "eigenpairs", run_file, "--steps", "10", "--overwrite")
    assert second.step.values.tolist() == [10]
    shutil.copy(run_file, tmp_path / "other.h5")
    for out, message in (("run.h5", "is read by this command"), ("other.h5", "is a run file, which is never replaced")):
        before = (tmp_path / out).read_bytes()
        assert message in fails(capsys, "eigenpairs", run_file, "--out", tmp_path / out, "--overwrite")
        assert (tmp_path / out).read_bytes() == before
    eigs = tmp_path / "run.eigenpairs.h5"
    assert "is read by" in fails(capsys, "gradient", run_file, "--eigs", eigs, "--out", eigs, "--overwrite")


def test_eigenpairs_recorded_in_the_run_are_used_and_computed_only_where_they_are_missing(run_file, opened, capsys):
    run, objective = opened
    found, text = result_of(capsys, "gradient", run_file)
    expected = landscape.gradient_decomposition(objective, run.checkpoints, run.eigenpairs)
    xr.testing.assert_allclose(found, expected)
    assert "eigenpairs recorded in the run" in text
    assert found.attrs["eigenpairs"] == "recorded in the run"
    found, text = result_of(capsys, "gradient", run_file, "--steps", "10,20", "--out", run_file.with_name("b.h5"))
    assert "eigenpairs computed, k = 2" in text
    eigs = landscape.top_eigenpairs(objective, run.checkpoints.sel(step=[10, 20]), k=2)
    expected = landscape.gradient_decomposition(objective, run.checkpoints, eigs)
    np.testing.assert_allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-12)
    np.testing.assert_allclose(abs(found.component), abs(expected.component), atol=1e-6)
    found, text = result_of(capsys, "gradient", run_file, "--steps", "0", "--k", 3, "--out", run_file.with_name("c.h5"))
    assert "eigenpairs computed, k = 3" in text
    assert found.sizes["mode"] == 3


def test_updates_are_decomposed_on_eigenpairs_of_a_file(run_file, opened, capsys):
    run = opened[0]
    eigs, _ = result_of(capsys, "eigenpairs", run_file, "--steps", "60:69", "--k", 3)
    eigs_file = run_file.with_name("run.eigenpairs.h5")
    found, text = result_of(capsys, "gradient", run_file, "--vector", "update", "--eigs", eigs_file, "--steps", "60:64",
                            "--k", 2)  # fmt: skip
    assert f"eigenpairs in {eigs_file}" in text
    assert found.step.values.tolist() == [60, 61, 62, 63, 64]
    assert np.isfinite(found.update_norm).values.tolist() == [False, True, True, True, True]  # 59 was not saved
    path = run.checkpoints.params.values[run.checkpoints.step.values.searchsorted([62, 63])]
    update, vectors = path[1] - path[0], eigs.eigenvector.sel(step=63)[:2].values
    np.testing.assert_allclose(found.component.sel(step=63), vectors @ update, rtol=1e-9)
    assert "holds 3 modes, not 4" in fails(capsys, "gradient", run_file, "--eigs", eigs_file, "--k", 4,
                                           "--out", run_file.with_name("x.h5"))  # fmt: skip


def test_valley_widths(run_file, opened, capsys):
    run, objective = opened
    found, text = result_of(
        capsys, "valley", run_file, "--steps", "0,60", "--rise", "0.01,0.2", "--modes", "1,0", "--half-width", 3
    )
    eigs = run.eigenpairs.sel(step=[0, 60], mode=[1, 0])
    expected = landscape.valley_width(objective, run.checkpoints, eigs, [0.01, 0.2], half_width=3.0)
    xr.testing.assert_allclose(found, expected)
    assert f"v2 at a rise of 0.01: {float(found.width[:, 0, 0].min()):.4g}" in text


def test_bifurcations_of_what_a_run_recorded_and_of_a_signal_with_an_onset(run_file, opened, tmp_path, capsys):
    found, text = result_of(capsys, "bifurcation", run_file, "--window", 40, "--signal", "gradient_norm")
    history = opened[0].history
    expected = landscape.bifurcation_diagram(history.gradient_norm, 40)
    np.testing.assert_array_equal(found.orbit_period, expected.orbit_period)
    assert "onsets at steps: none" in text
    step = np.arange(300)
    sign = np.where(step < 200, 1.0, (-1.0) ** step)
    table = xr.Dataset(
        {
            "loss": ("step", np.where(step < 200, 2.0 - step / 200, 1 + 0.1 * sign)),
            "update_norm": ("step", np.ones(300)),
            "update_cosine": ("step", np.where(step < 200, 1.0, -1.0)),
        },
        {"step": step},
        {"period": 1000},
    )
    landscape.save_dataset(table, tmp_path / "history.h5")
    found, text = result_of(capsys, "bifurcation", tmp_path / "history.h5")
    assert found.onset_step.values.tolist() == [199]
    np.testing.assert_allclose(found.onset_phase, 0.199)
    assert found.orbit_period.values[-1] == 2
    assert "2 (" in text
    assert "onsets at steps: 199" in text
    found, _ = result_of(capsys, "bifurcation", tmp_path / "history.h5", "--steps", "0:150", "--overwrite")
    assert found.step.values[-1] == 150
    assert found.sizes["onset"] == 0


def test_density(run_file, opened, capsys):
    run, objective = opened
    found, text = result_of(
        capsys, "density", run_file, "--steps", "0,120", "--n-vectors", 3, "--n-lanczos", 10, "--seed", 5
    )
    expected = landscape.spectral_density(
        objective, run.checkpoints.sel(step=[0, 120]), n_vectors=3, n_lanczos=10, seed=5
    )
    np.testing.assert_allclose(found.density, expected.density, rtol=1e-6)
    assert "Ritz values" in text
    assert "missing" not in text


def test_slices_along_eigenvectors_random_directions_and_principal_axes(run_file, opened, capsys):
    run, objective = opened
    plane, text = result_of(capsys, "slice", run_file, "--step", 60, "--points", 5, "--half-width", 0.5, "--terms")
    assert "eigenpairs recorded in the run" in text
    assert "lowest at alpha" in text
    checkpoint, eigs = run.checkpoints.sel(step=60), run.eigenpairs.sel(step=60)
    expected = landscape.plane_slice(objective, checkpoint, eigs, half_width=0.5, n_points=5, terms=True)
    np.testing.assert_allclose(plane.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(plane.loss[2, 2], run.history.loss.sel(step=60), rtol=1e-12)
    assert "term_loss" in plane
    line, _ = result_of(capsys, "slice", run_file, "--step", 60, "--points", 5, "--half-width", 0.5, "--line",
                        "--modes", 1, "--quantities", "accuracy", "--out", run_file.with_name("line.h5"))  # fmt: skip
    np.testing.assert_allclose(line.loss, expected.loss[2], rtol=1e-12)
    assert line.accuracy.dims == ("alpha",)
    pca, _ = result_of(capsys, "slice", run_file, "--directions", "pca", "--points", 3, "--at", "0:60:30", "--out",
                       run_file.with_name("pca.h5"))  # fmt: skip
    assert pca.loss.sizes == {"step": 3, "alpha": 3, "beta": 3}
    np.testing.assert_allclose(pca.direction, landscape.pca_directions(run.checkpoints).direction, atol=1e-9)
    drawn, _ = result_of(capsys, "slice", run_file, "--directions", "random", "--normalisation", "layer", "--seed", 4,
                         "--points", 3, "--out", run_file.with_name("random.h5"))  # fmt: skip
    last = run.checkpoints.isel(step=-1)
    random = landscape.random_directions(last, normalisation="layer", seed=4)
    np.testing.assert_allclose(drawn.center, last.params)
    np.testing.assert_allclose(drawn.direction[0] * random.length.values[0], random.direction[0])


def test_attractors_at_the_phases_of_a_period_or_at_steps_named(run_file, opened, capsys):
    run, objective = opened
    short = ["--n-transient", 5, "--n-keep", 34]
    found, text = result_of(capsys, "attractor", run_file, "--step", 60, "--at", "60:80:10", *short)
    eigs = run.eigenpairs.sel(step=60)
    expected = landscape.attractor_diagram(
        objective, run.checkpoints.sel(step=60), steps=[60, 70, 80], eigs=eigs, n_transient=5, n_keep=34
    )
    np.testing.assert_allclose(found.projection, expected.projection, rtol=1e-9, atol=1e-9)
    assert found.control.values.tolist() == [60, 70, 80]
    assert "orbit periods, and how often: " in text
    found, _ = result_of(capsys, "attractor", run_file, "--step", 60, *short, "--overwrite")
    assert found.control.values.tolist() == list(range(60, 121))  # the period that the checkpoint is in


def test_exponents_along_a_replay_that_ends_where_the_run_does(run_file, opened, capsys):
    run, objective = opened
    found, text = result_of(capsys, "lyapunov", run_file, "--n-steps", 25, "--k", 3)
    dense = landscape.replay(objective, run.checkpoints.sel(step=90), 25)
    expected = landscape.lyapunov_exponents(objective, dense, 3)
    np.testing.assert_allclose(found.finite_time_exponent, expected.finite_time_exponent, rtol=1e-6)
    assert "from step 90 to 115; saved states that the replay met differ by up to 0" in text
    out = run_file.with_name("b.h5")
    found, text = result_of(capsys, "lyapunov", run_file, "--step", 60, "--n-steps", 5, "--learning-rate", 0.1, "--out",
                            out)  # fmt: skip
    assert found.step.values.tolist() == list(range(60, 66))
    assert "differ by up to 0;" not in text  # at another rate these are other states


OWN = """
import torch, landscape
from companion import CURVATURE  # a file beside this one

class Theta(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    def forward(self, inputs):
        return self.theta

def bowl(checkpoints):
    n = checkpoints.sizes["param"]
    slopes = CURVATURE * torch.arange(1, n + 1, dtype=torch.float64)
    loss = lambda theta, targets, step: (slopes * theta**2).sum() / 2
    return landscape.Objective(Theta(n), loss, torch.zeros(1, 1), torch.zeros(1))

def own_run(run):
    import dynloss
    assert isinstance(run, landscape.Run)
    return dynloss.objective(run)

def nothing(checkpoints):
    return None

def broken(checkpoints):
    return 1 / 0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "companion.py").write_text("CURVATURE = 2.0\n")
    (tmp_path / "own.py").write_text(OWN)
    params = np.random.default_rng(0).normal(size=(3, 4))
    table = xr.Dataset({"params": (("step", "param"), params)}, {"step": [0, 5, 10]})
    landscape.save_dataset(table, tmp_path / "saved.h5")
    return tmp_path


def test_any_other_model_by_a_function_of_the_users(own, run_file, capsys):
    found, _ = result_of(capsys, "eigenpairs", own / "saved.h5", "--objective", f"{own / 'own.py'}:bowl", "--k", 2)
    np.testing.assert_allclose(found.eigenvalue, [[8, 6]] * 3)
    found, text = result_of(capsys, "valley", own / "saved.h5", "--objective", f"{own / 'own.py'}:bowl", "--rise", 1)
    np.testing.assert_allclose(found.width, 2 * np.sqrt(2 / 8), rtol=1e-5)
    assert "eigenpairs computed, k = 1" in text
    found, _ = result_of(capsys, "eigenpairs", run_file, "--objective", f"{own / 'own.py'}:own_run", "--steps", 0)
    assert found.sizes["step"] == 1


def test_what_is_wrong_with_an_objective_is_said_in_one_line(own, run_file, capsys, monkeypatch):
    saved, file = own / "saved.h5", own / "own.py"
    line = 1 + OWN.splitlines().index("    return 1 / 0")
    for spec, message in (
        (None, "is a Dataset, no run: say what the loss is with --objective FILE.py:function"),
        (f"{file}:nothing", "must return a landscape.Objective, got NoneType"),
        (f"{file}:broken", f"own.py, line {line}: ZeroDivisionError: division by zero"),
        (f"{file}:missing", "has no function missing"),
        (f"{file}", "must be FILE.py:function"),
        ("a.txt:b", "must be FILE.py:function"),
        (f"{own / 'no.py'}:bowl", "there is no file"),
    ):
        assert message in fails(capsys, "density", saved, *(["--objective", spec] if spec else []))
    (own / "bad.py").write_text("def bowl(:\n")
    assert "SyntaxError" in fails(capsys, "density", saved, "--objective", f"{own / 'bad.py'}:bowl")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    error = fails(capsys, "density", run_file)
    assert "no installed package registers 'dynloss'" in error
    assert "--objective FILE.py:function" in error


def test_bad_input_gets_one_line(run_file, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("hello")
    landscape.save_dataset(xr.Dataset({"a": ("step", [1.0])}, {"step": [0]}), tmp_path / "a.h5")
    for arguments, message in (
        (["eigenpairs"], "give one FILE, or --checkpoints"),
        (["eigenpairs", tmp_path / "no.h5"], "there is no file"),
        (["eigenpairs", tmp_path / "text.h5"], "not an HDF5 file"),
        (["eigenpairs", tmp_path / "a.h5"], "holds no checkpoints, params (step, param)"),
        (["eigenpairs", run_file, "--k", 0], "argument --k: '0' is no whole number of at least 1"),
        (["eigenpairs", run_file, "--k", 1000], "k must be between 1 and"),
        (["eigenpairs", run_file, "--steps", "5"], "run.h5: step 5 was not recorded; the nearest are 0, 10"),
        (["eigenpairs", run_file, "--steps", "0:60:15"], "step 15 was not recorded; the nearest are 10, 20"),
        (["eigenpairs", run_file, "--steps", "0,700"], "step 700 was not recorded; the nearest are 120"),
        (["eigenpairs", run_file, "--steps", "71:79"], "no step in 71:79 was recorded; the nearest are 70, 80"),
        (["eigenpairs", run_file, "--steps", "0-60"], "'0-60' is neither steps like 100,200 nor START:STOP:STRIDE"),
        (["eigenpairs", run_file, "--out", tmp_path / "no" / "a.h5"], "does not exist; create it first"),
        (["gradient", run_file, "--steps", "15"], "step 15 was not recorded"),  # eigenpairs were, the state was not
        (["gradient", run_file, "--vector", "speed"], "argument --vector: invalid choice"),
        (["gradient", run_file, "--eigs", tmp_path / "a.h5"], "holds no eigenpairs"),
        (["valley", run_file, "--rise", "0"], "rise must hold positive numbers"),
        (["valley", run_file, "--modes", "-1"], "must be modes from 0 on"),
        (["bifurcation", run_file, "--signal", "speed"], "choose --signal among loss, accuracy"),
        (["bifurcation", run_file, "--window", 3], "window must be at least"),
        (["slice", run_file, "--step", 61, "--modes", 0], "--modes must name two modes for a plane"),
        (["slice", run_file, "--step", 65, "--at", "0:10"], "must name both ends and the stride of a range"),
        (["slice", run_file, "--step", 165], "step 165 was not recorded; the nearest are 120"),
    ):
        error = fails(capsys, *arguments)
        assert message in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "run.h5", "text.h5"]


def test_a_process_ends_with_status_2_and_one_line_without_a_traceback(run_file):
    arguments = [sys.executable, "-m", "landscape", "gradient", str(run_file), "--steps", "5"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "step 5 was not recorded; the nearest are 0, 10" in done.stderr


def test_warnings_of_an_analysis_are_lines_of_their_own(run_file, capsys, monkeypatch):
    arguments = ["eigenpairs", str(run_file), "--steps", "0", "--tol", "1e-30"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "landscape: eigenpairs of 1 of 1 steps are not certified" in captured.err
    assert "0 of 1 steps certified" in captured.out


def test_an_interrupted_command_ends_with_130_and_says_that_it_goes_on(run_file, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("landscape.hessian._solve", interrupted)
    assert main(["eigenpairs", str(run_file)]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    monkeypatch.undo()
    result_of(capsys, "eigenpairs", run_file, "--steps", "0")


def test_help_names_every_option_and_its_default(capsys):
    used = set()
    for name, analysis in ANALYSES.items():
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: python -m landscape {name}" in text
        for option in analysis.options:
            assert f"--{option.replace('_', '-')}" in text
        used |= set(analysis.options)
    assert used == set(OPTIONS)  # none that no command has
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in ANALYSES)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("30", [30]),
        ("30,0,30", [0, 30]),
        ("0:30:10", [0, 10, 20, 30]),
        ("0:25:10", [0, 10, 20]),
        ("5:25", [10, 11, 12, 20]),
        ("::10", [0, 10, 20, 30]),
        (":11", [0, 10, 11]),
        ("20:", [20, 30]),
        ("0,11:20", [0, 11, 12, 20]),
    ],
)
def test_steps(text, steps):
    assert Steps(text).among(np.array([0, 10, 11, 12, 20, 30])).tolist() == steps
