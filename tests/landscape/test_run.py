"""Run files: what was recorded comes back, to our reader and to any other."""

import shutil
import subprocess
import tracemalloc

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from landscape import ParamLayout, RunFormatError, RunWriter, open_run
from landscape.run import at_step

LAYOUT = ParamLayout(("0.weight", "0.bias"), ((2, 3), (2,)))
HISTORY = {"loss": {}, "accuracy": {}, "class_weight": {"class": 3}}
DATA = {"training": (torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])), "validation": (np.ones((4, 3, 2)), np.ones(4))}
ATTRS = {"optimizer": "gd", "learning_rate": 0.5, "period": None, "nesterov": False, "betas": [0.9, 0.99]}


def record(path, n_steps=10, every=3, finish="complete", **options):
    """A run of known values: loss 1/(1 + step), θ_t = t + (0, 1/8, …, 7/8)."""
    options = {"history": HISTORY, "attrs": ATTRS, "data": DATA, "producer": "dynloss", "block_rows": 4} | options
    with RunWriter(path, LAYOUT, **options) as writer:
        for step in range(n_steps):
            params = torch.arange(8, dtype=torch.float64) / 8 + step if step % every == 0 else None
            writer.append(step, params, loss=1 / (1 + step), accuracy=np.nan, class_weight=torch.tensor([1.0, step, 3]))
        writer.finish(finish)
    return path


def eigenpairs(steps, n_modes=2):
    shape = (len(steps), n_modes)
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "eigenvalue": (("step", "mode"), rng.normal(size=shape)),
            "converged": (("step", "mode"), rng.random(shape) < 0.5),
            "eigenvector": (("mode", "step", "param"), rng.normal(size=(n_modes, len(steps), 8))),
            "n_hvp": ("step", np.arange(len(steps)) + 11),
        },
        {"step": list(steps), "mode": np.arange(n_modes)},
    )


