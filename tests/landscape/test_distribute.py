"""On a cluster an analysis gives what it gives here; a dead worker costs a repetition, a bad checkpoint its own row."""

import copy
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import landscape
from landscape import (
    Objective,
    RunWriter,
    gradient_decomposition,
    load_dataset,
    map_checkpoints,
    open_run,
    spectral_density,
    top_eigenpairs,
    valley_width,
)
from landscape.cluster import Failure, connected, outcomes
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
            assert all(client.run(lambda: signal.getsignal(signal.SIGINT) == signal.SIG_IGN).values())
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


def test_the_code_of_the_readme_runs_on_processes_of_its_own_and_one_that_dies_is_replaced(
    descent, path, tmp_path, monkeypatch
):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```py\n(.*?map_checkpoints.*?)```", readme, flags=re.DOTALL)
    pids = tmp_path / "pids"
    pids.mkdir()

    def die_once():
        first = not os.listdir(pids)
        (pids / str(os.getpid())).touch()
        if first:
            kill_this_process()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dask.system.CPU_COUNT", 2)
    run, objective = SimpleNamespace(checkpoints=path), poisoned(descent.objective, die_once)
    variables = {"__name__": "__main__", "landscape": landscape, "objective": objective, "run": run}
    exec(compile(code, "README.md", "exec"), variables)
    assert variables["failed"] == []
    assert_equal(variables["eigs"].load(), top_eigenpairs(descent.objective, path, k=3))
    variables["eigs"].close()
    processes = [int(name) for name in os.listdir(pids)]
    assert len(processes) == 2
    assert not any(psutil.pid_exists(pid) for pid in processes)


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

    def inspect(objective, checkpoints):
        in_memory = checkpoints.params.variable._in_memory
        sums, pid = checkpoints.params.sum("param"), ("step", [os.getpid()] * checkpoints.sizes["step"])
        return xr.Dataset({"sum": sums, "pid": pid, "in_memory": ("step", [in_memory] * checkpoints.sizes["step"])})

    def check(n_rows):
        with open_run("run.h5") as run:
            found = map_checkpoints(inspect, descent.objective, run.checkpoints, client=client, rows_per_task=1)
        np.testing.assert_allclose(found["sum"], path.params[:n_rows].sum("param"))
        assert not found.in_memory.any()
        assert os.getpid() not in found.pid

    def open_files():
        return [file.path for file in psutil.Process().open_files() if file.path.endswith("run.h5")]

    layout = descent.objective.layout
    with RunWriter("run.h5", layout, history={"loss": {}}, attrs=path.attrs, block_rows=2) as writer:
        for step, params in zip(path.step.values, path.params.values, strict=True):
            for between in range(10):
                writer.append(int(step) + between, None if between else torch.from_numpy(params), loss=0.0)
            if step == 30:
                check(n_rows=4)
        writer.finish()
    check(n_rows=7)
    assert not any(client.run(open_files).values())


def test_a_result_of_any_form_comes_back_and_is_stored(client, descent, path, tmp_path):
    def unusual(objective, checkpoints):
        step = checkpoints.step
        coords = {"step": step, "half": step / 2, "mode": [0, 1], "unit": 3.0, "scale": ("mode", [1.0, 2.0])}
        values = {"x": (("mode", "step"), np.stack([step, -step])), "constant": ("place", [5, 6, 7])}
        return xr.Dataset(values, coords, {"note": None}).set_coords("half")

    expected = unusual(descent.objective, path).transpose("step", ...).assign_coords(step=path.step)
    found = map_checkpoints(unusual, descent.objective, path, client=client, rows_per_task=2)
    xr.testing.assert_identical(found, expected)
    out = tmp_path / "unusual.h5"
    with map_checkpoints(unusual, descent.objective, path, client=client, rows_per_task=1, out=out) as written:
        xr.testing.assert_identical(written.load(), expected)


