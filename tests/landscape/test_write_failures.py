"""Faults while recording: what was committed stays, no row is made up, the lock is free, and the run can be resumed."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from landscape import ParamLayout, RunWriter, open_run
from landscape.command_line import run_command
from landscape.run_tables import Column
from landscape.termination import Terminated, orderly_termination
from landscape.writer_lock import is_being_written

LAYOUT = ParamLayout(("w",), ((130,),))
N_STEPS = 400


def record(path, n_steps=N_STEPS, stop=None, **options):
    """Record a run, or go on with it; at the step `stop`, what is raised there comes through."""
    options = {"history": ["loss"], "block_rows": 8, "resume": True, "state": {"theta": np.zeros(130)}} | options
    with RunWriter(path, LAYOUT, **options) as writer:
        theta = np.zeros(130) if writer.state is None else writer.state.theta.values.copy()
        start = 0 if writer.state is None else int(writer.state.step)
        for step in range(start, n_steps):
            if stop is not None and step == stop[0]:
                stop[1]()
            writer.save_state(step, {"theta": theta})
            writer.append(step, theta, loss=theta.sum())
            theta = np.sin(theta + np.arange(130))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "whole.h5"
    record(path)
    with open_run(path) as run:
        return run.history.load(), run.checkpoints.load()


def check(path, whole, at_least=1, status="interrupted"):
    """Its rows are those of the undisturbed run, no writer holds it, and it resumes to the same end."""
    with open_run(path) as run:
        n = run.history.sizes["step"]
        assert at_least <= n < N_STEPS
        assert run.status in status
        assert run.history.identical(whole[0].isel(step=slice(n)))
        assert run.checkpoints.identical(whole[1].isel(step=slice(run.checkpoints.sizes["step"])))
    assert not is_being_written(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    record(path)
    with open_run(path) as run:
        assert run.status == "complete"
        assert run.history.identical(whole[0])
        assert run.checkpoints.identical(whole[1])


@contextlib.contextmanager
def room(n_bytes):
    """Files of this process stay so small; on Linux and macOS writing on is then an error, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("n_bytes", [300_000, 311_111, 400_000])
def test_a_full_disk_keeps_what_was_committed_and_the_run_goes_on_once_there_is_room(tmp_path, whole, n_bytes):
    path = tmp_path / "a.h5"
    with room(n_bytes), pytest.raises(OSError, match=r"cannot write to .*a.h5: File too large; what was committed"):
        record(path)
    check(path, whole, at_least=64, status=("interrupted", "running"))


def test_a_full_disk_leaves_nothing_of_a_run_that_had_not_begun(tmp_path):
    with room(3000), pytest.raises(OSError, match=r"cannot create .*a.h5: File too large") as caught:
        record(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", range(12))
def test_a_write_that_fails_makes_up_no_row(tmp_path, whole, monkeypatch, at):
    """The stored variable has grown already; what it lacks must not come to light when the file is closed."""
    n_writes, write = [0], Column.write

    def failing(self, start, rows):
        n_writes[0] += 1
        if n_writes[0] > 40 + at:
            if self._length < start + len(rows):
                self._id.set_extent((start + len(rows), *rows.shape[1:]))
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, start, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Column, "write", failing)
        with pytest.raises(OSError, match="No space left on device; what was committed is safe") as caught:
            record(tmp_path / "a.h5")
    assert caught.value.errno == errno.ENOSPC
    check(tmp_path / "a.h5", whole)


