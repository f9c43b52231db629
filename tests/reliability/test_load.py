"""Large runs, a fiftieth of what load.py tries in full."""

import json
import sys

import load
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by means of Linux")


def test_parts_of_large_runs_are_read_in_bounded_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["load.py", "--scale", "0.02", "--folder", str(tmp_path)])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--table", str(tmp_path / "table.json")])
    assert load.main() == 0, capsys.readouterr().err
    table = json.loads((tmp_path / "table.json").read_text())["load"]
    assert table["failures"] == 0
    assert (table["long"]["steps"], table["long"]["checkpoints"]) == (20_000, 400)
    assert table["large"]["bytes"] > 2e8
    assert table["many"]["files_open"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_other_values_and_too_much_memory_are_noticed(tmp_path, monkeypatch):
    size = load.Size(100, 10, 5)
    load.record(tmp_path / "a.h5", size, history=True)
    with pytest.raises(RuntimeError, match="AssertionError"):
        load.measure(tmp_path / "a.h5", load.Size(101, 10, 5), ["loss"])
    reads = {"all": {"seconds": 1, "bytes": 3e6, "allowed": 2e6}, "none": {"seconds": 1, "bytes": 0, "allowed": 0}}
    assert load.too_much({"long": {"reads": reads}}) == ["long, all: 3 MB of memory, 2 MB are allowed"]
    monkeypatch.setattr(load.shutil, "disk_usage", lambda folder: load.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="give --folder"):
        load.load(tmp_path)
