"""`python -m landscape inspect FILE`, and how the command line takes bad input."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from landscape import ParamLayout, RunWriter, save_dataset
from landscape.__main__ import main


@pytest.fixture
def run_file(tmp_path):
    layout = ParamLayout(("0.weight", "0.bias"), ((2, 3), (2,)))
    data = {"training": (np.ones((5, 2)), np.arange(5))}
    with RunWriter(
        tmp_path / "a.h5", layout, history=["loss"], attrs={"optimizer": "gd"}, config={"width": 3}, data=data
    ) as writer:
        for step in range(10):
            writer.append(step, np.zeros(8) if step % 5 == 0 or step > 7 else None, loss=np.nan if step == 9 else step)
    return tmp_path / "a.h5"


def test_inspect_says_what_a_run_holds(run_file, capsys):
    assert main(["inspect", str(run_file)]) == 0
    text = capsys.readouterr().out
    for part in (
        "a.h5: run, complete",
        "optimizer gd",
        "width: 3",
        "θ has 8 entries",
        "0.weight  (2, 3)",
        "history      10 rows: every 1 from 0 to 9",
        "0 … 8, 1 not finite",
        "checkpoints  4 rows: every 5 from 0 to 5, every 3 to 8, every 1 to 9",
        "training: inputs {'sample': 5, 'feature': 2} float64",
    ):
        assert part in text


def test_inspect_says_what_a_run_holds_of_one_step(run_file, capsys):
    assert main(["inspect", str(run_file), "--step", "5"]) == 0
    text = capsys.readouterr().out
    assert "loss  5" in text
    assert "saved, ‖θ‖ = 0" in text
    assert main(["inspect", str(run_file), "--step", "7"]) == 0
    assert "step 7 was not recorded; the nearest are 5, 8" in capsys.readouterr().out


def test_inspect_says_what_a_dataset_holds(tmp_path, capsys):
    eigs = xr.Dataset({"eigenvalue": (("step", "mode"), [[3.0, 1.0]]), "ok": ("mode", [True, False])}, {"step": [25]})
    save_dataset(eigs.assign_attrs(optimizer="gd"), tmp_path / "eigs.h5")
    assert main(["inspect", str(tmp_path / "eigs.h5")]) == 0
    text = capsys.readouterr().out
    for part in ("eigs.h5: Dataset", "step 1, mode 2", "1 row: step 25", "1 … 3", "true in 1 of 2", "optimizer: gd"):
        assert part in text


def test_bad_input_gets_one_line_and_status_2(run_file, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("hello")
    for arguments, message in (
        (["inspect", str(tmp_path / "no.h5")], "there is no file"),
        (["inspect", str(tmp_path / "text.h5")], "not an HDF5 file"),
        (["inspect", str(run_file), "--step", "12"], "step 12 was not recorded; the nearest are 9"),
        (["inspekt"], "there is no command 'inspekt'; choose from inspect"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_help_loads_neither_torch_nor_xarray():
    code = "import sys; from landscape.__main__ import main; main(['--help'])"
    code += "; assert not {'torch', 'xarray'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inspect" in done.stdout
    done = subprocess.run([sys.executable, "-m", "landscape", "inspect", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "file" in done.stdout


def test_brackets_in_the_name_of_a_run_file_are_no_pattern(run_file, capsys):
    named = run_file.rename(run_file.with_name("run[1].h5"))
    assert main(["inspect", str(named)]) == 0
    assert "run[1].h5: run, complete" in capsys.readouterr().out
