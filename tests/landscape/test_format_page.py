"""The page on the run file: its code runs, with and without this package, and it names all that a file holds."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import dynloss
from landscape import ParamLayout, RunWriter, open_run
from landscape.run_format import EIGENPAIR_VARIABLES, FORMAT_VERSION, STATUSES
from landscape.run_state import state_names
from landscape.superblock import make_writable

PAGE = (Path(__file__).parents[2] / "gallery/pages/format.rst").read_text(encoding="utf-8")
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE, flags=re.MULTILINE)
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with everything that a file can hold."""
    path = tmp_path_factory.mktemp("finished") / "run.h5"
    return dynloss.train(
        dynloss.mlp(n_inputs=2, width=5, n_classes=3, seed=0),
        dynloss.DynamicalCrossEntropy(n_classes=3, amplitude=10, period=20),
        dynloss.spiral(n_per_class=10, n_classes=3, seed=0),
        validation=dynloss.spiral(n_per_class=10, n_classes=3, seed=1),
        record=path,
        optimizer="adam",
        learning_rate=0.01,
        n_steps=20,
        checkpoint_every=5,
        eigenpairs=2,
        eigenpairs_every=9,
        tol=1e-6,
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The same kind of file as it is while its writer is within a commit: rows written, and step not yet extended."""
    folder = tmp_path_factory.mktemp("killed")
    layout = ParamLayout(("weight", "bias"), ((2, 3), (2,)))
    writer = RunWriter(folder / "live.h5", layout, history=["loss"], attrs={"learning_rate": 0.5}, block_rows=4)
    for step in range(18):
        writer.append(step, np.arange(8) + step, loss=1 / (1 + step))
    for table in writer._tables:
        table.write_rows()
    writer._file.flush()
    shutil.copy(writer.path, folder / "run.h5")
    writer.close()
    return folder / "run.h5"


def run_block(block, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    variables = {}
    exec(compile(block, "format.rst", "exec"), variables)
    return variables


@pytest.mark.parametrize("which", ["finished", "killed"])
def test_code_of_the_page_reads_what_was_recorded(which, request, monkeypatch, capsys):
    path = request.getfixturevalue(which)
    with open_run(path) as run:
        n, loss = run.history.sizes["step"], run.history.loss.values
        tensors = run.layout.unflatten(torch.from_numpy(run.checkpoints.params.values[-1]))
    ours, h5py_alone, by_xarray, checksums = (run_block(block, path, monkeypatch) for block in BLOCKS)
    for variables in (ours, h5py_alone):
        np.testing.assert_array_equal(variables["loss"], loss)
        assert list(variables["weights"]) == list(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(np.reshape(variables["weights"][name], tensor.shape), tensor)
    assert all(variables["weights"][name].shape == tensor.shape for name, tensor in tensors.items())
    np.testing.assert_array_equal(h5py_alone["steps"], np.arange(n))
    assert h5py_alone["status"] == {"finished": "complete", "killed": "running"}[which]
    np.testing.assert_array_equal(by_xarray["loss"], loss)
    assert by_xarray["rate"] in (0.01, 0.5)
    assert checksums["right"].all()
    assert len(checksums["right"]) == checksums["n_rows"] > 3
    assert ours["report"].damaged == ()
    assert "no damage found" in capsys.readouterr().out


def test_the_killed_run_has_rows_that_do_not_count(killed):
    with h5py.File(killed, "r", swmr=True, libver="latest") as file:
        assert (file["history/step"].shape, file["history/loss"].shape) == ((16,), (18,))


def test_the_checksums_of_the_page_notice_a_change(killed, tmp_path, monkeypatch):
    path = shutil.copy(killed, tmp_path / "run.h5")
    make_writable(path)
    with h5py.File(path, "r+") as file:
        file["checkpoints/params"][5, 2] *= 1 + 1e-15
    assert np.flatnonzero(~run_block(BLOCKS[3], path, monkeypatch)["right"]).tolist() == [5]


def test_the_readers_without_our_package_do_not_load_it(finished):
    for block in BLOCKS[1:]:
        code = block + "\nimport sys; assert not {'landscape', 'dynloss', 'torch'} & sys.modules.keys()"
        subprocess.run([sys.executable, "-c", code], cwd=finished.parent, check=True)


def test_the_page_names_everything_that_a_file_holds(finished):
    names = set()

    def note(name, thing):
        names.update(name.split("/")[-1:], thing.attrs.keys() - {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST"})

    with h5py.File(finished) as file:
        names.update(file.attrs)
        file.visititems(note)
        own = {name for name in names if name.startswith(("_", "string"))}  # of netCDF
        # What this writer chose: attributes of its training, arrays of its state and the axes of both.
        own |= {*file["checkpoints"].attrs, *state_names(file["state"])}
        own |= {dim for group in ("state", "data/training", "data/validation") for dim in file[group]}
    fixed = {"inputs", "targets", "layout", "slot", "table", "step", "sequence", "rows", "checksum"}
    missing = [name for name in sorted((names - own) | fixed) if not re.search(rf"[`/(, ]{name}([`),]| =)", PAGE)]
    assert missing == []
    for name in [*EIGENPAIR_VARIABLES, *STATUSES]:
        assert f"``{name}``" in PAGE or f'``"{name}"``' in PAGE
    assert f"It describes format version {FORMAT_VERSION}." in PAGE


def test_the_page_is_part_of_the_site():
    index = (Path(__file__).parents[2] / "gallery/pages/guide/index.rst").read_text(encoding="utf-8")
    assert "   ../format\n" in index
