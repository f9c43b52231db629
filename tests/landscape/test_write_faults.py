"""Full disks and signals, from outside: no committed row is lost, `verify` finds no damage, and one line says why."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dynloss.__main__ import main as command_line
from landscape import ParamLayout, RunWriter, open_run, verify

resource = pytest.importorskip("resource", reason="limits on the size of files are POSIX's")

LAYOUT = ParamLayout(("w",), ((100,),))
N = 1500


@contextlib.contextmanager
def room(n_bytes):
    """Files may grow to so many bytes, and no further: writes then fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def writer_of(path, **options):
    options = {"block_rows": 16, "state": {"counter": np.zeros(3)}} | options
    return RunWriter(path, LAYOUT, history=["loss"], **options)


def record(path, n_steps=N, before_step=lambda writer, step: None, **options):
    """Record a run whose θ follows from its state, so that a resumed one can only be right if the state was."""
    with writer_of(path, **options) as writer:
        start, theta = (0, np.zeros(100)) if writer.state is None else (int(writer.state.step), None)
        theta = np.full(100, writer.state.counter.values[0]) if theta is None else theta
        for step in range(start, n_steps):
            before_step(writer, step)
            if step % 10 == 0:
                writer.save_state(step, {"counter": theta[:3].copy()})
            writer.append(step, theta, loss=float(theta[0]))
            theta = theta + 1.0
    return path


def same(path, other):
    with open_run(path) as one, open_run(other) as two:
        assert one.status == two.status == "complete"
        return one.history.identical(two.history) and one.checkpoints.identical(two.checkpoints)


def check_prefix(path, status):
    """The committed rows, each as it was appended.

    A limit on the size of files, unlike a full disk, also keeps the status from being written.
    """
    with open_run(path) as run:
        assert run.status in (status, "running")
        steps = run.history.step.values
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        np.testing.assert_array_equal(run.history.loss, steps)
        np.testing.assert_array_equal(run.checkpoints.params[:, 7], run.checkpoints.step)
    assert verify(path, n_samples=0, progress=False).damaged == ()
    return len(steps)


@pytest.mark.parametrize("n_bytes", [600_000, 1_000_000])
def test_a_full_disk_costs_the_last_block_and_the_run_resumes_when_there_is_room(tmp_path, n_bytes):
    path = tmp_path / "a.h5"
    with (
        room(n_bytes),
        pytest.raises(OSError, match=r"cannot write to .*a\.h5: File too large; what was committed is safe"),
    ):
        record(path)
    assert not path.with_name("a.h5.lock").exists()
    n = check_prefix(path, "interrupted")
    assert 0.5 * n_bytes / 900 < n < N
    record(path, resume=True)  # in the same process, after HDF5 failed in it
    assert same(path, record(tmp_path / "whole.h5"))


def test_a_disk_that_is_full_again_while_resuming(tmp_path):
    path = tmp_path / "a.h5"
    for n_bytes in (600_000, 620_000, 900_000):
        with room(n_bytes), pytest.raises(OSError, match="File too large"):
            record(path, resume=True)
        check_prefix(path, "interrupted")
    record(path, resume=True)
    assert same(path, record(tmp_path / "whole.h5"))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_disk_that_fills_while_the_file_is_created_leaves_none_wherever_it_is(tmp_path, monkeypatch):
    """As if the room that was found had been taken by another program: each size in a process of its own."""
    path, data = tmp_path / "a.h5", {"training": (np.zeros((500, 20)), np.zeros(500))}
    monkeypatch.setattr("landscape.run_writer.check_room", lambda *_: None)

    def refused(n_bytes):
        try:
            with room(n_bytes):
                writer_of(path, data=data, n_modes=2)
        except OSError as error:
            return 3 if str(error) == f"cannot create {path}: File too large" and not os.listdir(tmp_path) else 4
        return 5

    for n_bytes in range(0, 100_000, 2500):
        child = os.fork()
        if not child:
            os._exit(refused(n_bytes))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3, n_bytes


def train(path, *options):
    command = [sys.executable, "-m", "dynloss", "train", str(path), "--width", "10", "--n-per-class", "20", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c)


def _heed_ctrl_c():
    """Where the tests run in the background, processes start with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_training_in_order(tmp_path, sent, status):
    path = tmp_path / "a.h5"
    process = train(path, "--n-steps", "1000000")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError), open_run(path) as run:
            if run.history.sizes["step"]:
                break
        time.sleep(0.05)
    process.send_signal(sent)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, errors
    assert "interrupted; " in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    with open_run(path) as run:
        assert run.status == "interrupted"
        assert run.history.sizes["step"] > 0
    assert os.listdir(tmp_path) == ["a.h5"]


def test_training_on_a_full_disk_ends_with_one_line_and_resumes(tmp_path, capsys):
    path, whole = tmp_path / "a.h5", tmp_path / "whole.h5"
    options = ["--width", "10", "--n-per-class", "20", "--n-steps", "3000"]
    with room(350_000):
        assert command_line(["train", str(path), *options]) == 2
    assert re.fullmatch(
        r"dynloss: cannot write to .*a\.h5: File too large; .*can be resumed\n", capsys.readouterr().err
    )
    assert command_line(["train", str(path), "--resume", *options]) == 0
    assert command_line(["train", str(whole), *options]) == 0
    with open_run(path) as resumed, open_run(whole) as undisturbed:
        assert resumed.history.identical(undisturbed.history)
        assert resumed.checkpoints.identical(undisturbed.checkpoints)
