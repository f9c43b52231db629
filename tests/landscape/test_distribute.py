"""On a cluster an analysis gives what it gives here; a dead worker costs a repetition, a bad checkpoint its own row."""

import copy
import io
import logging
import os
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import (
    Objective,
    RunWriter,
    gradient_decomposition,
    load_dataset,
    map_checkpoints,
    open_run,
    top_eigenpairs,
    valley_width,
)
from landscape.cluster import Failure, connected
from landscape.joined import Joined

dask = pytest.importorskip("dask")
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
cloudpickle = pytest.importorskip("cloudpickle")
psutil = pytest.importorskip("psutil")
distributed = pytest.importorskip("distributed")
# Workers are forked from a process that has imported torch already, which would take each of them seconds.
distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "landscape.joined", "landscape.valley"])

POISON = 30


@pytest.fixture(scope="module", autouse=True)
def by_value():
    """What stands in this file, the workers cannot import."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def client():
    """Two processes; where one dies, its task has failed at once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("landscape.cluster.ALLOWED_DEATHS", 0)
        patched.setattr("dask.system.CPU_COUNT", 2)
        with connected(None, 2) as client:
            yield client
            assert not client.futures  # no call left anything behind


@pytest.fixture(scope="module")
def path(descent):
    """Seven checkpoints of the small network, each a way off the one before."""
    rng = np.random.default_rng(0)
    params = descent.checkpoints.params.values[0] + 0.2 * np.cumsum(rng.normal(size=(7, 51)), axis=0)
    return xr.Dataset({"params": (("step", "param"), params)}, {"step": np.arange(7) * 10}, descent.checkpoints.attrs)


@pytest.fixture(scope="module")
def pairs(descent, path):
    return top_eigenpairs(descent.objective, path, k=3, tol=1e-8)


class Poisoned(Objective):
    """An objective that does something bad where it meets one step."""

    def linearize(self, params, step):
        if POISON in np.asarray(step):
            self.strike()
        return super().linearize(params, step)


def poisoned(objective, strike):
    other = copy.copy(objective)
    other.__class__, other.strike = Poisoned, strike
    return other


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_an_error():
    raise ArithmeticError("poison")


def assert_equal(found, expected, rtol=1e-7):
    """Numbers to rounding, flags, counts, names and attributes exactly."""
    xr.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)
    for name in ("previous_mode", "crossing", "n_hvp", "certified"):
        if name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert found.attrs == expected.attrs
    assert {name: found[name].attrs for name in found.variables} == {
        name: expected[name].attrs for name in expected.variables
    }


@pytest.mark.parametrize("analysis", ["eigenpairs", "gradient", "valley"])
@pytest.mark.parametrize("rows_per_task", [1, 3])
def test_the_result_is_that_of_the_plain_call(client, descent, path, pairs, analysis, rows_per_task):
    if analysis == "eigenpairs":
        previous = top_eigenpairs(descent.objective, path.isel(step=-1), k=3)
        function, args, options = top_eigenpairs, (3,), {"tol": 1e-8, "failure": 1e-3, "previous": previous}
    elif analysis == "gradient":
        function, args, options = gradient_decomposition, (pairs.isel(step=slice(1, 6)),), {}
    else:
        function, args, options = valley_width, (), {"eigs": pairs.isel(step=slice(None, None, 2)), "rise": [0.1]}
    expected = function(descent.objective, path, *args, **options)
    found = map_checkpoints(
        function, descent.objective, path, *args, client=client, rows_per_task=rows_per_task, **options
    )
    assert_equal(found, expected, rtol=1e-6 if analysis == "valley" else 1e-7)
    assert "failed_steps" not in found.attrs


