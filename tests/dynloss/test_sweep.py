"""Sweeps on a real cluster: each run is what training it alone gives, and nothing that ended is computed twice."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import h5py
import numpy as np
import pytest

import dynloss
from dynloss.__main__ import main
from dynloss.sweep_file import FAILED, PENDING, SweepFile
from dynloss.sweep_runs import AXES, table_of
from dynloss.sweep_task import train_runs
from landscape import load_dataset

distributed = pytest.importorskip("distributed", reason="sweeps need dask.distributed: pip install '.[cluster]'")

GRIDS = [
    {"loss": ["cross_entropy", "squared_error"], "learning_rate": [0.1, 0.3], "width": [5, 8], "seed": range(2)},
    {"amplitude": [1, 20], "period": 60, "learning_rate": 0.3, "width": 5, "seed": range(2)},
    {"loss": "dynamical_squared_error", "weighting": "component", "period": 60, "learning_rate": 0.1, "width": 5},
]
SETTINGS = {"n_steps": 120, "n_per_class": 10, "history_every": 30}


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_table_holds_every_combination_once():
    table = table_of(GRIDS)
    assert list(table.data_vars) == list(AXES)
    assert table.sizes["run"] == 2 * 2 * 2 * 2 + 2 * 2 + 1
    static = table.isel(run=~table.loss.str.startswith("dynamical"))
    assert static.amplitude.isnull().all()
    assert (table.weighting.values[-1], table.weighting.values[0]) == ("component", "")
    same = table_of({"loss": "cross_entropy", "amplitude": [1, 10, 70], "period": [100, 200], "seed": [0, 0, 1]})
    assert same.sizes["run"] == 2  # static: amplitude and period do not matter
    assert table_of([{"seed": [0, 1]}, {"seed": [1, 2]}]).seed.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"lr": 1.0}, "a grid varies loss, weighting"),
        ({"loss": "mse"}, "loss must be one of cross_entropy"),
        ({"weighting": "class", "loss": "dynamical_squared_error"}, 'weighting must be "sample" or "component"'),
        ({"width": [10, 2.5]}, "width must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": "1"}, "learning_rate must be a number"),
        ({"amplitude": np.nan}, "amplitude must be a number"),
        ({"period": 1}, "period must be a whole number of at least 2"),
        ({"seed": []}, "hold no run"),
        ([], "hold no run"),
    ],
)
def test_grids_that_cannot_be_trained_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        table_of(grid)


def test_each_run_is_what_training_alone_gives(client, tmp_path):
    found = dynloss.sweep(tmp_path / "s.h5", GRIDS, client=client, static_steps=20, **SETTINGS)
    assert found.identical(load_dataset(tmp_path / "s.h5"))
    assert os.listdir(tmp_path) == ["s.h5"]
    assert (found.status == "complete").all()
    assert found.step.values.tolist() == [0, 30, 60, 90]
    for i in (0, 9, 17, 18, 20):
        one = found.isel(run=i)
        data, validation = (dynloss.spiral(10, 3, seed=2 * int(one.seed) + offset) for offset in range(2))
        schedule = None
        if one.period.notnull():
            oscillating = dynloss.TriangleSchedule(3, float(one.amplitude), int(one.period))
            schedule = dynloss.StaticTail(oscillating, start=100)
        loss = {
            "cross_entropy": lambda: dynloss.CrossEntropy(3),
            "squared_error": lambda: dynloss.SquaredError(3),
            "dynamical_cross_entropy": lambda schedule=schedule: dynloss.DynamicalCrossEntropy(3, schedule=schedule),
            "dynamical_squared_error": lambda schedule=schedule: dynloss.DynamicalSquaredError(
                3, schedule=schedule, weighting="component"
            ),
        }[str(one.loss_name.values)]()
        model = dynloss.mlp(2, int(one.width), 3, seed=int(one.seed))
        path = tmp_path / f"{i}.run"
        rate = float(one.learning_rate)
        dynloss.train(model, loss, data, validation=validation, record=path, n_steps=120, learning_rate=rate)
        from landscape import open_run

        with open_run(path) as run:
            history = run.history.sel(step=found.step)
            for name in ("loss", "accuracy", "validation_accuracy"):
                np.testing.assert_array_equal(one[name], history[name])
        path.unlink()
        right = (model(validation.inputs).argmax(-1) == validation.targets).double().mean()
        np.testing.assert_allclose(one.final_validation_accuracy, right.item(), rtol=1e-12)
        np.testing.assert_allclose(one.final_loss, loss(model(data.inputs), data.targets, 120).item(), rtol=1e-9)


SCRIPT = """
import sys, distributed, dynloss
if __name__ == "__main__":
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with distributed.Client(cluster, set_as_default=False) as client:
            workers = cluster.workers.values()
            print(*(worker.pid for worker in workers), flush=True)
            grid = {"amplitude": [1, 3, 10, 30, 70], "period": [50, 100], "width": 8, "seed": range(20)}
            dynloss.sweep(sys.argv[1], grid, n_steps=4000, n_per_class=30, client=client, runs_per_task=5)
