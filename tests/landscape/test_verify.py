"""`landscape verify` finds each kind of damage, says where it is, and calls sound what is sound."""

import shutil
import struct
import zlib

import h5py
import numpy as np
import pytest
import xarray as xr

import dynloss
from landscape import ParamLayout, RunFormatError, RunWriter, open_run, verify
from landscape.__main__ import main
from landscape.netcdf import add_variable
from landscape.run_tables import row_checksums, table_names

LAYOUT = ParamLayout(("w", "b"), ((9,), ()))
N = 200


def record(path, finish="complete", dtype="float64", **options):
    """A run of 200 random rows, each with θ, and 20 unit eigenvectors."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(20, 10, 10)))[0][:, :2]
    eigs = xr.Dataset(
        {
            "eigenvalue": (("step", "mode"), rng.normal(size=(20, 2))),
            "eigenvector": (("step", "mode", "param"), vectors),
        },
        {"step": np.arange(20) * 10},
    )
    options = {"n_modes": 2, "block_rows": 32, "state": {"theta": np.zeros(10)}} | options
    data = {"training": (rng.normal(size=(7, 2)), np.arange(7))}
    history = {"loss": {}, "class_weight": {"class": 3}}
    with RunWriter(path, LAYOUT, history=history, data=data, dtype=dtype, **options) as writer:
        for step in range(N):
            writer.append(step, rng.normal(size=10), loss=rng.random(), class_weight=rng.random(3))
        if options["n_modes"]:
            writer.append_eigenpairs(eigs)
        for step in (100, 200) if options["state"] else ():
            writer.save_state(step, {"theta": np.full(10, float(step))})
            writer.commit()
        writer.finish(finish)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sound") / "a.h5")


@pytest.fixture
def path(sound, tmp_path):
    return shutil.copy(sound, tmp_path / "a.h5")


def damage(path):
    """(where, text, rows) of all damage that is found in `path`."""
    return [(finding.where, finding.text, finding.rows) for finding in verify(path).damaged]


def the_damage(path):
    (found,) = damage(path)
    return found


def flip_a_byte(path, name, row):
    """Change one byte of a stored row behind HDF5's back."""
    with h5py.File(path) as file:
        dataset = file[name]
        length = dataset.chunks[0]
        chunk = dataset.id.get_chunk_info_by_coord((row - row % length, *(0,) * (dataset.ndim - 1)))
        per_row = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    with open(path, "r+b") as file:
        place = chunk.byte_offset + row % length * per_row + per_row // 2
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def sign(group):
    """Write the right checksum of every row."""
    values = [group[name][()] for name in table_names(group)]
    group["checksum"][...] = row_checksums(group["step"][()], values)
    group["step_check"][...] = ~group["step"][()]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("status", ["complete", "diverged", "interrupted"])
def test_a_sound_run_has_no_damage(tmp_path, status, dtype):
    report = verify(record(tmp_path / "a.h5", status, dtype))
    assert report.damaged == ()
    assert report.status == status
    said = {finding.where: finding.text for finding in report.findings if finding.kind == "ok"}
    assert said["history"] == "200 rows, steps 0 … 199, checksums right"
    assert said["checkpoints"] == "200 rows, steps 0 … 199, checksums right"
    assert said["eigenpairs"] == "20 rows, steps 0 … 190, checksums right"
    assert said["state"] == "whole, at step 200, checksum right"
    assert {finding.where for finding in report.findings if finding.kind == "skipped"} == {"update rule"}


def test_a_run_without_rows_is_sound(tmp_path):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"], n_modes=1, state={"theta": np.zeros(10)}):
        pass
    assert damage(tmp_path / "a.h5") == []


@pytest.mark.parametrize(
    ("name", "table", "block_bytes"),
    [
        ("checkpoints/params", "checkpoints", 2**24),
        ("history/loss", "history", 1000),
        ("history/class_weight", "history", 2**24),
        ("eigenpairs/eigenvalue", "eigenpairs", 1),
        ("eigenpairs/eigenvector", "eigenpairs", 1000),
        ("history/checksum", "history", 2**24),
    ],
)
def test_a_flipped_byte_is_found_in_its_row(path, name, table, block_bytes, monkeypatch):
    monkeypatch.setattr("landscape.row_checks.BLOCK_BYTES", block_bytes)
    for row in (11, 12, 17):
        flip_a_byte(path, name, row)
    n = 20 if table == "eigenpairs" else N
    where, text, rows = the_damage(path)
    assert (where, rows) == (table, ((11, 12), (17, 17)))
    assert text == f"the checksum differs in rows 11–12, 17 (3 of {n}): the others are right"


