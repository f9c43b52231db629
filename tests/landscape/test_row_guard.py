"""What open_run reads is what was recorded: rows, data sets and attributes are compared with checksums when read."""

import pickle

import h5py
import numpy as np
import pytest
import xarray as xr

from landscape import ParamLayout, RunFormatError, RunWriter, load_dataset, open_run, save_dataset, verify

N = 500


@pytest.fixture
def path(tmp_path):
    layout = ParamLayout(("weight", "größe"), ((2, 3), (4,)))
    data = {"training": (np.arange(40.0).reshape(20, 2), np.arange(20))}
    history = {"loss": {}, "class_weight": {"class": 2}}
    with RunWriter(tmp_path / "a.h5", layout, history=history, data=data, config={"name": "größe"}) as writer:
        for step in range(N):
            writer.append(step, np.arange(10.0) + step, loss=1.0 + step, class_weight=[step, 1.0])
    return tmp_path / "a.h5"


def flip(path, name, row, byte=3):
    """Flip a bit of a stored row, as a disk may."""
    with h5py.File(path) as file:
        dataset = file[name]
        start, before = dataset.id.get_offset(), row
        if dataset.chunks:
            start = dataset.id.get_chunk_info_by_coord((row, *(0 for _ in dataset.shape[1:]))).byte_offset
            before = row % dataset.chunks[0]
        inner = before * dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    with path.open("r+b") as raw:
        raw.seek(start + inner + byte)
        old = raw.read(1)[0]
        raw.seek(-1, 1)
        raw.write(bytes([old ^ 0x10]))


@pytest.mark.parametrize("name", ["loss", "class_weight", "checksum"])
def test_a_changed_row_of_the_history_is_an_error_where_it_is_read(path, name):
    flip(path, f"history/{name}", 321)
    with open_run(path) as run:
        assert run.history.loss[:321].values[-1] == 321
        with pytest.raises(RunFormatError, match=r"rows of history are damaged \(steps .*check=False"):
            run.history.loss.values  # noqa: B018
        with pytest.raises(RunFormatError):
            run.history.class_weight.isel(step=321).values  # noqa: B018
        assert run.history.loss.isel(step=[5, 499]).values.tolist() == [6, 500]
        assert run.checkpoints.params.values.shape == (N, 10)


@pytest.mark.parametrize("name", ["step", "step_check"])
def test_a_changed_step_is_an_error_before_any_row_is_read(path, name):
    flip(path, f"history/{name}", 321)
    with open_run(path) as run:
        with pytest.raises(RunFormatError, match="steps of history are damaged"):
            run.history  # noqa: B018
        assert run.checkpoints.params.values.shape == (N, 10)
    with open_run(path, check=False) as run:
        steps = run.history.step.values
    assert np.flatnonzero(steps != np.arange(N)).tolist() == ([321] if name == "step" else [])
    assert [finding.rows for finding in verify(path, progress=False).damaged] == [((321, 321),)]


def test_check_false_reads_what_is_there(path):
    flip(path, "checkpoints/params", 7)
    with open_run(path, check=False) as run:
        params = run.checkpoints.params.values
    changed = np.argwhere(params != np.arange(10.0) + np.arange(N)[:, None])
    assert changed.tolist() == [[7, 0]]


@pytest.mark.parametrize("rows", [slice(None), slice(499, None, -3), [3, 400, 7], 250, slice(100, 100)])
def test_sound_rows_are_read_alike(path, rows):
    with open_run(path) as run, open_run(path, check=False) as unchecked:
        loss = run.history.loss[rows]
        np.testing.assert_array_equal(loss, unchecked.history.loss[rows])
        np.testing.assert_array_equal(loss, loss.step + 1.0)
        np.testing.assert_array_equal(run.checkpoints.params[rows, 3], unchecked.checkpoints.params[rows, 3])


