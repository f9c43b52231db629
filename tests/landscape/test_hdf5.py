"""Datasets survive their file: `identical` after a round trip, and readable by other programs."""

import h5py
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landscape import RunFormatError, load_dataset, save_dataset

TYPES = st.one_of(
    hnp.floating_dtypes(sizes=(32, 64), endianness="="),
    hnp.integer_dtypes(sizes=(16, 32, 64), endianness="="),
    hnp.unsigned_integer_dtypes(sizes=(8, 16, 32, 64), endianness="="),
    st.just(np.dtype(bool)),
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
ATTRS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.floats(), max_size=4)
    | st.lists(st.integers(-(2**70), 2**70), max_size=4)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    max_size=4,
)


@st.composite
def datasets(draw):
    """Datasets over up to three dims, some with coordinates (numbers or texts), some without, some of length 0."""
    sizes = draw(st.dictionaries(st.sampled_from(["step", "mode", "param"]), st.integers(0, 4), max_size=3))
    coords = {}
    for dim, size in sizes.items():
        kind = draw(st.sampled_from(["none", "int", "text"]))
        if kind == "int":
            coords[dim] = (dim, np.arange(size) * 3 - 1, draw(ATTRS))
        elif kind == "text":
            texts = draw(st.lists(TEXT, min_size=size, max_size=size, unique=True))
            coords[dim] = (dim, np.array(texts, dtype=str).reshape(size))
    if draw(st.booleans()):
        coords["at"] = draw(st.integers(-(2**63), 2**63 - 1))
    variables = {}
    for name in draw(st.lists(st.sampled_from(["eigenvalue", "loss", "ok", "Γ"]), unique=True)):
        dims = draw(st.permutations(sorted(sizes)))[: draw(st.integers(0, len(sizes)))]
        dtype = draw(TYPES)
        values = draw(hnp.arrays(dtype, tuple(sizes[dim] for dim in dims)))
        variables[name] = (tuple(dims), values, draw(ATTRS))
    return xr.Dataset(variables, coords, draw(ATTRS))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=datasets())
def test_a_dataset_is_identical_after_its_file(tmp_path_factory, dataset):
    path = tmp_path_factory.getbasetemp() / "property.h5"
    save_dataset(dataset, path)
    for lazy in (False, True):
        loaded = load_dataset(path, lazy=lazy)
        assert loaded.identical(dataset)
        numbers = [name for name, variable in dataset.variables.items() if variable.dtype.kind != "U"]
        assert all(loaded[name].dtype == dataset[name].dtype for name in numbers)
        loaded.close()


@pytest.fixture
def eigs():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "eigenvalue": (("step", "mode"), rng.normal(size=(3, 2)), {"long_name": "λ", "units": "steps since 2000"}),
            "converged": (("step", "mode"), [[True, False], [True, True], [False, False]]),
            "threshold": ("step", [2.0, np.nan, np.inf]),
            "eigenvector": (("step", "mode", "param"), rng.normal(size=(3, 2, 5)).astype(np.float32)),
        },
        {
            "step": [0, 25, 51],
            "mode": [0, 1],
            "phase": ("step", [0.0, 0.1, 0.2]),
            "name": ("mode", ["first", "zweite"]),
        },
        {"optimizer": "gd", "learning_rate": 1.0, "period": None, "certify": True, "rise": [0.05, 0.1]},
    )


def test_other_programs_open_the_file(eigs, tmp_path):
    path = save_dataset(eigs, tmp_path / "eigs.h5")
    with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as opened:
        xr.testing.assert_equal(opened, eigs)
        assert opened.attrs["learning_rate"] == 1.0
    with h5py.File(path) as file:
        assert file["eigenvalue"].dims[0][0] == file["step"]
        assert file["converged"].attrs["dtype"] == b"bool"
        np.testing.assert_array_equal(file["threshold"][()], eigs.threshold)


def test_lazy_values_are_read_when_used_and_only_while_the_file_is_open(eigs, tmp_path):
    lazy = load_dataset(save_dataset(eigs, tmp_path / "eigs.h5"), lazy=True)
    xr.testing.assert_identical(lazy.isel(step=[2, 0], mode=-1).load(), eigs.isel(step=[2, 0], mode=-1))
    xr.testing.assert_identical(lazy.eigenvector[::-2, :, 1:4].load(), eigs.eigenvector[::-2, :, 1:4])
    lazy.close()
    with pytest.raises(ValueError, match=r"is closed.*load"):
        lazy.eigenvector.load()


def test_saving_replaces_whole_files_or_refuses(eigs, tmp_path):
    path = save_dataset(eigs, tmp_path / "eigs.h5")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_dataset(eigs, path, overwrite=False)
    with pytest.raises(TypeError, match="worse has type complex128"):
        save_dataset(eigs.assign(worse=("step", [1j, 2, 3])), path)
    assert load_dataset(path).identical(eigs)  # the failed attempt left the file as it was
    assert [file.name for file in tmp_path.iterdir()] == ["eigs.h5"]
    save_dataset(eigs.isel(step=0), path)
    assert load_dataset(path).identical(eigs.isel(step=0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda ds: ds.assign({"a/b": ds.threshold}), ValueError, "without a slash, got 'a/b'"),
        (lambda ds: ds.assign(when=("step", np.array([0, 1, 2], "M8[s]"))), TypeError, "store numbers"),
        (lambda ds: ds.assign(any=("step", np.array([{}, {}, {}], object))), TypeError, "any has type object"),
        (lambda ds: ds.stack(pair=("step", "mode")), ValueError, "reset_index"),
        (lambda ds: ds.assign_attrs(model=object()), TypeError, "cannot store <object"),
        (lambda ds: ds.eigenvalue, TypeError, "to_dataset"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(eigs, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        save_dataset(change(eigs), tmp_path / "bad.h5")
    assert not list(tmp_path.iterdir())


def test_bad_files_get_one_clear_line(eigs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.h5"):
        load_dataset(tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(RunFormatError, match="not an HDF5 file"):
        load_dataset(tmp_path / "text.h5")
    with pytest.raises(RunFormatError, match="is a directory"):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        save_dataset(eigs, tmp_path / "no" / "eigs.h5")


def test_nothing_outside_the_file_is_read(eigs, tmp_path):
    save_dataset(eigs, tmp_path / "eigs.h5")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file["loss"] = h5py.ExternalLink("eigs.h5", "threshold")
    with pytest.raises(RunFormatError, match="not followed"):
        load_dataset(tmp_path / "external.h5")
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        scale = file.create_dataset("step", data=[0, 1, 2])
        scale.make_scale("step")
        file.create_dataset("loss", shape=(3,), dtype="f8", external=[(str(tmp_path / "raw"), 0, 24)])
    with pytest.raises(RunFormatError, match="another file"):
        load_dataset(tmp_path / "storage.h5")