def test_a_changed_step_is_found_and_only_its_row_blamed(path):
    flip_a_byte(path, "history/step", 30)
    assert the_damage(path)[2] == ((30, 30),)


def test_steps_that_do_not_increase_are_found_although_their_checksums_are_right(path):
    with h5py.File(path, "r+") as file:
        file["history/step"][50] = 49
        sign(file["history"])
    assert the_damage(path) == ("history", "steps do not increase at row 50", ((50, 50),))


def test_a_short_column_is_found(path):
    with h5py.File(path, "r+") as file:
        file["history/loss"].resize(150, axis=0)
    where, text, rows = the_damage(path)
    assert (where, rows) == ("history/loss", ((150, 199),))
    assert text == "holds 150 rows where 200 are committed"


def test_rows_that_were_not_committed_are_no_damage(path):
    with h5py.File(path, "r+") as file:
        file["history/loss"].resize(210, axis=0)
    report = verify(path)
    assert report.damaged == ()
    assert "10 rows behind the last committed one" in str(report)


def test_a_claim_of_more_rows_than_the_file_holds_takes_no_time(path):
    with h5py.File(path, "r+") as file:
        for dataset in file["history"].values():
            if dataset.maxshape[0] is None:
                dataset.resize(2**44, axis=0)
    found = damage(path)
    assert found[0][1].startswith("step claims 17592186044416 rows, and holds 1024")
    lost = {row for *_, rows in found for first, last in rows for row in range(first, last + 1)}
    assert lost == set(range(200, 1024))  # the rest of the last chunk, which was never written


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_said_and_no_damage(tmp_path, value):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss", "accuracy"]) as writer:
        for step in range(10):
            writer.append(step, np.full(10, value if step == 9 else 1), loss=value if step > 7 else 1, accuracy=np.nan)
        writer.finish("diverged")
    report = verify(tmp_path / "a.h5")
    assert report.damaged == ()
    notes = {(finding.where, finding.text, finding.rows) for finding in report.findings if finding.kind == "note"}
    assert notes == {
        ("history", "loss: 2 values not finite, at step 8 … 9", ((8, 9),)),
        ("history", "accuracy: not finite in any row (not recorded?)", ()),
        ("checkpoints", "params: 10 values not finite, at step 9", ((9, 9),)),
    }


def test_a_wrong_type_is_found_and_the_rest_is_checked(path):
    with h5py.File(path, "r+") as file:
        values = file["history/loss"][()]
        del file["history/loss"]
        add_variable(file["history"], "loss", ("step",), values.astype(np.int32))
    flip_a_byte(path, "checkpoints/params", 3)
    (where, text, _), other = damage(path)
    assert (where, text) == ("history/loss", "cannot be read: its type is int32, not float64")
    assert other[2] == ((3, 3),)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("checkpoints/params", {"checkpoints/params", "layout"}),
        ("eigenpairs/eigenvector", {"eigenpairs/eigenvector"}),
        ("history/checksum", {"history/checksum"}),
        ("history/step", {"history", "state"}),  # a state counts the rows of the history
        ("history", {"history", "state"}),
        ("data", {"data"}),
        ("data/training/targets", {"data/training"}),
        ("layout", {"layout"}),
        ("layout/offset", {"layout"}),
        ("state/rows", {"state"}),
    ],
)
def test_what_is_missing_is_named(path, name, where):
    with h5py.File(path, "r+") as file:
        del file[name]
    assert {found[0] for found in damage(path)} == where


def test_an_axis_without_a_scale_is_found(path):
    with h5py.File(path, "r+") as file:
        file["history/class_weight"].dims[1].detach_scale(file["history/class"])
        del file["history/class_weight"].attrs["_Netcdf4Coordinates"]
    where, text, _ = the_damage(path)
    assert where == "history/class_weight"
    assert "an axis without a dimension scale" in text


def test_links_to_elsewhere_are_not_followed(path, tmp_path):
    shutil.copy(path, tmp_path / "b.h5")
    with h5py.File(path, "r+") as file:
        del file["history/loss"]
        file["history/loss"] = h5py.ExternalLink("b.h5", "/history/loss")
        del file["data/training/inputs"]
        file["data/training/inputs"] = h5py.SoftLink("/checkpoints/params")
    found = damage(path)
    assert [where for where, *_ in found] == ["history/loss", "data/training"]
    assert all("a link to somewhere else, which is not followed" in text for _, text, _ in found)


def test_scaled_eigenvectors_are_found_although_their_checksum_is_right(path):
    with h5py.File(path, "r+") as file:
        file["eigenpairs/eigenvector"][7, 1] *= 1.0001
        sign(file["eigenpairs"])
    assert the_damage(path) == ("eigenpairs", "eigenvectors are not of unit length in row 7 (1 of 20)", ((7, 7),))