@pytest.mark.parametrize("block_rows", [1, 3, 64])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_was_recorded_comes_back(tmp_path, block_rows, dtype):
    record(tmp_path / "a.h5", block_rows=block_rows, dtype=dtype, config={"seed": 0, "windows": [(1, 2)]})
    with open_run(tmp_path / "a.h5") as run:
        assert (run.status, run.producer, run.config) == ("complete", "dynloss", {"seed": 0, "windows": [[1, 2]]})
        assert run.software["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert run.layout == LAYOUT
        assert run.layout == ParamLayout.from_json(run.checkpoints.attrs["layout"])
        np.testing.assert_array_equal(run.history.step, np.arange(10))
        np.testing.assert_array_equal(run.history.loss, 1 / (1 + np.arange(10)))
        assert run.history.accuracy.isnull().all()
        np.testing.assert_array_equal(run.history.class_weight.sel({"class": 1}), np.arange(10))
        np.testing.assert_array_equal(run.checkpoints.step, [0, 3, 6, 9])
        np.testing.assert_array_equal(run.checkpoints.params.sel(step=6), np.arange(8) / 8 + 6)
        assert run.checkpoints.params.dtype == dtype
        assert run.history.attrs == ATTRS
        assert {name: run.checkpoints.attrs[name] for name in ATTRS} == ATTRS
        assert run.eigenpairs is None
        assert run.history.loss.attrs["long_name"] == "loss"
        for name, (inputs, targets) in DATA.items():
            np.testing.assert_array_equal(run.data[name].inputs, inputs)
            np.testing.assert_array_equal(run.data[name].targets, targets)
        assert run.data["validation"].inputs.dims == ("sample", "feature", "feature_1")
        assert run.data["training"].targets.dtype == np.int64


def test_eigenpairs_come_back_with_missing_values_marked(tmp_path):
    eigs = eigenpairs(range(0, 35, 5))
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"], n_modes=2, block_rows=3, attrs=ATTRS) as writer:
        writer.append_eigenpairs(eigs.isel(step=slice(0, 4)))
        for row in range(4, 7):
            writer.append_eigenpairs(eigs.isel(step=row))  # one step, without the dim
        with pytest.raises(ValueError, match="already holds step 30, got 5"):
            writer.append_eigenpairs(eigs.isel(step=[1]))
        with pytest.raises(ValueError, match="2 entries along mode, got 1"):
            writer.append_eigenpairs(eigs.isel(mode=[0]))
    with open_run(tmp_path / "a.h5") as run:
        for name in eigs.data_vars:
            xr.testing.assert_equal(run.eigenpairs[name], eigs[name].transpose("step", ...))
        assert run.eigenpairs.converged.dtype == bool
        assert not run.eigenpairs.certified.any()
        assert run.eigenpairs.overlap.isnull().all()
        assert run.eigenpairs.attrs == ATTRS


def test_other_programs_open_a_run(tmp_path):
    path = record(tmp_path / "a.h5", n_modes=1)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"landscape-run"
        assert file.attrs["status"] == b"complete"
        assert file["checkpoints/params"].shape == (4, 8)
        assert [len(axis) for axis in file["history/class_weight"].dims] == [1, 1]
    with xr.open_dataset(path, engine="h5netcdf", group="history") as history, open_run(path) as run:
        xr.testing.assert_equal(history.drop_vars(["checksum", "step_check"]), run.history)
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert set(tree.children) == {"history", "checkpoints", "eigenpairs", "layout", "data"}
        assert tree["layout"]["name"].values.tolist() == ["0.weight", "0.bias"]
        assert tree["data/training"].sizes == {"sample": 5, "feature": 2}


@pytest.mark.skipif(shutil.which("ncdump") is None, reason="needs ncdump (Debian's netcdf-bin)")
def test_netcdf_tools_read_a_run(tmp_path):
    path = record(tmp_path / "a.h5", n_modes=1)
    header = subprocess.run(["ncdump", "-h", path], capture_output=True, text=True, check=True).stdout
    assert "double class_weight(step, class)" in header
    assert "step = UNLIMITED ; // (10 currently)" in header
    values = subprocess.run(["ncdump", "-v", "/history/step", path], capture_output=True, text=True, check=True).stdout
    assert "step = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ;" in values


def test_checkpoints_alone_and_unlike_steps(tmp_path):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"]) as writer:
        writer.append(0, np.zeros(8), loss=np.inf)
        writer.append(7, loss=-np.inf)
        writer.append(8, np.full(8, np.nan))  # θ after the last update has no history
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.step.values.tolist() == [0, 7]
        assert run.history.loss.values.tolist() == [np.inf, -np.inf]
        assert run.checkpoints.step.values.tolist() == [0, 8]
        assert run.checkpoints.params[1].isnull().all()


def test_a_run_of_one_parameter_and_no_history(tmp_path):
    with RunWriter(tmp_path / "a.h5", ParamLayout(("w",), ((),)), history=[]) as writer:
        writer.append(3, torch.tensor([2.5]))
    with open_run(tmp_path / "a.h5") as run:
        assert run.checkpoints.params.values.tolist() == [[2.5]]
        assert run.layout.shapes == ((),)
        assert run.history.sizes == {"step": 0}


def test_appended_values_are_copied(tmp_path):
    params, loss = torch.zeros(8, dtype=torch.float64, requires_grad=True), torch.zeros(())
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"]) as writer:
        for step in range(3):
            writer.append(step, params, loss=loss)
            params.data += 1
            loss += 1
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.loss.values.tolist() == [0, 1, 2]
        assert run.checkpoints.params[:, 0].values.tolist() == [0, 1, 2]


def test_wrong_rows_are_refused_and_the_run_goes_on(tmp_path):
    row = {"loss": 1.0, "accuracy": 0.5, "class_weight": [1, 1, 1]}
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=HISTORY) as writer:
        writer.append(0, **row)
        with pytest.raises(ValueError, match="this row lacks accuracy, class_weight and has los, which"):
            writer.append(1, los=1.0, loss=1.0)
        with pytest.raises(ValueError, match="steps must increase: /history already holds step 0, got 0"):
            writer.append(0, **row)
        with pytest.raises(ValueError, match=r"params must have shape \(8,\), got \(7,\)"):
            writer.append(1, torch.zeros(7), **row)
        with pytest.raises(ValueError, match=r"class_weight must hold numbers of shape \(3,\): got \(2,\)"):
            writer.append(1, **(row | {"class_weight": [1, 2]}))
        with pytest.raises(ValueError, match="loss must hold numbers"):
            writer.append(1, **(row | {"loss": "low"}))
        with pytest.raises(ValueError, match="n_modes=k"):
            writer.append_eigenpairs(eigenpairs([1]))
        writer.append(1, torch.zeros(8), **row)
    with pytest.raises(ValueError, match="closed with status 'complete'"):
        writer.append(2, **row)
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.step.values.tolist() == [0, 1]
        assert run.checkpoints.step.values.tolist() == [1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_loses_no_row(tmp_path, error):
    def train():
        with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"]) as writer:
            for step in range(5):
                writer.append(step, loss=step)
            raise error

    with pytest.raises(error):
        train()
    with open_run(tmp_path / "a.h5") as run:
        assert run.status == "interrupted"
        assert run.history.loss.values.tolist() == [0, 1, 2, 3, 4]


def test_a_diverged_run_says_so(tmp_path):
    record(tmp_path / "a.h5", finish="diverged")
    with open_run(tmp_path / "a.h5") as run:
        assert run.status == "diverged"
        assert "diverged" in repr(run)
    with RunWriter(tmp_path / "b.h5", LAYOUT, history=["loss"]) as writer, pytest.raises(ValueError, match="one of"):
        writer.finish("done")


def test_existing_files_are_kept_unless_asked(tmp_path):
    path = record(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        record(path)
    with pytest.raises(ValueError, match="dtype must be"):
        record(path, overwrite=True, dtype="float16")
    with pytest.raises(TypeError, match="cannot store <object"):
        record(path, overwrite=True, config={"model": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
    record(path, n_steps=2, overwrite=True)
    with open_run(path) as run:
        assert run.history.sizes["step"] == 2
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        record(tmp_path / "no" / "a.h5")


def moment(step):
    """A vector of the optimiser at `step`."""
    return np.linspace(0, 1, 8) ** 2 + step


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("block_rows", [1, 3, 64])
def test_vectors_of_the_optimiser_come_back_beside_the_parameters(tmp_path, dtype, block_rows):
    names = ["second_moment", "velocity"]
    with RunWriter(
        tmp_path / "a.h5", LAYOUT, history=["loss"], optimizer_state=names, dtype=dtype, block_rows=block_rows
    ) as writer:
        for step in range(10):
            state = {"velocity": -moment(step), "second_moment": torch.from_numpy(moment(step))}
            writer.append(step, np.full(8, step) if step % 2 == 0 else None, optimizer_state=state, loss=0.5)
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.checkpoints.data_vars) == ["params", *names]
        assert run.checkpoints.step.values.tolist() == [0, 2, 4, 6, 8]
        for name, sign in [("second_moment", 1), ("velocity", -1)]:
            variable = run.checkpoints[name]
            assert (variable.dims, variable.dtype) == (("step", "param"), dtype)
            assert variable.attrs["long_name"] == name.replace("_", " ")
            for step in (0, 4, 8):
                np.testing.assert_array_equal(variable.sel(step=step), (sign * moment(step)).astype(dtype))
        assert run.checkpoints.params[:, 3].values.tolist() == [0, 2, 4, 6, 8]
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["checkpoints/second_moment"][1], moment(2).astype(dtype))
    with xr.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="checkpoints") as checkpoints:
        np.testing.assert_array_equal(checkpoints.velocity.sel(step=6), -moment(6).astype(dtype))


def test_vectors_of_the_optimiser_stay_in_the_file_until_a_row_is_asked_for(tmp_path):
    n, rows = 100_000, 40  # 32 MB each
    layout, options = ParamLayout(("w",), ((n,),)), {"history": [], "optimizer_state": ["second_moment"]}
    with RunWriter(tmp_path / "a.h5", layout, **options) as writer:
        for step in range(rows):
            writer.append(step, np.zeros(n), optimizer_state={"second_moment": np.full(n, float(step))})
    with open_run(tmp_path / "a.h5") as run:
        tracemalloc.start()
        row = run.checkpoints.sel(step=30).second_moment.load()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 8 * n  # both vectors are compared with the row's checksum
        assert (row == 30).all()
        whole = run.checkpoints.second_moment
    with pytest.raises(ValueError, match=r"is closed: read inside"):
        whole.load()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, r"must give second_moment, as the writer declared; got \[\]"),
        ({}, r"must give second_moment, as the writer declared; got \[\]"),
        ({"velocity": moment(0)}, r"must give second_moment, .* got \['velocity'\]"),
        ({"second_moment": moment(0), "velocity": moment(0)}, r"got \['second_moment', 'velocity'\]"),
        ({"second_moment": moment(0)[:7]}, r"second_moment must have shape \(8,\), got \(7,\)"),
        ({"second_moment": torch.zeros(2, 4)}, r"second_moment must have shape \(8,\), got \(2, 4\)"),
        ({"second_moment": 1.0}, r"second_moment must have shape \(8,\), got \(\)"),
    ],
)
def test_vectors_of_the_optimiser_that_were_not_declared_or_do_not_fit_are_refused_and_the_run_goes_on(
    tmp_path, state, message
):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"], optimizer_state=["second_moment"]) as writer:
        writer.append(0, np.zeros(8), optimizer_state={"second_moment": moment(0)}, loss=0)
        with pytest.raises(ValueError, match=message) as caught:
            writer.append(1, np.ones(8), optimizer_state=state, loss=1)
        assert "\n" not in str(caught.value)
        writer.append(1, np.full(8, 2.0), optimizer_state={"second_moment": moment(1)}, loss=2)
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.loss.values.tolist() == [0, 2]
        np.testing.assert_array_equal(run.checkpoints.second_moment, [moment(0), moment(1)])
        np.testing.assert_array_equal(run.checkpoints.params, [np.zeros(8), np.full(8, 2.0)])


