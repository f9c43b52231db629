"""Corrupted files: a part of those that fuzz.py tries in full, and that the harness notices what it looks for."""

import json
import signal
import sys
import threading

import fuzz
import numpy as np
import pytest
import reader
from damage import WAYS, damaged, metadata_pages

from landscape import ParamLayout, RunWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured by means of Linux")


def test_a_corrupted_file_is_refused_or_read_as_it_was():
    counts, failed, extremes = fuzz.fuzz(range(10**6, 10**6 + 150), seed=1)
    assert failed == []
    assert counts.total() == 150
    assert counts["refused in part"] > 10
    assert counts["refused at open"] > 5
    assert extremes["peak_megabytes"] < 200


def test_each_way_changes_the_file_and_the_same_seed_the_same_way():
    content = np.random.default_rng(0).bytes(50_000) + b"OHDR" + bytes(20_000)
    assert metadata_pages(content) == [12]
    seen = set()
    for case in range(100):
        what, image = damaged(content, np.random.default_rng(case))
        assert (what, image) == damaged(content, np.random.default_rng(case))
        seen |= {what.split()[0]} if image != content else set()
    assert seen == {way.__name__ for way in WAYS}


def record(path, loss):
    with RunWriter(path, ParamLayout(("w",), ((3,),)), history=["loss"], state={"theta": np.zeros(3)}) as writer:
        for step in range(4):
            writer.append(step, np.full(3, step), loss=loss if step == 2 else 0.5)
            writer.save_state(step, {"theta": np.full(3, float(step))})
            writer.commit()
    return path


def test_the_reader_notices_other_numbers_lost_rows_hangs_and_crashes(tmp_path, monkeypatch):
    sound = record(tmp_path / "sound.h5", 0.25)
    (tmp_path / "text.h5").write_text("hello")
    with reader.Reader(sound) as process:
        assert process.read(sound) == ("equal", "")
        outcome, detail = process.read(record(tmp_path / "other.h5", 0.75))
        assert outcome == "wrong number"
        assert "history/loss: 1 of 4 entries differ, the first at 2: np.float64(0.75), not np.float64(0.25)" in detail
        assert process.read(tmp_path / "text.h5")[0] == "refused at open"
        monkeypatch.setattr(reader, "TIME_LIMIT", 0.5)
        process._process.send_signal(signal.SIGSTOP)
        assert process.read(sound)[0] == "hang"
        monkeypatch.setattr(reader, "TIME_LIMIT", 10.0)
        assert process.read(sound) == ("equal", "")
        process._process.send_signal(signal.SIGSTOP)
        process._process.send_signal(signal.SIGSEGV)
        threading.Timer(0.3, process._process.send_signal, [signal.SIGCONT]).start()
        assert process.read(sound) == ("crash", "Segmentation fault")


def test_the_script_says_and_keeps_what_failed(tmp_path, monkeypatch, capsys):
    class Unlucky(reader.Reader):
        def read(self, path):
            return "wrong number", "history/loss: 1, not 2"

    (tmp_path / "sound.h5").write_bytes(bytes(10_000) + b"OHDR" + bytes(10_000))
    monkeypatch.setattr(fuzz, "sound_files", lambda folder: [tmp_path / "sound.h5"])
    monkeypatch.setattr(fuzz, "Reader", Unlucky)
    kept, table = tmp_path / "kept", tmp_path / "data" / "table.json"
    arguments = ["--cases", "3", "--first", "7", "--keep", str(kept), "--table", str(table)]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *arguments])
    assert fuzz.main() == 1
    captured = capsys.readouterr()
    assert "     3 wrong number\n" in captured.out
    assert captured.err.count("history/loss: 1, not 2") == 1  # of one kind
    assert "case 7 and 2 like it" in captured.err
    assert sorted(path.name for path in kept.iterdir()) == ["case7.h5", "case8.h5", "case9.h5"]
    counted = json.loads(table.read_text())["fuzz"]
    assert (counted["files"], counted["failures"], counted["outcomes"]) == (3, 3, {"wrong number": 3})
    monkeypatch.setattr(Unlucky, "read", lambda self, path: ("equal", ""))
    assert fuzz.main() == 0
