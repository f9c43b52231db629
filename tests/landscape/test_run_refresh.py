"""A run followed while it is written: what is committed shows, what was read stays, and the writer notices nothing."""

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from landscape import ParamLayout, RunFormatError, RunWriter, open_run, verify
from landscape.__main__ import main
from landscape.watch import watch

LAYOUT = ParamLayout(("w",), ((50,),))
OPTIONS = {"history": ["loss"], "block_rows": 4, "state": {"theta": np.zeros(50)}}

# Commits every fourth step, and goes on at once after each interruption. Imports no torch, to start quickly.
WRITER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from landscape.run_writer import RunWriter

path, n_steps, pause, n_sessions = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
layout = SimpleNamespace(
    names=("w",), shapes=((50,),), offsets=(0,), sizes=(50,), n_params=50, to_json=lambda: '[["w", [50]]]'
)
options = {"history": ["loss"], "block_rows": 4, "state": {"theta": np.zeros(50)}, "config": {"n_steps": n_steps}}
ends = [n_steps * (i + 1) // n_sessions for i in range(n_sessions)]
step = 0
for end in ends:
    writer = RunWriter(path, layout, resume=True, **options)
    step = int(writer.state.step) if writer.state is not None else 0
    while step < end:
        writer.append(step, np.arange(50) + step if step % 3 == 0 else None, loss=1 / (1 + step))
        writer.save_state(step + 1, {"theta": np.full(50, step + 1.0)})
        step += 1
        time.sleep(pause)
    writer.finish("complete" if end == ends[-1] else "interrupted")
"""


def start(path, n_steps=1000, pause=0.0, n_sessions=1):
    arguments = [sys.executable, "-c", WRITER, path, str(n_steps), str(pause), str(n_sessions)]
    writer = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not path.exists() and writer.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return writer


def ended_well(writer):
    _, errors = writer.communicate(timeout=60)
    assert (writer.returncode, errors) == (0, "")


def check_rows(run):
    """Every row that the run shows is as it was appended; returns the number of steps."""
    history, checkpoints, state = run.history.load(), run.checkpoints.load(), run.state
    n = history.sizes["step"]
    np.testing.assert_array_equal(history.step, np.arange(n))
    np.testing.assert_array_equal(history.loss, 1 / (1 + np.arange(n)))
    saved = np.arange(checkpoints.sizes["step"]) * 3
    np.testing.assert_array_equal(checkpoints.step, saved)
    np.testing.assert_array_equal(checkpoints.params, np.arange(50) + saved[:, None])
    if state is not None:
        np.testing.assert_array_equal(state.theta, int(state.step))
    return n


def test_a_run_shows_what_another_process_has_committed_since(tmp_path):
    writer = start(tmp_path / "a.h5", pause=0.0005)
    counts, states = [], []
    with open_run(tmp_path / "a.h5") as run:
        early = run.history
        while run.status == "running":
            new = run.refresh()
            counts.append(check_rows(run))
            states.append(run.state is not None)
            assert new or counts[-1] == counts[-2:][0]
        ended_well(writer)
        assert counts == sorted(counts)
        assert len(set(counts)) > 5
        assert np.mean(states) > 0.5  # none before the first commit; later, one
        assert (run.status, counts[-1], int(run.state.step)) == ("complete", 1000, 1000)
        assert not run.refresh()
        assert check_rows(run) == 1000
        np.testing.assert_array_equal(early.loss, 1 / (1 + np.arange(early.sizes["step"])))


def test_several_handles_of_a_live_file_in_one_process_show_the_same(tmp_path):
    writer = start(tmp_path / "a.h5", pause=0.0005)
    with open_run(tmp_path / "a.h5") as old:
        kept = old.checkpoints
        travelled = pickle.loads(pickle.dumps(kept))
        n = n_old = 0
        while n < 1000:
            with open_run(tmp_path / "a.h5") as fresh:
                n_fresh = check_rows(fresh)
                assert n_fresh >= n_old
                old.refresh()
                n_old = n = check_rows(old)
                assert n >= n_fresh
                assert fresh.checkpoints.params.shape[1] == 50
        for table in (kept, travelled):
            np.testing.assert_array_equal(table.params, np.arange(50) + np.arange(table.sizes["step"])[:, None] * 3)
    ended_well(writer)


# Appends and commits one row for each line that it gets.
OBEDIENT = """
import sys
from types import SimpleNamespace
from landscape.run_writer import RunWriter

layout = SimpleNamespace(
    names=("w",), shapes=((1,),), offsets=(0,), sizes=(1,), n_params=1, to_json=lambda: '[["w", [1]]]'
)
with RunWriter(sys.argv[1], layout, history=["loss"]) as writer:
    for step, line in enumerate(sys.stdin):
        writer.append(step, [step], loss=step)
        writer.commit()
        print("committed", flush=True)
"""


def test_a_handle_shows_new_rows_although_an_older_one_of_the_file_is_open(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", OBEDIENT, tmp_path / "a.h5"], **pipes) as writer:

        def one_more():
            writer.stdin.write("\n")
            assert writer.stdout.readline() == "committed\n"

        one_more()
        with open_run(tmp_path / "a.h5") as old:
            assert old.history.loss.values.tolist() == [0]
            one_more()
            with open_run(tmp_path / "a.h5") as fresh:
                assert fresh.history.loss.values.tolist() == [0, 1]
                assert old.history.loss.values.tolist() == [0]  # until it is refreshed
                one_more()
                assert old.refresh()
                assert old.checkpoints.params.values.tolist() == [[0], [1], [2]]
                assert fresh.refresh()
                assert fresh.history.loss.values.tolist() == [0, 1, 2]
        writer.stdin.close()


def test_readers_never_shut_out_a_writer_that_resumes(tmp_path):
    writer = start(tmp_path / "a.h5", n_steps=200, n_sessions=12)
    with open_run(tmp_path / "a.h5") as run:
        last = 0
        while run.status != "complete" and writer.poll() is None:
            run.refresh()
            assert check_rows(run) >= last
            last = run.history.sizes["step"]
    ended_well(writer)
    with open_run(tmp_path / "a.h5") as run:
        assert check_rows(run) == 200


def test_a_live_run_has_no_damage(tmp_path):
    writer = start(tmp_path / "a.h5", n_steps=400, pause=0.001)
    n_live = 0
    while writer.poll() is None:
        report = verify(tmp_path / "a.h5")
        assert report.damaged == ()
        n_live += report.status == "running"
    ended_well(writer)
    assert n_live > 1


def test_lazy_values_can_be_read_in_threads_while_the_run_is_refreshed(tmp_path):
    path = tmp_path / "a.h5"
    with RunWriter(path, LAYOUT, **OPTIONS) as writer:
        for step in range(300):
            writer.append(step, np.arange(50) + step, loss=step)
    wrong = []
    with open_run(path) as run:
        params = run.checkpoints.params

        def read(first):
            try:
                for step in range(first, 300, 4):
                    np.testing.assert_array_equal(params.isel(step=step).values, np.arange(50) + step)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            run.refresh()
        assert not wrong


def test_refresh_says_whether_anything_is_new(tmp_path):
    path = tmp_path / "a.h5"
    writer = RunWriter(path, LAYOUT, **(OPTIONS | {"n_modes": 0}))
    with open_run(path) as run:
        assert not run.refresh()
        writer.append(0, loss=1.0)
        assert not run.refresh()  # it waits in memory
        writer.commit()
        assert run.refresh()
        assert run.history.loss.values.tolist() == [1.0]
        assert not run.refresh()
        writer.append(1, np.zeros(50))
        writer.commit()
        assert run.refresh()
        assert run.checkpoints.step.values.tolist() == [1]
        writer.save_state(2, {"theta": np.ones(50)})
        writer.commit()
        assert run.refresh()
        assert int(run.state.step) == 2
        writer.finish("interrupted")
        assert run.refresh()
        assert run.status == "interrupted"
        assert not run.refresh()


def test_eigenpairs_recorded_since_show(tmp_path):
    import xarray as xr

    with RunWriter(tmp_path / "a.h5", LAYOUT, **OPTIONS, n_modes=1) as writer, open_run(writer.path) as run:
        assert run.eigenpairs is None
        pair = {
            "eigenvalue": (("step", "mode"), [[2.0]]),
            "eigenvector": (("step", "mode", "param"), np.eye(50)[:1, None]),
        }
        writer.append_eigenpairs(xr.Dataset(pair, {"step": [5]}))
        writer.commit()
        assert run.refresh()
        assert run.eigenpairs.eigenvalue.values.tolist() == [[2.0]]


def test_a_killed_run_stays_as_it_is_until_it_is_resumed(tmp_path):
    path = tmp_path / "a.h5"
    writer = start(path, n_steps=4000, pause=0.002)
    with open_run(path) as run:
        while run.history.sizes["step"] < 50:
            run.refresh()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        run.refresh()
        n = check_rows(run)
        assert not run.refresh()
        assert (run.status, check_rows(run)) == ("running", n)
        assert n < 4000
        ended_well(start(path, n_steps=4000))
        assert run.refresh()
        assert (run.status, check_rows(run)) == ("complete", 4000)


def test_a_file_that_is_gone_or_replaced_is_said_and_what_was_open_stays_readable(tmp_path):
    path = tmp_path / "a.h5"

    def record(loss):
        with RunWriter(path, LAYOUT, history=["loss"], overwrite=True) as writer:
            writer.append(0, loss=loss)

    record(1.0)
    with open_run(path) as run:
        path.rename(tmp_path / "b.h5")
        with pytest.raises(FileNotFoundError, match=r"a\.h5 is gone"):
            run.refresh()
        record(2.0)
        with pytest.raises(RunFormatError, match="another file has taken the place"):
            run.refresh()
        assert run.history.loss.values.tolist() == [1.0]
        with open_run(path) as other:
            assert other.history.loss.values.tolist() == [2.0]
    with pytest.raises(ValueError, match="is closed"):
        run.refresh()


class Screen(io.StringIO):
    """A terminal that understands what `watch` sends: text, lines up, and erase."""

    def isatty(self):
        return True

    def lines(self):
        rows = []
        for up, text in re.findall(r"(?:\x1b\[(\d+)F\x1b\[J)?([^\x1b]*)", self.getvalue()):
            rows = rows[: len(rows) - int(up)] if up else rows
            rows += text.splitlines()
        return rows


def test_watch_prints_a_line_when_anything_is_new_until_the_run_ends(tmp_path):
    writer = start(tmp_path / "a.h5", n_steps=400, pause=0.001)
    command = [sys.executable, "-m", "landscape", "inspect", "--watch", tmp_path / "a.h5", "--interval", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ended_well(writer)
    assert (done.returncode, done.stderr) == (0, "")
    *before, last = done.stdout.splitlines()
    assert re.fullmatch(r"a\.h5 complete; steps 400 of 400; loss 0\.0025; last row .* ago", last)
    steps = [int(re.search(r"steps (\d+) of 400", line)[1]) for line in before]
    assert steps == sorted(set(steps))
    pattern = (
        r"a\.h5 running; steps \d+ of 400(; loss [\d.]+)?(; rate [\d.e+]+ steps/s, [\d.]+ s left)?; last row .* ago"
    )
    assert all(re.fullmatch(pattern, line) for line in before)


def test_watch_keeps_a_few_lines_up_to_date_on_a_terminal(tmp_path, monkeypatch):
    path, screen = tmp_path / "a.h5", Screen()
    writer = RunWriter(path, LAYOUT, history=["loss"], config={"training": {"n_steps": 400}})
    looks = iter(range(1, 10))
    clock = [1e9]

    def train(interval):
        look = next(looks)
        clock[0] += 10
        for step in range(100 * (look - 1), 100 * look):
            writer.append(step, np.zeros(50) if step % 50 == 0 else None, loss=1 / (1 + step))
        if look == 4:
            writer.append(400, np.zeros(50))
            writer.finish()
        else:
            writer.commit()
        os.utime(path, (clock[0], clock[0]))

    os.utime(path, (clock[0], clock[0]))
    monkeypatch.setattr(time, "sleep", train)
    monkeypatch.setattr(time, "time", lambda: clock[0] + 3)
    seen = []
    write = screen.write
    monkeypatch.setattr(screen, "write", lambda text: (write(text), seen.append(screen.lines()))[0])
    watch(path, out=screen)
    assert seen[0] == ["a.h5  running", "steps     0 of 400", "last row  3.0 s ago"]
    assert seen[2] == [
        "a.h5  running",
        "steps     200 of 400",
        "loss      0.005",
        "rate      10 steps/s, 20 s left",
        "last row  3.0 s ago",
    ]
    # HDF5 writes once more when the reader in this process lets go of the file: its age is that of now.
    assert seen[4][:-1] == ["a.h5  complete", "steps     400 of 400", "loss      0.0025"]
    assert len(seen) == 5


def test_watch_of_a_killed_run_says_so_and_ends_by_ctrl_c_without_a_traceback(tmp_path):
    writer = start(tmp_path / "a.h5", n_steps=10**6)
    time.sleep(0.1)
    writer.kill()
    writer.communicate()
    command = [sys.executable, "-m", "landscape", "inspect", "--watch", tmp_path / "a.h5", "--interval", "0.02"]
    # A shell's background jobs ignore Ctrl-C, and so would what the tests start there.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    lines = [watching.stdout.readline() for _ in range(2)]
    watching.send_signal(signal.SIGINT)
    out, errors = watching.communicate(timeout=60)
    assert (watching.returncode, errors, out) == (0, "", "")
    assert "running; steps" in lines[0]
    assert "no writer holds it here" in lines[1]


def test_watch_refuses_bad_input(tmp_path, capsys):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"]):
        pass
    for arguments, message in (
        ([str(tmp_path / "no.h5")], "there is no file"),
        ([str(tmp_path / "a.h5"), "--interval", "0"], "interval must be positive, got 0.0"),
        ([str(tmp_path / "a.h5"), "--step", "3"], "either --watch or --step"),
    ):
        assert main(["inspect", "--watch", *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