def test_without_a_client_processes_are_started_and_ended_and_one_that_dies_is_replaced(
    descent, path, pairs, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("dask.system.CPU_COUNT", 2)

    def die_once():
        first = not os.listdir(tmp_path)
        (tmp_path / str(os.getpid())).touch()
        if first:
            os.kill(os.getpid(), signal.SIGKILL)

    objective = poisoned(descent.objective, die_once)
    found = map_checkpoints(top_eigenpairs, objective, path, k=3, tol=1e-8, rows_per_task=2)
    assert_equal(found, pairs)
    processes = [int(name) for name in os.listdir(tmp_path)]
    assert len(processes) == 2
    assert not any(psutil.pid_exists(pid) for pid in processes)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("strike", [kill_this_process, raise_an_error])
def test_a_bad_checkpoint_is_nan_and_named_and_the_others_are_complete(client, descent, path, tmp_path, strike):
    options = {"k": 2, "certify": False}
    others = path.drop_sel(step=POISON)
    expected = top_eigenpairs(descent.objective, others, **options)
    out = tmp_path / "eigs.h5" if strike is raise_an_error else None
    reason = "ArithmeticError: poison" if strike is raise_an_error else "RuntimeError: its worker died"
    with pytest.warns(UserWarning, match=rf"^1 of 7 checkpoints failed, .* \(steps 30\); the first: {reason}"):
        found = map_checkpoints(
            top_eigenpairs,
            poisoned(descent.objective, strike),
            path,
            client=client,
            out=out,
            rows_per_task=2,
            **options,
        ).load()
    assert found.attrs.pop("failed_steps") == [POISON]
    assert_equal(found.drop_sel(step=POISON), expected)
    row = found.sel(step=POISON)
    assert row.eigenvalue.isnull().all()
    assert row.eigenvector.isnull().all()
    assert row.previous_mode.isnull().all()
    assert not row.converged.any()
    assert row.n_hvp == 0
    if out is not None:
        found.close()
        xr.testing.assert_equal(load_dataset(out), found)
        assert os.listdir(tmp_path) == ["eigs.h5"]


def test_a_run_file_is_read_by_the_workers_themselves(client, descent, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers stand elsewhere
    layout = descent.objective.layout
    with RunWriter("run.h5", layout, history={"loss": {}}, attrs=path.attrs, block_rows=2) as writer:
        for step, params in zip(path.step.values, path.params.values, strict=True):
            for between in range(10):
                writer.append(int(step) + between, None if between else torch.from_numpy(params), loss=0.0)
        writer.finish()

    def inspect(objective, checkpoints):
        in_memory = checkpoints.params.variable._in_memory
        sums, pid = checkpoints.params.sum("param"), ("step", [os.getpid()] * checkpoints.sizes["step"])
        return xr.Dataset({"sum": sums, "pid": pid, "in_memory": ("step", [in_memory] * checkpoints.sizes["step"])})

    def open_files():
        return [file.path for file in psutil.Process().open_files() if file.path.endswith("run.h5")]

    with open_run("run.h5") as run:
        found = map_checkpoints(inspect, descent.objective, run.checkpoints, client=client, rows_per_task=1)
    np.testing.assert_allclose(found["sum"], path.params.sum("param"))
    assert not found.in_memory.any()
    assert os.getpid() not in found.pid
    assert not any(client.run(open_files).values())


def test_rows_that_end_late_are_written_in_their_place(client, descent, path, tmp_path, monkeypatch):
    def late(objective, checkpoints):
        step = checkpoints.step
        time.sleep(0.5 * (step.values[0] == 0))
        coords = {"step": step, "half": step / 2, "mode": [0, 1], "unit": 3.0, "scale": ("mode", [1.0, 2.0])}
        values = {"x": (("mode", "step"), np.stack([step, -step])), "constant": ("place", [5, 6, 7])}
        return xr.Dataset(values, coords, {"note": None}).set_coords("half")

    expected = late(descent.objective, path).transpose("step", ...)
    found = map_checkpoints(late, descent.objective, path, client=client, rows_per_task=1)
    xr.testing.assert_identical(found, expected.assign_coords(step=path.step))
    take, waiting = Joined.take, []

    def counted(self, *outcome):
        take(self, *outcome)
        waiting.append(len(self.ready))

    monkeypatch.setattr(Joined, "take", counted)
    monkeypatch.setattr("landscape.distribute.AHEAD", 1)  # for each of two workers
    written = map_checkpoints(late, descent.objective, path, client=client, rows_per_task=1, out=tmp_path / "late.h5")
    assert max(waiting) == 1
    xr.testing.assert_identical(written.load(), found)
    written.close()


def test_a_worker_of_many_threads_runs_one_task_at_a_time_on_one_thread_of_torch(descent, path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def task(objective, checkpoints):
        seen = {"n_threads": torch.get_num_threads(), "on_terminal": sys.stderr.isatty(), "start": time.monotonic()}
        time.sleep(0.03)
        seen["end"] = time.monotonic()
        return xr.Dataset({name: ("step", [value]) for name, value in seen.items()}, {"step": checkpoints.step})

    options = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL, "set_as_default": False}
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with distributed.Client(processes=False, n_workers=1, threads_per_worker=4, **options) as client:
            monkeypatch.setattr(sys, "stderr", Terminal())
            found = map_checkpoints(task, descent.objective, path, client=client, rows_per_task=1).sortby("start")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    assert (found.start[1:].values >= found.end[:-1].values).all()
    assert (found.n_threads == 1).all()
    assert not found.on_terminal.any()  # no progress bars of tasks


def test_bad_rows_that_end_first_do_not_end_the_call(client, descent, path, tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.cluster.PATIENCE", 1)

    def late_where_good(objective, checkpoints):
        if checkpoints.step[0] < 20:
            (tmp_path / str(time.monotonic_ns())).touch()
            raise_an_error()
        deadline = time.monotonic() + 5
        while len(os.listdir(tmp_path)) < 3 and time.monotonic() < deadline:  # a task and two rows of it failed
            time.sleep(0.01)
        time.sleep(0.1)
        return xr.Dataset({"x": checkpoints.step * 2.0})

    with pytest.warns(UserWarning, match=r"^2 of 7 checkpoints failed, .* \(steps 0, 10\); the first: ArithmeticError"):
        found = map_checkpoints(late_where_good, descent.objective, path, client=client, rows_per_task=4)
    np.testing.assert_array_equal(found.x, [np.nan, np.nan, 40, 60, 80, 100, 120])


def test_what_the_analysis_warns_of_is_said_once(client, descent, path):
    large = poisoned(descent.objective, np.zeros(1_500_000))  # more than Dask likes to send
    with pytest.warns(UserWarning, match=r"are not certified .* \(and 5 more from other tasks\)") as caught:
        map_checkpoints(
            top_eigenpairs, large, path.drop_sel(step=POISON), 3, client=client, max_products=3, rows_per_task=1
        )
    assert len(caught) == 1


def test_an_interrupt_cancels_what_runs_and_leaves_what_is_written(client, descent, path, tmp_path, monkeypatch):
    def slow(objective, checkpoints):
        time.sleep(0.3)
        return xr.Dataset({"x": checkpoints.step * 2.0})

    take = Joined.take

    def interrupted(self, *outcome):
        take(self, *outcome)
        if self.n_rows >= 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Joined, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_checkpoints(slow, descent.objective, path, client=client, rows_per_task=1, out=tmp_path / "x.h5")
    assert os.listdir(tmp_path) == ["x.h5.part"]
    assert not client.futures
    monkeypatch.undo()
    found = map_checkpoints(slow, descent.objective, path, client=client, rows_per_task=2, out=tmp_path / "x.h5")
    np.testing.assert_array_equal(found.x, path.step * 2.0)
    found.close()


def test_bad_input_is_refused_with_one_clear_error(client, descent, path, pairs, tmp_path, monkeypatch):
    def call(analysis, *args, objective=descent.objective, checkpoints=path, **options):
        map_checkpoints(analysis, objective, checkpoints, *args, client=options.pop("client", client), **options)

    with pytest.raises(ValueError, match="k must be between 1 and 51, the number of parameters, got 52"):
        call(top_eigenpairs, 52)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tolerance'"):
        call(top_eigenpairs, tolerance=1)
    with pytest.raises(TypeError, match="analysis must be a function"):
        call("top_eigenpairs")
    with pytest.raises(ValueError, match="rows_per_task must be at least 1, got 0"):
        call(top_eigenpairs, rows_per_task=0)
    with pytest.raises(ValueError, match="belong to another model"):
        call(top_eigenpairs, checkpoints=path.isel(param=slice(3)))
    with pytest.raises(ValueError, match="share no step"):
        call(gradient_decomposition, pairs.assign_coords(step=pairs.step + 1))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; create it first"):
        call(top_eigenpairs, out=tmp_path / "nowhere" / "e.h5")
    with pytest.raises(TypeError, match=r"the analysis or its arguments cannot be sent .* leave out locks"):
        call(top_eigenpairs, seed=(number for number in range(3)))
    with pytest.raises(TypeError, match="the objective cannot be sent to another process"):
        call(top_eigenpairs, objective=poisoned(descent.objective, threading.Lock()))
    with pytest.raises(TypeError, match="client must be a"):
        call(top_eigenpairs, client="tcp://127.0.0.1:8786")
    with pytest.raises(TypeError, match="must return a Dataset with the coordinate step, got int"):
        call(lambda objective, checkpoints: 3)
    with pytest.raises(ValueError, match="must return a row for each checkpoint: it was given steps"):
        call(lambda objective, checkpoints: xr.Dataset({"x": checkpoints.step[:-1]}), rows_per_task=2)
    with pytest.raises(ValueError, match="grid depends on which checkpoints a task holds"):
        call(lambda _, checkpoints: xr.Dataset({"x": checkpoints.step}, {"grid": [checkpoints.step.values[0]]}))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"needs dask.distributed: pip install 'dynloss-landscape\[cluster\]'"):
        call(top_eigenpairs)


def test_eigenpairs_joined_in_any_order_are_followed_over_the_gaps(descent, path):
    expected = top_eigenpairs(descent.objective, path, k=4, certify=False, batch_rows=1)
    assert (expected.overlap < 0.9).any()
    rng = np.random.default_rng(1)
    for _ in range(20):
        signs = xr.DataArray(rng.choice([-1.0, 1.0], size=(7, 4)), dims=("step", "mode"))
        parts = [expected.isel(step=slice(row, row + 1)) for row in range(7)]
        parts = [part.assign(eigenvector=part.eigenvector * signs[row]) for row, part in enumerate(parts)]
        joined = Joined(path.step, None, None, {})
        first = expected.eigenvector[0] * signs[0]
        for row in rng.permutation(7):
            joined.take(row, row + 1, (parts[row], []))
        found = joined.finish()
        np.testing.assert_array_equal(found.previous_mode, expected.previous_mode)
        np.testing.assert_array_equal(found.crossing, expected.crossing)
        np.testing.assert_allclose(found.eigenvector[0], first)
        products = (found.eigenvector.values[1:, :, None] * found.eigenvector.values[:-1, None]).sum(-1)
        chosen = np.take_along_axis(products, expected.previous_mode.values[1:, :, None].astype(int), 2)
        np.testing.assert_allclose(chosen[..., 0], found.overlap[1:], rtol=1e-12)


def test_failed_rows_before_the_first_that_succeeds_are_kept_apart(path):
    joined = Joined(path.step, None, None, {})
    for row in range(5):
        joined.take(row, row + 1, Failure(ValueError(f"row {row}")))
    part = xr.Dataset({"x": ("step", np.ones(2, np.float32)), "n": ("step", [1, 2])}, {"step": [50, 60]})
    joined.take(5, 7, (part, [(RuntimeWarning, "overflow")]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = joined.finish()
    assert [str(warning.message)[:24] for warning in caught] == ["5 of 7 checkpoints faile", "overflow"]
    assert found.failed_steps == [0, 10, 20, 30, 40]
    assert found.x.dtype == np.float32
    np.testing.assert_array_equal(found.x, [np.nan] * 5 + [1, 1])
    np.testing.assert_array_equal(found.n, [0, 0, 0, 0, 0, 1, 2])