def test_a_damaged_slot_of_the_state_is_found(path):
    with h5py.File(path, "r+") as file:
        file["state/theta"][0, 3] += 1
    assert the_damage(path)[:2] == ("state", "1 of 2 slots is damaged; the other one is whole")
    with h5py.File(path, "r+") as file:
        file["state/theta"][1, 3] += 1
    where, text, _ = the_damage(path)
    assert (where, text) == ("state", "no slot holds a whole state of committed rows; the run cannot be resumed")


def test_a_layout_that_is_not_that_of_the_parameters_is_found(path):
    with h5py.File(path, "r+") as file:
        size = file["layout/size"]
        size[0] = 8
        size.attrs["crc32"] = np.uint32(zlib.crc32(size[()].tobytes()))
    assert "sizes or offsets differ from the attribute" in the_damage(path)[1]
    with h5py.File(path, "r+") as file:
        file["layout/size"][0] = 9
        file["checkpoints"].attrs["layout"] = '[["w", [8]], ["b", []]]'
    assert any("its tensors do not have the 10 entries of θ" in text for _, text, _ in damage(path))


def test_a_file_that_is_cut_short_is_found_and_its_first_rows_stay_readable(tmp_path):
    path = record(tmp_path / "a.h5", state=None, n_modes=0)
    with h5py.File(path) as file:
        params = file["checkpoints/params"].id
        chunks = [params.get_chunk_info(i) for i in range(params.get_num_chunks())]
        length = file["checkpoints/params"].chunks[0]
    last = max(range(len(chunks)), key=lambda i: chunks[i].byte_offset)
    with open(path, "r+b") as file:
        end = struct.unpack_from("<Q", file.read(48), 28)[0]
        file.truncate(chunks[last].byte_offset)
    try:
        found = damage(path)
    except RunFormatError as error:  # where HDF5 wrote an index behind the last rows
        pytest.fail(f"not even opened: {error}")
    assert found[0][1] == f"is cut short: {chunks[last].byte_offset} of {end} bytes"
    lost = [rows for where, _, rows in found if where.startswith("checkpoints")]
    assert lost == [((last * length, min(N, (last + 1) * length) - 1),)]


def test_rows_that_hdf5_cannot_read_are_told_from_those_that_it_can(path, monkeypatch):
    read = h5py.Dataset.read_direct

    def failing(dataset, values, source, destination):
        rows = range(*source.indices(N))
        if dataset.name == "/history/loss" and (40 in rows or 41 in rows):
            raise OSError("no such chunk")
        read(dataset, values, source, destination)

    monkeypatch.setattr(h5py.Dataset, "read_direct", failing)
    assert the_damage(path) == ("history/loss", "cannot be read in rows 40–41 (2 of 200)", ((40, 41),))


# What only the objective can tell.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "gd.h5")


def train(path, **settings):
    settings = {"n_steps": 30, "checkpoint_every": 1, "learning_rate": 0.5} | settings
    loss = dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=10, period=20)
    data = dynloss.spiral(n_per_class=10, n_classes=3, seed=0)
    dynloss.train(dynloss.mlp(n_inputs=2, width=5, n_classes=3, seed=0), loss, data, record=path, **settings)
    return path


def said(report, kind):
    return {finding.where: finding.text for finding in report.findings if finding.kind == kind}


def test_losses_and_updates_are_those_of_the_objective(trained):
    report = verify(trained)
    assert report.damaged == ()
    ok = said(report, "ok")
    assert ok["loss"] == "as recorded at 30 steps compared"
    assert ok["update rule"] == "30 updates compared follow θ − η∇F, of 30 saved"
    assert said(verify(trained, n_samples=4), "ok")["update rule"].startswith("4 updates compared")
    assert said(verify(trained, n_samples=0), "skipped") == {"update rule": "not asked for"}


def test_a_changed_checkpoint_with_a_right_checksum_breaks_the_update_rule(trained, tmp_path):
    path = shutil.copy(trained, tmp_path / "gd.h5")
    with h5py.File(path, "r+") as file:
        file["checkpoints/params"][12, 3] += 1e-6
        sign(file["checkpoints"])
    loss, updates = verify(path).damaged
    assert loss.text.startswith(
        "the objective gives another loss than was recorded at 1 of 30 steps compared: at step 12"
    )
    assert loss.rows == ((12, 12),)
    assert updates.text.startswith("2 of 30 updates compared do not follow θ − η∇F: from step 1")
    assert updates.rows == ((11, 13),)


