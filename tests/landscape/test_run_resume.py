"""A killed run goes on where its file ends, to the same end as an undisturbed one; a run has one writer."""

import os
import signal
import struct
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from landscape import ParamLayout, RunFormatError, RunWriter, open_run
from landscape.superblock import lookup3, make_writable
from landscape.writer_lock import is_being_written, lock_path

# Chaotic in θ and in its random numbers, so that a wrong state shows at once. Imports no torch, to start quickly.
TRAINING = """
import sys
from types import SimpleNamespace
import numpy as np
from landscape.run_writer import RunWriter

path, n_steps = sys.argv[1], int(sys.argv[2])
layout = SimpleNamespace(
    names=("w",), shapes=((40,),), offsets=(0,), sizes=(40,), n_params=40, to_json=lambda: '[["w", [40]]]'
)
theta, random, start = np.linspace(0.1, 0.9, 40), np.zeros(3, np.uint64), 0
writer = RunWriter(
    path, layout, history={"loss": {}}, attrs={"optimizer": "gd", "betas": (0.9, 0.99)}, block_rows=8, resume=True,
    state={"theta": theta, "random": random},
)
with writer:
    if writer.state is not None:
        theta, random = writer.state["theta"].values.copy(), writer.state["random"].values.copy()
        start = int(writer.state["step"])
    for step in range(start, n_steps):
        if step == start + 1000:
            print("a thousand steps", flush=True)
        if step % 5 == 0:
            writer.save_state(step, {"theta": theta, "random": random})
        writer.append(step, theta if step % 3 == 0 else None, loss=theta.sum())
        random = random * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        theta = 3.9 * theta * (1 - theta) * (1 - 1e-6 * (random[0] / 2**64))
"""
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error"}


def train(path, n_steps, kill_after=None):
    """Train in another process, killed so many seconds after it has said that it is a thousand steps on."""
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, path, str(n_steps)], env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    with training.stdout:
        if kill_after is not None:
            training.stdout.readline()
            time.sleep(kill_after)
            training.send_signal(signal.SIGKILL)
        return training.wait()


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path, seed):
    n_steps = 40_000
    assert train(tmp_path / "whole.h5", n_steps) == 0
    killed = tmp_path / "killed.h5"
    assert {train(killed, n_steps, kill_after=t) for t in np.random.default_rng(seed).uniform(0, 0.05, 3)} == {-9}
    with open_run(killed) as run:
        assert run.status == "running"
        assert 2000 < run.history.sizes["step"] < n_steps
    assert train(killed, n_steps) == 0
    with open_run(tmp_path / "whole.h5") as whole, open_run(killed) as killed:
        assert killed.status == "complete"
        assert whole.history.identical(killed.history)
        assert whole.checkpoints.identical(killed.checkpoints)
        assert whole.history.sizes["step"] == n_steps


LAYOUT = ParamLayout(("w",), ((4,),))
OPTIONS = {"history": ["loss"], "attrs": {"optimizer": "gd"}, "state": {"theta": np.zeros(4), "seed": np.uint8([0, 0])}}


def interrupted(path, n_steps=5, **options):
    with RunWriter(path, LAYOUT, **(OPTIONS | options)) as writer:
        for step in range(n_steps):
            writer.append(step, np.full(4, float(step)), loss=step)
            writer.save_state(step + 1, {"theta": np.full(4, step + 1.0), "seed": np.uint8([step, 1])})
        writer.finish("interrupted")
    return path


def test_an_interrupted_run_goes_on(tmp_path):
    path = interrupted(tmp_path / "a.h5")
    with open_run(path) as run:
        assert run.state.theta.values.tolist() == [5.0] * 4
        assert run.state.theta.dims == ("param",)
        assert run.state.seed.values.tolist() == [4, 1]
    with RunWriter(path, LAYOUT, resume=True, **OPTIONS) as writer:
        assert writer.state.step == 5
        with pytest.raises(ValueError, match="steps must increase"):
            writer.append(-1, loss=0)
        for step in range(3, 8):  # two rows again, three new ones
            writer.append(step, np.full(4, float(step)), loss=step)
    with open_run(path) as run:
        assert run.status == "complete"
        assert run.history.loss.values.tolist() == list(range(8))
        assert run.checkpoints.params[:, 0].values.tolist() == list(range(8))
    with pytest.raises(ValueError, match="is complete; there is nothing to resume"):
        RunWriter(path, LAYOUT, resume=True, **OPTIONS)


def test_repeated_rows_that_differ_are_noticed_and_the_file_keeps_its_own(tmp_path):
    path = interrupted(tmp_path / "a.h5")
    with RunWriter(path, LAYOUT, resume=True, **OPTIONS) as writer:
        with pytest.warns(RuntimeWarning, match=r"resumed training gives another loss at step 3"):
            writer.append(3, loss=3.5)
        writer.append(4, loss=4.5)  # said once
        writer.append(5, loss=5.5)
    with open_run(path) as run:
        assert run.history.loss.values.tolist() == [0, 1, 2, 3, 4, 5.5]