def test_a_failed_writer_refuses_rows_and_the_process_ends_in_peace(tmp_path):
    code = """
import resource, sys, numpy as np
from types import SimpleNamespace
from landscape.run_writer import RunWriter  # imports no torch, to start quickly
layout = dict(names=("w",), shapes=((130,),), offsets=(0,), sizes=(130,), n_params=130)
layout["to_json"] = lambda: '[["w", [130]]]'
writer = RunWriter(sys.argv[1], SimpleNamespace(**layout), history=["loss"], block_rows=8)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    for step in range(10**6):
        writer.append(step, np.zeros(130), loss=0)
except OSError as error:
    print(writer.status, error.errno)
try:
    writer.append(step + 1, loss=0)
except ValueError as error:
    print(error)
writer.close()
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.h5"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("interrupted")
    assert "is closed with status 'interrupted'; nothing more can be recorded" in second


@pytest.mark.parametrize("fault", ["deleted", "replaced", "moved folder", "deleted folder"])
def test_a_file_that_vanishes_is_noticed_and_what_took_its_place_is_left_alone(tmp_path, fault):
    path = tmp_path / "runs" / "a.h5"
    path.parent.mkdir()

    def vanish():
        if fault == "moved folder":
            path.parent.rename(tmp_path / "elsewhere")
        elif fault == "deleted folder":
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        if fault == "replaced":
            path.write_text("thesis")

    with pytest.raises(OSError, match="it was deleted, moved or replaced"):
        record(path, stop=(100, vanish))
    if fault == "replaced":
        assert path.read_text() == "thesis"
    if fault == "moved folder":
        with open_run(tmp_path / "elsewhere" / "a.h5") as run:
            assert run.history.sizes["step"] == 96


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [interrupt, terminate])
def test_an_interruption_commits_the_last_rows(tmp_path, whole, stop):
    with orderly_termination(), pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.h5", stop=(101, stop))
    check(tmp_path / "a.h5", whole, at_least=101)


@pytest.mark.parametrize("at", range(0, 60, 4))
def test_an_interruption_within_a_commit_neither_loses_nor_repeats_a_row(tmp_path, whole, monkeypatch, at):
    calls, write = [], Column.write

    def interrupted(self, *arguments):
        calls.append(self)
        if len(calls) == at + 20:
            raise KeyboardInterrupt
        write(self, *arguments)
        if len(calls) == at + 20 + 2:  # the user does not wait
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Column, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path / "a.h5")
    check(tmp_path / "a.h5", whole)


def test_a_failure_while_ending_is_a_note_on_what_ended_the_run(tmp_path, whole):
    with room(300_000), pytest.raises(KeyboardInterrupt) as caught:
        record(tmp_path / "a.h5", block_rows=300, stop=(290, interrupt))
    (note,) = caught.value.__notes__
    assert "cannot write to" in note
    assert "File too large" in note


def test_signals_are_as_before_afterwards_and_foreign_handlers_are_respected():
    def mine(number, frame):
        seen.append(number)

    seen, before = [], signal.getsignal(signal.SIGTERM)
    with orderly_termination():
        assert signal.getsignal(signal.SIGTERM) is not before
        with pytest.raises(Terminated, match="SIGTERM"):
            terminate()
        terminate()  # a second one is not raised
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, mine)
    try:
        with orderly_termination():
            terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    entered = []

    def elsewhere():
        with orderly_termination():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert entered == [before]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_the_status_that_shells_give_it(monkeypatch, number, status):
    monkeypatch.setitem(sys.modules, "ended", sys)
    monkeypatch.setattr(sys, "main", lambda rest: os.kill(os.getpid(), number), raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run in the background
    try:
        assert run_command("program", {"wait": ("ended:main", "")}, ["wait"]) == status
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGHUP, hung_up)


def test_a_run_open_for_reading_here_is_resumed_and_its_readers_see_it_grow(tmp_path, whole):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        record(path, stop=(101, interrupt))
    with open_run(path) as run, open_run(path) as other:
        lazy = run.checkpoints
        record(path)
        assert lazy.sizes["step"] == 101
        assert lazy.params.identical(whole[1].params.isel(step=slice(101)))
        assert run.refresh()
        assert run.history.identical(whole[0])
        assert other.refresh()
        assert other.checkpoints.identical(whole[1])


def test_a_run_open_otherwise_here_is_not_resumed_and_the_error_says_what_to_do(tmp_path, whole):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        record(path, stop=(101, interrupt))
    with h5py.File(path), pytest.raises(BlockingIOError, match=r"or outside open_run in this one; close it there"):
        record(path)
    check(path, whole, at_least=101)


def test_two_writers_by_different_paths_are_refused(tmp_path, monkeypatch):
    path, link, folder = tmp_path / "a.h5", tmp_path / "link.h5", tmp_path / "folder"
    link.symlink_to(path)
    folder.symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with RunWriter("a.h5", LAYOUT, history=["loss"]) as writer:
        for other in (path, link, folder / "a.h5", "a.h5", tmp_path / ".." / tmp_path.name / "a.h5"):
            assert is_being_written(other)
            for options in ({"resume": True}, {"overwrite": True}):
                with pytest.raises(BlockingIOError, match="is being written already, here or in another process"):
                    RunWriter(other, LAYOUT, history=["loss"], **options)
        monkeypatch.chdir("/")
        writer.append(0, loss=1.0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "folder", "link.h5"]
    with open_run(link) as run:
        assert run.history.loss.values.tolist() == [1]


def test_overwriting_by_a_link_replaces_what_it_leads_to(tmp_path):
    path, link = tmp_path / "a.h5", tmp_path / "link.h5"
    path.write_text("thesis")
    link.symlink_to(path)
    RunWriter(link, LAYOUT, history=["loss"], overwrite=True).close()
    assert link.is_symlink()
    with open_run(path) as run:
        assert run.status == "complete"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no user ids here")
@pytest.mark.parametrize("protected", ["file", "folder", "new file"])
def test_without_permission_nothing_is_changed(tmp_path, protected):
    path = tmp_path / "runs" / "a.h5"
    path.parent.mkdir()
    if protected != "new file":
        with pytest.raises(KeyboardInterrupt):
            record(path, stop=(101, interrupt))
    before = [(file.name, file.read_bytes()) for file in path.parent.iterdir()]
    (path.parent if protected != "file" else path).chmod(0o555 if protected != "file" else 0o444)
    inside = []
    root = os.geteuid() == 0
    if root:  # whom nothing is forbidden
        for folder in (tmp_path, *tmp_path.parents):
            if not folder.stat().st_mode & 0o001:
                inside.append((folder, folder.stat().st_mode))
                folder.chmod(folder.stat().st_mode | 0o011)
        if protected == "file":
            path.parent.chmod(0o777)
        os.seteuid(65534)
    try:
        for options in ({"resume": True}, {"resume": False, "overwrite": True}):
            with pytest.raises(PermissionError, match=r"no permission to write to .*; record the run elsewhere"):
                record(path, **options)
    finally:
        if root:
            os.seteuid(0)
            for folder, mode in inside:
                folder.chmod(mode)
        path.parent.chmod(0o755)
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == before