def test_a_worker_of_many_threads_runs_one_task_at_a_time_on_one_thread_of_torch(descent, path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def task(objective, checkpoints):
        alone = landscape.cluster._ONE_AT_A_TIME.locked()
        seen = {"n_threads": torch.get_num_threads(), "on_terminal": sys.stderr.isatty(), "alone": alone}
        return xr.Dataset({name: ("step", [value]) for name, value in seen.items()}, {"step": checkpoints.step})

    options = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL, "set_as_default": False}
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with distributed.Client(processes=False, n_workers=1, threads_per_worker=4, **options) as client:
            monkeypatch.setattr(sys, "stderr", Terminal())
            found = map_checkpoints(task, descent.objective, path, client=client, rows_per_task=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    assert found.alone.all()
    assert (found.n_threads == 1).all()
    assert not found.on_terminal.any()  # no progress bars of tasks


class InTurn:
    """A client of two workers and its as_completed in one; `which` of the tasks in flight ends next, 0 or −1."""

    loop, status = None, "running"

    def __init__(self, behave, which):
        self.behave, self.which, self.in_flight, self.n_ended = behave, which, [], 0

    def nthreads(self):
        return {"one": 1, "two": 1}

    def submit(self, function, objective, task=None, dim="step", *, pure):
        client = self

        class Task:
            rows = range(*cloudpickle.loads(task)) if task else None

            def result(self):
                client.n_ended += 1
                return client.behave(self.rows, [other.rows for other in client.in_flight])

            def release(self):
                pass

        return Task()

    def add(self, task):
        self.in_flight.append(task)

    def __next__(self):
        return self.in_flight.pop(self.which)

    def cancel(self, tasks):
        pass


@pytest.fixture
def in_turn(monkeypatch):
    """`in_turn(behave, n_rows, size, which, ahead)`: the client, and the Failure or None of each part as they end."""

    def run(behave, n_rows, size, which=0, ahead=np.inf):
        client = InTurn(behave, which)
        monkeypatch.setattr("distributed.as_completed", lambda loop: client)
        return client, outcomes(client, None, lambda start, stop: (start, stop), n_rows, size, ahead)

    return run


@pytest.mark.parametrize("which", [0, -1])
def test_a_row_that_kills_is_found_whatever_ran_beside_it(in_turn, which):
    def behave(rows, beside):
        if any(killer in part for part in [rows, *beside] for killer in (5, 9)):
            raise distributed.KilledWorker("task", None, 0)

    _, ended = in_turn(behave, 12, 2, which)
    failures = {start: outcome for start, _, outcome in ended if outcome}
    assert failures.keys() == {5, 9}
    assert "its worker died" in str(failures[5].error)


def test_bad_rows_that_end_first_do_not_end_the_call(in_turn, monkeypatch):
    monkeypatch.setattr("landscape.cluster.PATIENCE", 1)
    _, ended = in_turn(lambda rows, _: Failure(ArithmeticError()) if rows[-1] > 3 else None, 7, 4, which=-1)
    assert [(start, stop, outcome is None) for start, stop, outcome in ended] == [
        (6, 7, False), (5, 6, False), (4, 5, False), (0, 4, True),
    ]  # fmt: skip


def test_a_call_whose_first_rows_all_fail_ends(in_turn):
    client, ended = in_turn(lambda *_: Failure(ArithmeticError("poison")), 1000, 10)
    with pytest.raises(ArithmeticError, match="poison"):
        list(ended)
    assert client.n_ended == 4 + 8  # as many tasks as two workers take, then rows


def test_no_task_begins_far_beyond_a_row_that_has_not_ended(in_turn):
    beyond = []

    def behave(rows, beside):
        beyond.append(max(part[0] for part in [rows, *beside]) - min(part[0] for part in [rows, *beside]))

    _, ended = in_turn(behave, 40, 2, which=-1, ahead=6)
    assert sum(stop - start for start, stop, _ in ended) == 40
    assert max(beyond) == 4


def test_what_the_analysis_warns_of_is_said_once(client, descent, path):
    large = poisoned(descent.objective, np.zeros(1_500_000))  # more than Dask likes to send
    with pytest.warns(UserWarning, match=r"are not certified .* \(and 5 more from other tasks\)") as caught:
        map_checkpoints(
            top_eigenpairs, large, path.drop_sel(step=POISON), 3, client=client, max_products=3, rows_per_task=1
        )
    assert len(caught) == 1


def test_an_interrupt_cancels_what_runs_and_leaves_what_is_written(client, descent, path, tmp_path, monkeypatch):
    def double(objective, checkpoints):
        return xr.Dataset({"x": checkpoints.step * 2.0})

    take = Joined.take

    def interrupted(self, *outcome):
        take(self, *outcome)
        if self.n_rows >= 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Joined, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_checkpoints(double, descent.objective, path, client=client, rows_per_task=1, out=tmp_path / "x.h5")
    assert os.listdir(tmp_path) == ["x.h5.part"]
    assert not client.futures
    monkeypatch.undo()
    found = map_checkpoints(double, descent.objective, path, client=client, rows_per_task=2, out=tmp_path / "x.h5")
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
    with pytest.raises(ValueError, match="must return a row for each it was given: steps"):
        call(lambda objective, checkpoints: xr.Dataset({"x": checkpoints.step[:-1]}), rows_per_task=2)
    with pytest.raises(
        ValueError, match=r"^attribute width and eigenvalue must not depend on which checkpoints a task"
    ):
        call(spectral_density, n_vectors=1, n_lanczos=3)
    with pytest.raises(ValueError, match=r"^attribute width must not depend"):
        call(spectral_density, n_vectors=1, n_lanczos=3, grid=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"^grid must not depend"):
        call(lambda _, checkpoints: xr.Dataset({"x": checkpoints.step}, {"grid": [checkpoints.step.values[0]]}))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"needs dask.distributed: pip install 'dynloss-landscape\[cluster\]'"):
        call(top_eigenpairs)


def test_eigenpairs_joined_in_any_order_are_followed_over_the_gaps(descent, path, tmp_path):
    expected = top_eigenpairs(descent.objective, path, k=4, certify=False, batch_rows=1)
    assert (expected.overlap < 0.9).any()
    rng = np.random.default_rng(1)
    for out in [None] * 10 + [tmp_path / "eigs.h5"] * 3:
        signs = xr.DataArray(rng.choice([-1.0, 1.0], size=(7, 4)), dims=("step", "mode"))
        parts = [expected.isel(step=slice(row, row + 1)) for row in range(7)]
        parts = [part.assign(eigenvector=part.eigenvector * signs[row]) for row, part in enumerate(parts)]
        joined = Joined(path.step, out, None, {})
        first = expected.eigenvector[0] * signs[0]
        for row in rng.permutation(7):
            joined.take(row, row + 1, (parts[row], []))
        with joined.finish() as found:
            found.load()
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
