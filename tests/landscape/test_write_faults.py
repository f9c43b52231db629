"""Full disks, vanished files, missing permissions, signals: no committed row is lost, and one line says why."""

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
    """The committed rows, each as it was appended."""
    with open_run(path) as run:
        assert run.status == status
        steps = run.history.step.values
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        np.testing.assert_array_equal(run.history.loss, steps)
        np.testing.assert_array_equal(run.checkpoints.params[:, 7], run.checkpoints.step)
    assert verify(path, n_samples=0, progress=False).damaged == ()
    return len(steps)


@pytest.mark.parametrize("n_bytes", [200_000, 333_333, 600_000, 1_000_000])
def test_a_full_disk_costs_the_last_block_and_the_run_resumes_when_there_is_room(tmp_path, n_bytes):
    path = tmp_path / "a.h5"
    with (
        room(n_bytes),
        pytest.raises(OSError, match=r"cannot write to .*a\.h5: File too large; it holds the rows up to"),
    ):
        record(path)
    assert not path.with_name("a.h5.lock").exists()
    n = check_prefix(path, "interrupted")
    assert 0.4 * n_bytes / 900 < n < N
    record(path, resume=True)  # in the same process, after HDF5 failed in it
    assert same(path, record(tmp_path / "whole.h5"))


def test_a_disk_that_is_full_again_while_resuming(tmp_path):
    path = tmp_path / "a.h5"
    for n_bytes in (200_000, 210_000, 400_000):
        with room(n_bytes), pytest.raises(OSError, match="File too large"):
            record(path, resume=True)
        check_prefix(path, "interrupted")
    record(path, resume=True)
    assert same(path, record(tmp_path / "whole.h5"))


@pytest.mark.parametrize("n_bytes", [0, 5000, 40_000])
def test_a_file_that_cannot_be_created_leaves_nothing(tmp_path, n_bytes):
    with room(n_bytes), pytest.raises(OSError, match=r"cannot create .*a\.h5: File too large"):
        writer_of(tmp_path / "a.h5", data={"training": (np.ones((2000, 2)), np.ones(2000))})
    assert list(tmp_path.iterdir()) == []
    assert same(record(tmp_path / "a.h5", 20), record(tmp_path / "b.h5", 20))


def test_a_run_that_is_replaced_by_none_stays(tmp_path):
    path = record(tmp_path / "a.h5", 30)
    before = path.read_bytes()
    with room(5000), pytest.raises(OSError, match="cannot create"):
        writer_of(path, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_vanished_is_noticed_at_the_next_block(tmp_path, replaced):
    path = tmp_path / "folder" / "a.h5"
    path.parent.mkdir()

    def remove(writer, step):
        if step == 100:
            path.unlink()
            if replaced:
                path.write_bytes(b"something else")
        assert step < 200, "training went on into nothing"

    with pytest.raises(FileNotFoundError, match="removed or replaced while it was being written"):
        record(path, before_step=remove)
    assert [file.name for file in path.parent.iterdir()] == (["a.h5"] if replaced else [])
    assert not replaced or path.read_bytes() == b"something else"


def test_an_exception_of_the_training_is_what_is_raised(tmp_path):
    path = tmp_path / "a.h5"

    def fail(writer, step):
        if step == 77:
            raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        record(path, before_step=fail)
    assert check_prefix(path, "interrupted") == 77


def test_what_a_full_disk_costs_besides_is_a_warning(tmp_path):
    path = tmp_path / "a.h5"
    with contextlib.ExitStack() as limits:

        def fail(writer, step):
            if step == 70:
                limits.enter_context(room(path.stat().st_size))
            if step == 77:
                raise ZeroDivisionError("of the user")

        with pytest.raises(ZeroDivisionError), pytest.warns(RuntimeWarning, match="File too large; it holds the rows"):
            record(path, before_step=fail, block_rows=70)
    assert check_prefix(path, "interrupted") == 70


def test_resuming_where_this_process_reads_the_run(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        record(path, before_step=lambda writer, step: signal.raise_signal(signal.SIGINT) if step == 50 else None)
    with open_run(path) as run:
        loss = run.history.loss[:50]
        record(path, resume=True)
        assert loss.values[-1] == 49  # what was taken before is still readable
        assert run.refresh()
        assert run.status == "complete"
        assert run.history.sizes["step"] == N
        record(tmp_path / "other.h5", 10)


def test_one_writer_whatever_the_file_is_called(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b.h5").symlink_to(tmp_path / "a.h5")
    with writer_of(tmp_path / "a.h5") as writer:
        writer.append(0, np.zeros(100), loss=0.0)
        writer.commit()
        for name in ("a.h5", "link/a.h5", "b.h5"):
            for options in ({"resume": True}, {"overwrite": True}):
                with pytest.raises(BlockingIOError, match="being written by another process"):
                    writer_of(tmp_path / name, **options)
    assert check_prefix(tmp_path / "a.h5", "complete") == 1


AS_NOBODY = """
import os, sys
from landscape import ParamLayout, RunWriter
RunWriter(sys.argv[2], ParamLayout(("w",), ((100,),)), history=["loss"]).close()  # loads what it needs
if os.getuid() == 0:
    os.setuid(65534)
for options in ({"overwrite": True}, {"resume": True}):
    try:
        RunWriter(sys.argv[1], ParamLayout(("w",), ((100,),)), history=["loss"], **options)
    except PermissionError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_without_permission_one_line_says_so(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = record(folder / "a.h5", 20)
    for place in (folder, tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o555 if place == folder else 0o755)
    command = [sys.executable, "-c", AS_NOBODY, path, tmp_path / "b.h5"]
    done = subprocess.run(command, capture_output=True, text=True)
    folder.chmod(0o755)
    assert done.stdout.splitlines() == [f"no permission to write in {folder}"] * 2, done.stderr


def train(path, *options):
    command = [sys.executable, "-m", "dynloss", "train", str(path), "--width", "10", "--n-per-class", "20", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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
    _, errors = process.communicate(timeout=60)
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
    options = ["--width", "10", "--n-per-class", "20", "--n-steps", "1500"]
    with room(150_000):
        assert command_line(["train", str(path), *options]) == 2
    assert re.fullmatch(
        r"dynloss: cannot write to .*a\.h5: File too large; .*can be resumed\n", capsys.readouterr().err
    )
    assert command_line(["train", str(path), "--resume", *options]) == 0
    assert command_line(["train", str(whole), *options]) == 0
    with open_run(path) as resumed, open_run(whole) as undisturbed:
        assert resumed.history.identical(undisturbed.history)
        assert resumed.checkpoints.identical(undisturbed.checkpoints)