def test_a_writer_that_declared_no_vectors_of_the_optimiser_takes_none(tmp_path):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=[]) as writer:
        with pytest.raises(ValueError, match="optimizer_state must give nothing, as the writer declared; got"):
            writer.append(0, np.zeros(8), optimizer_state={"second_moment": moment(0)})
        writer.append(0, np.zeros(8))
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.checkpoints.data_vars) == ["params"]


@pytest.mark.parametrize("name", ["params", "param", "step", "checksum"])
def test_vectors_of_the_optimiser_must_not_take_names_of_the_file_s_own(tmp_path, name):
    with pytest.raises(ValueError, match=rf"names of the optimizer_state must not be .* got \['{name}'\]"):
        RunWriter(tmp_path / "a.h5", LAYOUT, history=[], optimizer_state=["velocity", name])
    assert not list(tmp_path.iterdir())


def test_one_row_of_a_large_file_costs_the_memory_of_one_row(tmp_path):
    n, rows = 100_000, 40  # 32 MB
    with RunWriter(tmp_path / "a.h5", ParamLayout(("w",), ((n,),)), history=["loss"]) as writer:
        for step in range(rows):
            writer.append(step, np.full(n, float(step)))
    with open_run(tmp_path / "a.h5") as run:
        tracemalloc.start()
        row = run.checkpoints.sel(step=30).params.load()
        entry = run.checkpoints.params.isel(step=slice(5, 9), param=-1).values
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 8 * n  # both vectors are compared with the row's checksum
        assert (row == 30).all()
        assert entry.tolist() == [5, 6, 7, 8]


def test_a_step_that_was_not_recorded_is_named_with_its_neighbours(tmp_path):
    with open_run(record(tmp_path / "a.h5")) as run:
        assert at_step(run.checkpoints, 6).params[0] == 6
        for step, near in ((4, "3, 6"), (12, "9"), (-1, "0")):
            with pytest.raises(KeyError, match=f"step {step} was not recorded; the nearest are {near}"):
                at_step(run.checkpoints, step)


def test_a_closed_run_says_so(tmp_path):
    with open_run(record(tmp_path / "a.h5")) as run:
        loss = run.history.loss
        assert "10 (steps 0 … 9)" in repr(run)
    for use in (lambda: loss.values, lambda: run.data, lambda: run.checkpoints.params.values):
        with pytest.raises(ValueError, match=r"is closed: read inside"):
            use()
    assert "closed" in repr(run)


def test_bad_files_get_one_clear_line(tmp_path):
    record(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_run(tmp_path / "nowhere.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RunFormatError, match="is not a run file"):
        open_run(tmp_path / "other.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(RunFormatError, match="format version 99, this package reads up to 1: update it"):
        open_run(tmp_path / "a.h5")