def test_rows_of_a_variable_that_travelled_are_checked_there(path):
    with open_run(path) as run:
        assert run.checkpoints.params[7].values[0] == 7
        sent = pickle.dumps(run.checkpoints.params)
    flip(path, "checkpoints/params", 7)
    arrived = pickle.loads(sent)
    assert arrived[8].values[0] == 8
    with pytest.raises(RunFormatError, match="steps 7"):
        arrived[7].values  # noqa: B018


def test_a_changed_sample_is_an_error(path):
    flip(path, "data/training/inputs", 11)
    with open_run(path) as run:
        assert run.data["training"].targets.values[11] == 11
        with pytest.raises(RunFormatError, match="data/training/inputs is damaged"):
            run.data["training"].inputs.values  # noqa: B018


@pytest.mark.parametrize("name", ["data/training/inputs", "data/training/targets", "history/class"])
def test_values_that_a_file_system_lost_are_no_zeros(path, name):
    with h5py.File(path) as file:
        start, n_bytes = file[name].id.get_offset(), file[name].id.get_storage_size()
    with path.open("r+b") as raw:
        raw.seek(start)
        raw.write(bytes(n_bytes))
    with open_run(path, check=False) as run, pytest.raises(RunFormatError, match=f"{name} is damaged"):
        _ = run.history, run.data["training"].load(), run.tensors
    assert verify(path, progress=False).damaged


def test_no_attribute_or_dim_is_read_from_the_heap_that_has_no_checksum(path):
    with open_run(path) as run:
        before = run.history.load(), run.checkpoints.load(), run.config, run.tensors, run.data["training"].load()
    raw = bytearray(path.read_bytes())
    assert raw.count(b"GCOL") > 0, "HDF5 keeps its lists of scales there"
    path.write_bytes(raw.replace(b"GCOL", b"????"))
    with h5py.File(path) as file, pytest.raises(Exception, match="global heap"):
        file["history/loss"].attrs["DIMENSION_LIST"]
    with open_run(path) as run:
        after = run.history.load(), run.checkpoints.load(), run.config, run.tensors, run.data["training"].load()
    for one, other in zip(before, after, strict=True):
        assert one.identical(other) if isinstance(one, xr.Dataset) else one == other


def test_texts_of_any_length_stay_and_a_changed_one_is_an_error(tmp_path):
    texts = xr.Dataset(
        {"note": (("name", "kind"), np.array([["ä", ""], ["abc", "€uro"]]))},
        {"name": ["a", "long name"], "kind": ["x", "ÿ"]},
        {"empty": "", "long": "é" * 70_000},
    )
    path = save_dataset(texts, tmp_path / "a.h5")
    assert load_dataset(path).identical(texts)
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        np.testing.assert_array_equal(opened.note.values.astype(str), texts.note.values)
    at = path.read_bytes().index("€uro".encode())
    with path.open("r+b") as raw:
        raw.seek(at + 4)
        raw.write(b"X")
    with pytest.raises(RunFormatError, match="h5: note is damaged"):
        load_dataset(path)


def test_a_state_of_which_both_copies_are_damaged_is_an_error(tmp_path):
    layout = ParamLayout(("w",), ((3,),))
    writer = RunWriter(tmp_path / "a.h5", layout, history=["loss"], state={"counter": np.zeros(4)})
    for step in range(3):
        writer.save_state(step, {"counter": np.full(4, float(step))})
        writer.append(step, np.zeros(3), loss=0.0)
        writer.commit()
    writer.finish("interrupted")
    with open_run(tmp_path / "a.h5") as run:
        assert int(run.state.step) == 2
    for slot, expected in ((0, 1), (1, None)):
        with h5py.File(tmp_path / "a.h5") as file:
            at = file["state/counter"].id.get_offset() + 32 * slot
        raw = bytearray((tmp_path / "a.h5").read_bytes())
        raw[at + 6] ^= 1
        (tmp_path / "a.h5").write_bytes(raw)
        with open_run(tmp_path / "a.h5") as run:
            if expected is not None:
                assert int(run.state.step) == expected  # the older one is whole
            else:
                with pytest.raises(RunFormatError, match="both copies of the state"):
                    run.state  # noqa: B018
