"""A few of the kills that kill.py tries in full, and that the harness notices what it looks for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import kill
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not hasattr(kill.os, "fork"), reason="training processes are forked")


def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, Path(kill.__file__), "--kills", "4", "--steps", "100", "--seed", "1"]
    done = subprocess.run([*command, "--table", tmp_path / "table.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted = json.loads((tmp_path / "table.json").read_text())["kill"]
    assert (counted["runs"], counted["failures"]) == (4, 0)
    assert sum(counted["phases"].values()) >= 3  # one may have ended before it was killed


def test_kills_are_spread_over_a_run_and_over_what_it_does():
    aims = kill.moments(50, np.random.default_rng(0))
    timed = sorted(aim for aim in aims if not isinstance(aim, str))
    assert [int(25 * at) for at in timed] == list(range(25))
    assert {phase: aims.count(phase) for phase in kill.INTERVENED} == {
        "creating": 7, "committing": 6, "eigenpairs": 6, "finishing": 6,
    }  # fmt: skip


def test_lost_and_changed_rows_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(kill.SETTINGS, "n_steps", 70)
    progress = kill.Progress()
    monkeypatch.setattr(kill, "child", lambda name, path, progress: kill.train(name, path))
    monkeypatch.setattr(kill, "wait", lambda process: 0)
    whole = kill.Undisturbed("sgd", tmp_path, progress)
    whole.check_committed(whole.path, [70, 15, 3])
    whole.check_end(whole.path)
    with pytest.raises(AssertionError, match="70 rows of history where 71 had been committed"):
        whole.check_committed(whole.path, [71, 15, 3])
    changed = shutil.copy(whole.path, tmp_path / "changed.h5")
    with h5py.File(changed, "r+") as file:
        file["state/params"][...] += 1e-9
    with pytest.raises(AssertionError, match="verify finds damage: no slot holds"):
        whole.check_committed(changed, [70, 15, 3])
    with pytest.raises(AssertionError, match="verify finds damage at the end: no slot holds"):
        whole.check_end(changed)
