"""Example runs are trained once, again when their settings or the sources change, and go on where they were stopped."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import dynloss
from dynloss import examples
from dynloss.kernels import NetworkObjective
from dynloss.losses import loss_from_config
from dynloss.settings import TrainingSettings
from landscape import open_run
from landscape.writer_lock import WriterLock

TINY = {
    "data": {"n_per_class": 10, "n_classes": 3, "seed": 0},
    "validation": {"n_per_class": 5, "n_classes": 3, "seed": 1},
    "model": {"n_inputs": 2, "width": 6, "n_classes": 3, "seed": 4},
    "loss": {"name": "dynamical_cross_entropy", "n_classes": 3, "amplitude": 5, "period": 20},
    "training": {"learning_rate": 0.5, "n_steps": 80, "checkpoint_every": 10, "windows": [(20, 25)]},
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small example among the others; calling it gives its run, in a folder of its own."""
    monkeypatch.setitem(examples.EXAMPLES, "tiny", TINY)
    return lambda: dynloss.example_run("tiny", folder=tmp_path / "cache")


@pytest.fixture
def trainings(monkeypatch):
    """The files that were trained into, in order."""
    calls, train = [], examples.train

    def counted(*args, record, **options):
        calls.append(record)
        return train(*args, record=record, **options)

    monkeypatch.setattr(examples, "train", counted)
    return calls