"""


def n_done(part):
    with h5py.File(part) as file:
        return int(np.count_nonzero(file["state"][()] != PENDING))


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_sweep_cost_only_their_tasks(tmp_path):
    out, part = tmp_path / "s.h5", tmp_path / "s.h5.part"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(out)]

    def done():
        try:
            return n_done(part)
        except OSError:  # it is being written just now, or is not there yet
            return 0

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        wait_until(lambda: done() >= 20)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: done() >= 80)
        os.killpg(process.pid, signal.SIGKILL)
    assert not out.exists()
    kept = n_done(part)
    assert 80 <= kept < 200
    with h5py.File(part) as file:
        first = np.flatnonzero(file["state"][()] != PENDING)[0]
        before = file["loss"][first]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    found = load_dataset(out)
    assert found.sizes["run"] == 200
    assert (found.status == "complete").all()
    np.testing.assert_array_equal(found.loss[first], before)
    settings = {name: found.attrs[name] for name in ("n_steps", "static_steps", "n_per_class", "n_classes")}
    settings |= {"history_every": found.attrs["history_every"], "dtype": "float64"}
    table = table_of({"amplitude": [1, 3, 10, 30, 70], "period": [50, 100], "width": 8, "seed": range(20)})
    undisturbed = train_runs(None, table, settings)
    for name in ("loss", "accuracy", "validation_accuracy", "final_loss", "final_validation_accuracy"):
        np.testing.assert_array_equal(found[name], undisturbed[name])


def test_a_run_that_fails_is_named_and_tried_again(client, tmp_path):
    grid = {"amplitude": [10, 1e308], "period": 60, "width": 5, "seed": range(2)}  # weights that overflow
    with pytest.warns(UserWarning, match=r"2 runs failed \(2, 3\): class weights must be finite"):
        found = dynloss.sweep(tmp_path / "s.h5", grid, client=client, **SETTINGS)
    with pytest.raises(ValueError, match="class weights must be finite"):  # of all that are left
        dynloss.sweep(tmp_path / "s.h5", grid, client=client, **SETTINGS)
    assert found.status.values.tolist() == ["complete", "complete", "failed", "failed"]
    assert found.final_loss.notnull().values.tolist() == [True, True, False, False]
    assert os.listdir(tmp_path) == ["s.h5.part"]
    assert load_dataset(tmp_path / "s.h5.part").final_loss.identical(found.final_loss.reset_coords(drop=True))


def test_a_run_that_diverges_is_said_to(client, tmp_path):
    grid = {"loss": "squared_error", "learning_rate": [0.1, 50.0], "width": 5}
    found = dynloss.sweep(tmp_path / "s.h5", grid, client=client, **SETTINGS)
    assert found.status.values.tolist() == ["complete", "diverged"]
    assert found.last_step[1] < 120
    assert np.isnan(found.final_loss[1])


def test_somebody_who_reads_the_part_does_not_end_the_sweep(tmp_path):
    file = SweepFile(tmp_path / "s.h5", table_of({"seed": [0, 1]}), {"n_steps": 3}, np.arange(3), overwrite=False)
    look = f"import h5py; file = h5py.File({str(file.part)!r}); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", look], **pipes) as reader:
        assert reader.stdout.readline() == "open\n"
        file.fail(np.array([1]))
        reader.communicate("\n", timeout=60)
    with h5py.File(file.part) as looking:
        assert looking["state"][()].tolist() == [PENDING, FAILED]


def test_another_sweep_is_not_overwritten(tmp_path):
    table, steps = table_of({"seed": [0, 1]}), np.arange(3)
    file = SweepFile(tmp_path / "s.h5", table, {"n_steps": 3}, steps, overwrite=False)
    assert file.pending.tolist() == [0, 1]
    for settings, runs in (({"n_steps": 4}, table), ({"n_steps": 3}, table_of({"seed": [0, 2]}))):
        with pytest.raises(FileExistsError, match="holds another sweep"):
            SweepFile(tmp_path / "s.h5", runs, settings, steps, overwrite=False)
    SweepFile(tmp_path / "s.h5", table_of({"seed": 7}), {"n_steps": 3}, steps, overwrite=True)
    assert load_dataset(tmp_path / "s.h5.part").seed.values.tolist() == [7]
    with pytest.raises(FileNotFoundError, match="the folder"):
        SweepFile(tmp_path / "no" / "s.h5", table, {}, steps, overwrite=False)


@pytest.mark.parametrize("name", ["n_steps", "n_per_class", "n_classes", "history_every", "runs_per_task"])
def test_settings_out_of_range_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be"):
        dynloss.sweep(tmp_path / "s.h5", {}, **({"n_steps": 5} | {name: -1}))
    with pytest.raises(ValueError, match="dtype must be"):
        dynloss.sweep(tmp_path / "s.h5", {}, n_steps=5, dtype="float16")


def test_the_command_sweeps_on_a_given_cluster(client, tmp_path, capsys):
    out = str(tmp_path / "s.h5")
    options = ["--width", "5", "--seed", "0:2", "4", "--n-steps", "20", "--n-per-class", "5", "--period", "10"]
    arguments = ["sweep", out, *options, "--scheduler", client.scheduler.address]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("3 complete\nThe results are in")
    assert load_dataset(out).seed.values.tolist() == [0, 1, 4]
    assert main(arguments) == 0  # nothing is left to do
    assert main([*arguments, "--static-steps", "5"]) == 2
    assert "holds another sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "a:b"], "seeds are numbers, or FIRST:STOP"),
        (["--loss", "mse"], "loss must be one of"),
        (["--scheduler", "tcp://a:1", "--slurm", "queue=q"], "not both"),
        (["--slurm", "queue"], "takes KEY=VALUE"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(options, message, tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "s.h5"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_slurm_job_has_a_worker_for_each_core():
    pytest.importorskip("dask_jobqueue")
    from dynloss.sweep_command import slurm_cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with slurm_cluster(["queue=short", "cores=4", "memory=8GB", "walltime=00:10:00"]) as cluster:
            script = cluster.job_script()
    assert "#SBATCH -p short" in script
    assert "--nworkers 4" in script
    assert "--nthreads 1" in script