def test_a_wrong_learning_rate_breaks_the_update_rule_alone(trained, tmp_path):
    path = shutil.copy(trained, tmp_path / "gd.h5")
    with h5py.File(path, "r+") as file:
        file["checkpoints"].attrs["learning_rate"] = 0.5001
    (updates,) = verify(path).damaged
    assert updates.text.startswith("30 of 30 updates compared do not follow")


def test_a_changed_loss_with_a_right_checksum_is_found(trained, tmp_path):
    path = shutil.copy(trained, tmp_path / "gd.h5")
    with h5py.File(path, "r+") as file:
        file["history/loss"][5] *= 1 + 1e-7
        sign(file["history"])
    (loss,) = verify(path).damaged
    assert loss.rows == ((5, 5),)


def test_a_diverged_run_is_no_damage(tmp_path):
    with pytest.warns(RuntimeWarning, match="diverged"):
        path = train(tmp_path / "a.h5", learning_rate=1e200)
    report = verify(path)
    assert report.status == "diverged"
    assert report.damaged == ()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "momentum"}, "known for gd at a constant learning_rate, not for momentum at 0.5"),
        ({"checkpoint_every": 10}, "no two successive steps were saved"),
    ],
)
def test_the_update_rule_is_skipped_with_a_reason(tmp_path, settings, reason):
    report = verify(train(tmp_path / "a.h5", **settings))
    assert report.damaged == ()
    assert said(report, "skipped") == {"update rule": reason}
    assert "loss" in said(report, "ok")


def test_only_installed_packages_are_asked_for_an_objective(path, trained, tmp_path):
    assert (
        said(verify(path), "skipped")["update rule"] == "no objective that can be evaluated: the run names no producer"
    )
    other = shutil.copy(trained, tmp_path / "gd.h5")
    with h5py.File(other, "r+") as file:
        file.attrs["producer"] = "os:getcwd"
    reason = said(verify(other), "skipped")["update rule"]
    assert (
        reason
        == "no objective that can be evaluated: no installed package registers 'os:getcwd' under landscape.objectives"
    )
    with h5py.File(other, "r+") as file:
        file.attrs["producer"] = "dynloss"
        file.attrs["config"] = "{}"
    assert "trained a model of its own" in said(verify(other), "skipped")["update rule"]

    def breaks(run):
        raise ZeroDivisionError("no data")

    assert (
        said(verify(trained, objective=breaks), "skipped")["update rule"]
        == "no objective that can be evaluated: no data"
    )


# The command, and versions of the format.


def test_the_command_tells_sound_damaged_and_unreadable_files_apart(path, tmp_path, capsys):
    broken = shutil.copy(path, tmp_path / "b.h5")
    flip_a_byte(broken, "checkpoints/params", 120)
    (tmp_path / "text.h5").write_text("hello")
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.endswith("no damage found\n")
    assert main(["verify", str(path), str(broken)]) == 1
    out = capsys.readouterr().out
    assert out.endswith("  damaged: checkpoints row 120; all else is readable\n")
    assert out.count("no damage found") == 1
    assert main(["verify", "--quiet", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["verify", str(tmp_path / "text.h5"), str(tmp_path / "no.h5"), str(broken)]) == 2
    captured = capsys.readouterr()
    assert "not an HDF5 file" in captured.err
    assert "there is no file" in captured.err
    assert captured.err.count("\n") == 2
    assert "row 120" in captured.out
    assert main(["verify", str(path), "--samples", "-1"]) == 2


def test_a_run_of_an_older_format_version_opens(path, monkeypatch):
    monkeypatch.setattr("landscape.run.FORMAT_VERSION", 2)
    with open_run(path) as run:
        assert run.history.sizes["step"] == N
    assert damage(path) == []


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "has format version 2, this package reads up to 1: update it"),
        (0, "has no valid format_version, got .*0.*; it is damaged"),
        ("1", "has no valid format_version, got '1'; it is damaged"),
    ],
)
def test_a_newer_version_says_what_to_do(path, version, message, capsys):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version
    with pytest.raises(RunFormatError, match=message):
        verify(path)
    assert main(["verify", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_damaged_attributes_of_the_file_are_a_clear_error(path, capsys):
    # The head of the root group's header, to which the superblock points; it has a checksum of its own.
    with open(path, "r+b") as file:
        root = struct.unpack_from("<Q", file.read(48), 36)[0]
        file.seek(root + 20)
        (byte,) = file.read(1)
        file.seek(root + 20)
        file.write(bytes([byte ^ 0x10]))
    for command in ("verify", "inspect"):
        assert main([command, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "an attribute cannot be read" in error or "cannot be opened" in error