def files(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_an_example_is_the_complete_run_of_its_settings_and_nothing_else_is_kept(tiny):
    path = tiny()
    assert files(path) == [path.name]
    with open_run(path) as run:
        assert run.status == "complete"
        assert run.config["loss"] == loss_from_config(TINY["loss"]).config()
        assert run.history.step.values.tolist() == list(range(80))
        assert run.checkpoints.step.values.tolist() == sorted({*range(0, 81, 10), *range(20, 25)})
        np.testing.assert_array_equal(run.data["training"].inputs, dynloss.spiral(10, 3, seed=0).inputs)
        np.testing.assert_array_equal(run.data["validation"].inputs, dynloss.spiral(5, 3, seed=1).inputs)
        first = torch.nn.utils.parameters_to_vector(dynloss.mlp(2, 6, 3, seed=4).parameters())
        np.testing.assert_array_equal(run.checkpoints.params[0], first.detach())


def test_it_is_trained_once_and_the_file_left_alone_after(tiny, trainings):
    path = tiny()
    before = path.stat().st_mtime_ns
    assert tiny() == path
    assert len(trainings) == 1
    assert path.stat().st_mtime_ns == before


def test_it_is_trained_with_one_thread_and_the_others_are_given_back(tiny):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_run(tiny()) as run:
            assert run.checkpoints.attrs["n_threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def change_settings(monkeypatch, sources):
    monkeypatch.setitem(examples.EXAMPLES, "tiny", TINY | {"training": TINY["training"] | {"learning_rate": 0.25}})


def change_source(monkeypatch, sources):
    (sources / "landscape" / "deep" / "b.py").write_text("x = 2\n")


def add_source(monkeypatch, sources):
    (sources / "dynloss" / "c.py").write_text("")


def rename_source(monkeypatch, sources):
    (sources / "dynloss" / "a.py").rename(sources / "dynloss" / "z.py")


def change_torch(monkeypatch, sources):
    monkeypatch.setattr(examples.metadata, "version", lambda package: "99.0")


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """Stand-ins for the installed packages whose sources count."""
    for file in ("dynloss/a.py", "landscape/__init__.py", "landscape/deep/b.py"):
        (tmp_path / "sources" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sources" / file).write_text("x = 1\n")
    monkeypatch.setattr(examples, "files", lambda package: tmp_path / "sources" / package)
    return tmp_path / "sources"


@pytest.mark.parametrize("change", [change_settings, change_source, add_source, rename_source, change_torch])
def test_what_changed_is_trained_anew_and_the_stale_run_removed(tiny, trainings, sources, monkeypatch, change):
    stale = tiny()
    assert tiny() == stale
    left = stale.with_name("tiny-0123456789ab.part")  # begun with yet another key
    left.write_text("")
    change(monkeypatch, sources)
    path = tiny()
    assert path != stale
    assert len(trainings) == 2
    assert files(path) == [path.name]


def test_files_of_other_examples_and_of_the_user_are_left_alone(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(examples.EXAMPLES, "tiny-wide", TINY | {"model": TINY["model"] | {"width": 9}})
    wide = dynloss.example_run("tiny-wide", folder=tmp_path / "cache")
    (wide.parent / "tiny-notes.h5").write_text("mine")
    path = tiny()
    assert files(path) == sorted([path.name, wide.name, "tiny-notes.h5"])


def test_a_changed_text_beside_the_sources_changes_nothing(tiny, sources):
    path = tiny()
    (sources / "dynloss" / "notes.txt").write_text("anything")
    assert tiny() == path


class Stop(Exception):
    """Ends a training."""


def test_an_interrupted_example_goes_on_where_it_stopped(tiny, monkeypatch, tmp_path):
    gradient, steps, stop_at = NetworkObjective.value_and_gradient, [], 70

    def counted(self, params, step):
        steps.append(step)
        if step == stop_at:
            raise Stop
        return gradient(self, params, step)

    monkeypatch.setattr(NetworkObjective, "value_and_gradient", counted)
    with pytest.raises(Stop):
        tiny()
    (unfinished,) = (tmp_path / "cache").iterdir()
    assert unfinished.suffix == ".part"
    stop_at = None
    steps.clear()
    path = tiny()
    assert steps == list(range(64, 80))  # from the last saved state on
    assert files(path) == [path.name]
    with open_run(path) as run, open_run(dynloss.example_run("tiny", folder=tmp_path / "other")) as undisturbed:
        assert run.status == "complete"
        assert run.history.identical(undisturbed.history)
        assert run.checkpoints.identical(undisturbed.checkpoints)


def test_an_example_that_another_process_trains_is_waited_for(tiny, trainings, tmp_path):
    path = tiny()
    os.rename(path, other := tmp_path / "other.h5")
    lock = WriterLock(path.with_suffix(".part"))  # as the other process holds it
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tiny)
        while len(trainings) < 2:
            assert not waiting.done(), waiting.exception()
        os.rename(other, path)
        lock.release()
        assert waiting.result(timeout=60) == path
    assert len(trainings) == 2  # the second was refused
    assert files(path) == [path.name]


def test_a_run_that_was_complete_but_not_yet_named_is_used(tiny, trainings):
    path = tiny()
    os.rename(path, path.with_suffix(".part"))
    assert tiny() == path
    assert len(trainings) == 1
    assert files(path) == [path.name]


def test_a_damaged_unfinished_file_is_replaced(tiny, trainings):
    path = tiny()
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".part").write_bytes(b"what the power cut left")
    assert tiny() == path
    assert len(trainings) == 2
    with open_run(path) as run:
        assert run.status == "complete"


def test_an_unknown_example_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"there is no example 'cascades'; choose from .*cascade"):
        dynloss.example_run("cascades")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DYNLOSS_CACHE": "/data/runs"}, "/data/runs"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/dynloss"),
        ({"DYNLOSS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/x"}, "/home/x/.cache/dynloss"),
    ],
)
def test_the_cache_lies_where_the_environment_says(monkeypatch, variables, expected):
    for name in ("DYNLOSS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(examples.cache_folder()) == expected


def test_the_default_folder_is_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(examples.EXAMPLES, "tiny", TINY)
    monkeypatch.setenv("DYNLOSS_CACHE", str(tmp_path / "elsewhere"))
    assert dynloss.example_run("tiny").parent == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_the_settings_of_each_example_are_valid_and_see_both_parities(name):
    settings = examples.EXAMPLES[name]
    training = TrainingSettings(**settings["training"])
    assert training.eigenpairs_every % 2 == training.checkpoint_every % 2 == 1
    assert all(training.saves_checkpoint(step) for step in range(training.n_steps) if training.saves_eigenpairs(step))