def test_repeated_rows_with_another_state_of_the_optimiser_are_noticed(tmp_path):
    path, options = tmp_path / "a.h5", {"history": ["loss"], "optimizer_state": ["velocity"]}
    with RunWriter(path, LAYOUT, **options) as writer:
        for step in range(4):
            writer.append(step, np.zeros(4), optimizer_state={"velocity": np.full(4, float(step))}, loss=step)
        writer.finish("interrupted")
    with RunWriter(path, LAYOUT, resume=True, **options) as writer:
        writer.append(2, np.zeros(4), optimizer_state={"velocity": np.full(4, 2.0)}, loss=2)
        with pytest.warns(RuntimeWarning, match="resumed training gives another velocity at step 3"):
            writer.append(3, np.zeros(4), optimizer_state={"velocity": np.full(4, 3.5)}, loss=3)
        writer.append(4, np.zeros(4), optimizer_state={"velocity": np.full(4, 4.5)}, loss=4)
    with open_run(path) as run:
        assert run.checkpoints.velocity[:, 0].values.tolist() == [0, 1, 2, 3, 4.5]


@pytest.mark.parametrize("ours", [[], ["second_moment"], ["velocity", "second_moment"]])
def test_a_run_with_another_state_of_the_optimiser_is_not_resumed(tmp_path, ours):
    path, options = tmp_path / "a.h5", {"history": ["loss"]}
    with RunWriter(path, LAYOUT, **options, optimizer_state=["velocity"]) as writer:
        writer.finish("interrupted")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"its optimizer state is \['velocity'\], not \[") as caught:
        RunWriter(path, LAYOUT, resume=True, **options, optimizer_state=ours)
    assert str(sorted(ours)) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": ["loss", "accuracy"]}, "its history is"),
        ({"attrs": {"optimizer": "adam"}}, 'its attribute optimizer is "gd", not "adam"'),
        ({"attrs": {}}, 'its attribute optimizer is "gd", not null'),
        ({"dtype": "float32"}, "its dtype is float64, not float32"),
        ({"n_modes": 2}, "its number of modes is 0, not 2"),
        ({"state": {}}, "its state is"),
        ({"state": {"theta": np.zeros(4), "seed": np.uint8([0])}}, "its state is"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, change, message):
    path = interrupted(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        RunWriter(path, LAYOUT, resume=True, **(OPTIONS | change))
    with pytest.raises(ValueError, match="its layout is"):
        RunWriter(path, ParamLayout(("v",), ((4,),)), resume=True, **OPTIONS)
    assert path.read_bytes() == before
    assert not is_being_written(path)


def test_a_state_that_was_not_declared_is_refused(tmp_path):
    with RunWriter(tmp_path / "a.h5", LAYOUT, **OPTIONS) as writer:
        with pytest.raises(ValueError, match="the state must give theta, seed"):
            writer.save_state(0, {"theta": np.zeros(4)})
        with pytest.raises(ValueError, match="the state theta must be float64 of shape"):
            writer.save_state(0, {"theta": np.zeros(3), "seed": np.uint8([0, 0])})
    with open_run(tmp_path / "a.h5") as run:
        assert run.state is None
    with RunWriter(tmp_path / "b.h5", LAYOUT, history=["loss"]) as writer, pytest.raises(ValueError, match="no state"):
        writer.save_state(0, {})
    with pytest.raises(ValueError, match="names of the state"):
        RunWriter(tmp_path / "c.h5", LAYOUT, history=[], state={"rows": np.zeros(2)})


def test_of_two_writers_the_second_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with RunWriter(path, LAYOUT, **OPTIONS) as writer:
        assert is_being_written(path)
        for options in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(BlockingIOError, match="is being written already, here or in another process"):
                RunWriter(path, LAYOUT, **OPTIONS, **options)
        writer.append(0, loss=1.0)
    assert not is_being_written(path)
    assert not lock_path(path).exists()
    with open_run(path) as run:
        assert run.history.loss.values.tolist() == [1]


def test_a_lock_file_left_by_a_killed_writer_means_nothing(tmp_path):
    lock_path(tmp_path / "a.h5").touch()
    interrupted(tmp_path / "a.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_a_file_open_elsewhere_is_not_resumed(tmp_path):
    path = interrupted(tmp_path / "a.h5")
    code = f"import h5py, time; file = h5py.File({str(path)!r}); print('open', flush=True); time.sleep(60)"
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError, match="is open in another program"):
            RunWriter(path, LAYOUT, resume=True, **OPTIONS)
    finally:
        reader.kill()
        reader.communicate()


@pytest.mark.parametrize(
    ("data", "seed", "checksum"),
    [
        (b"", 0, 0xDEADBEEF),
        (b"", 0xDEADBEEF, 0xBD5B7DDE),
        (b"Four score and seven years ago", 0, 0x17770551),
        (b"Four score and seven years ago", 1, 0xCD628161),
    ],
)
def test_lookup3_gives_the_published_values(data, seed, checksum):
    assert lookup3(data, seed) == checksum


def test_the_superblock_of_a_killed_file_becomes_writable(tmp_path):
    path = interrupted(tmp_path / "a.h5")
    block = bytearray(path.read_bytes()[:48])
    block[11] = 5  # open for writing, by a SWMR writer
    block[44:] = struct.pack("<I", lookup3(bytes(block[:44])))
    with path.open("r+b") as file:
        file.write(block)
    with pytest.raises(OSError, match="flag"):
        h5py.File(path, "r")
    make_writable(path)
    with h5py.File(path, "r+") as file:
        assert file["history/loss"].shape == (5,)
    with path.open("r+b") as file:
        file.write(bytes(20))
    with pytest.raises(RunFormatError, match="does not begin like a run file"):
        make_writable(path)
