"""Results written as they come are those gathered in memory; what was interrupted goes on, what is stale does not."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr

from landscape import Objective, load_dataset, top_eigenpairs
from landscape.hessian import RowsInFile


class Interrupted(Exception):
    pass


def interrupted_after(objective, n_batches):
    """The same objective, which fails at its `n_batches`-th linearization."""
    other = Objective.__new__(type(objective))
    other.__dict__.update(objective.__dict__)
    calls = []

    def linearize(params, step):
        calls.append(step)
        if len(calls) > n_batches:
            raise Interrupted
        return objective.linearize(params, step)

    other.linearize = linearize
    return other


OPTIONS = {"k": 3, "batch_rows": 1, "certify": False}


def test_pairs_written_out_are_those_in_memory_and_are_read_lazily(descent, tmp_path):
    path = tmp_path / "eigs.h5"
    inside = top_eigenpairs(descent.objective, descent.checkpoints, **OPTIONS)
    outside = top_eigenpairs(descent.objective, descent.checkpoints, out=path, **OPTIONS)
    assert os.listdir(tmp_path) == ["eigs.h5"]
    assert not outside.eigenvector.variable._in_memory
    xr.testing.assert_identical(outside.load(), inside)
    outside.close()
    xr.testing.assert_identical(load_dataset(path), inside)
    single = top_eigenpairs(descent.objective, descent.checkpoints.sel(step=20), out=path, **OPTIONS)
    assert single.eigenvalue.dims == ("mode",)
    np.testing.assert_allclose(single.eigenvalue, inside.eigenvalue.sel(step=20), rtol=1e-9)


def test_an_interrupted_call_goes_on_where_it_stopped(descent, tmp_path):
    path = tmp_path / "eigs.h5"
    whole = top_eigenpairs(descent.objective, descent.checkpoints, **OPTIONS)
    with pytest.raises(Interrupted):
        top_eigenpairs(interrupted_after(descent.objective, 2), descent.checkpoints, out=path, **OPTIONS)
    assert os.listdir(tmp_path) == ["eigs.h5.part"]
    counted = interrupted_after(descent.objective, 4)  # two to check what is there, two for what is missing
    resumed = top_eigenpairs(counted, descent.checkpoints, out=path, **OPTIONS).load()
    xr.testing.assert_identical(resumed, whole)
    assert os.listdir(tmp_path) == ["eigs.h5"]


@pytest.mark.parametrize("change", ["k", "steps", "objective", "checkpoints"])
def test_what_is_left_of_another_computation_is_not_used(descent, tmp_path, change):
    path, options, checkpoints, objective = tmp_path / "eigs.h5", dict(OPTIONS), descent.checkpoints, descent.objective
    with pytest.raises(Interrupted):
        top_eigenpairs(interrupted_after(objective, 3), checkpoints, out=path, **OPTIONS)
    stale = change in ("objective", "checkpoints")
    if change == "k":
        options["k"] = 2
    elif change == "steps":
        checkpoints = checkpoints.assign_coords(step=[0, 10, 20, 31])
    elif change == "objective":
        inputs, targets = descent.data
        objective = Objective(descent.model, descent.loss_fn, inputs[:40], targets[:40])
    else:
        checkpoints = checkpoints.assign(params=checkpoints.params * 1.01)
    expected = top_eigenpairs(objective, checkpoints, **options)
    if stale:
        with pytest.warns(UserWarning, match="eigenpairs of another objective or of other checkpoints"):
            found = top_eigenpairs(objective, checkpoints, out=path, **options)
    else:
        found = top_eigenpairs(objective, checkpoints, out=path, **options)
    xr.testing.assert_identical(found.load(), expected)


def test_a_killed_call_leaves_rows_that_are_right(tmp_path):
    script = textwrap.dedent(f"""
        import numpy as np, torch, xarray as xr, dynloss, landscape, os, signal
        model, data = dynloss.mlp(2, 8, 3, seed=0), dynloss.spiral(10, 3, seed=0)
        objective = landscape.Objective(model, dynloss.CrossEntropy(3), *data)
        theta = objective.layout.flatten_model(model).numpy()
        params = theta + 0.1 * np.random.default_rng(0).normal(size=(9, len(theta)))
        checkpoints = xr.Dataset({{"params": (("step", "param"), params)}}, {{"step": np.arange(9)}})
        calls, linearize = [], objective.linearize
        def counting(params, step):
            calls.append(step)
            if len(calls) == int(os.environ["KILL_AT"]):
                os.kill(os.getpid(), signal.SIGKILL)
            return linearize(params, step)
        objective.linearize = counting
        eigs = landscape.top_eigenpairs(objective, checkpoints, k=2, batch_rows=1, certify=False, out="{tmp_path}/e.h5")
        np.save("{tmp_path}/values.npy", eigs.eigenvalue.values)
        print(len(calls))
    """)

    def run(kill_at):
        environment = os.environ | {"KILL_AT": str(kill_at)}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    assert run(6).returncode == -signal.SIGKILL
    assert (tmp_path / "e.h5.part").exists()
    assert not (tmp_path / "e.h5").exists()
    ended = run(0)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == 2 + 4  # five of nine rows were there; two are checked
    resumed = np.load(tmp_path / "values.npy")
    (tmp_path / "e.h5").unlink()
    assert int(run(0).stdout) == 9
    np.testing.assert_allclose(resumed, np.load(tmp_path / "values.npy"), rtol=1e-12)


def test_a_folder_that_is_missing_is_named_before_anything_is_computed(descent, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; create it first"):
        top_eigenpairs(interrupted_after(descent.objective, 0), descent.checkpoints, out=tmp_path / "nowhere" / "e.h5")


def test_a_part_that_is_no_file_of_numbers_is_replaced(descent, tmp_path):
    (tmp_path / "e.h5.part").write_bytes(b"\x89HDF\r\n\x1a\n and then nothing")
    rows = RowsInFile(tmp_path / "e.h5", {"step": np.arange(3)}, {"tol": None})
    assert rows.n_rows == 0
    rows.write({"x": xr.Variable(("step", "mode"), np.ones((2, 2), bool))})
    rows.close()
    again = RowsInFile(tmp_path / "e.h5", {"step": np.arange(3)}, {"tol": None})
    assert again.n_rows == 2
    again.write({"x": xr.Variable(("step", "mode"), np.zeros((1, 2), bool))})
    finished = again.finish()
    np.testing.assert_array_equal(finished.x, [[True, True], [True, True], [False, False]])
    assert finished.x.dtype == bool
    finished.close()
