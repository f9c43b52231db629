"""Run files read while they grow, and after their writer was killed: every committed row is right."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from landscape import open_run

# Imports no torch, so that the process is recording within half a second.
WRITER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from landscape.run_writer import RunWriter

path, pause = sys.argv[1], float(sys.argv[2])
layout = SimpleNamespace(
    names=("w",), shapes=((50,),), offsets=(0,), sizes=(50,), n_params=50, to_json=lambda: '[["w", [50]]]'
)
with RunWriter(path, layout, history={"loss": {}, "class_weight": {"class": 3}}, block_rows=4) as writer:
    for step in range(10**9):
        params = np.arange(50) + step if step % 3 == 0 else None
        loss = np.nan if step % 7 == 0 else 1 / step
        writer.append(step, params, loss=loss, class_weight=[step, 1, 2])
        if pause:
            time.sleep(pause)
"""


def start(path, pause):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(pause)])
    deadline = time.monotonic() + 60
    while not path.exists() and writer.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return writer


def check_rows(path):
    """Every row that the file has is as it was appended; returns the number of steps."""
    with open_run(path) as run:
        assert run.status == "running"
        n = run.history.sizes["step"]
        steps = np.arange(n)
        np.testing.assert_array_equal(run.history.step, steps)
        with np.errstate(divide="ignore"):
            np.testing.assert_array_equal(run.history.loss, np.where(steps % 7 == 0, np.nan, 1 / steps))
        np.testing.assert_array_equal(run.history.class_weight.isel({"class": 0}), steps)
        saved = np.arange(run.checkpoints.sizes["step"]) * 3
        np.testing.assert_array_equal(run.checkpoints.step, saved)
        np.testing.assert_array_equal(run.checkpoints.params, np.arange(50) + saved[:, None])
        assert run.layout.n_params == 50
    return n


def test_a_growing_run_is_read_by_another_process(tmp_path):
    path = tmp_path / "a.h5"
    writer = start(path, 0.0005)
    try:
        counts = []
        while len(counts) < 20 or counts[-1] == counts[0]:
            counts.append(check_rows(path))
            assert writer.poll() is None
        assert counts == sorted(counts)
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_holds_every_committed_row(tmp_path, seed):
    path = tmp_path / "a.h5"
    writer = start(path, 0)
    time.sleep(np.random.default_rng(seed).uniform(0, 0.5))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    check_rows(path)
