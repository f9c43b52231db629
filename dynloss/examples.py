"""The gallery's named runs: trained when first asked for, then kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import torch

from dynloss.data import spiral
from dynloss.losses import loss_from_config
from dynloss.models import mlp
from dynloss.samplers import sampler_from_config
from dynloss.train import train
from landscape import RunFormatError, open_run
from landscape.writer_lock import is_being_written


def _spiral_run(loss: dict, *, width: int, learning_rate: float, n_steps: int, every: int = 15, **training) -> dict:
    """Settings of a run on the spiral task, the same data and the same initial parameters for every one."""
    return {
        "data": {"n_per_class": 100, "n_classes": 3, "seed": 0},
        "validation": {"n_per_class": 100, "n_classes": 3, "seed": 1},
        "model": {"n_inputs": 2, "width": width, "n_classes": 3, "seed": 0},
        "loss": {"n_classes": 3, **loss},
        "training": {
            "learning_rate": learning_rate,
            "n_steps": n_steps,
            "checkpoint_every": every,
            "eigenpairs_every": every,
            **training,
        },
    }


def _loss_run(loss: dict, learning_rate: float) -> dict:
    return _spiral_run(loss, width=50, learning_rate=learning_rate, n_steps=3000, eigenpairs=1, every=35)


def _schedule_run(schedule: dict) -> dict:
    loss = {"name": "dynamical_cross_entropy", "schedule": schedule}
    return _spiral_run(loss, width=50, learning_rate=1.0, n_steps=2000, eigenpairs=1, every=25)


def _batch_run(sampler: dict | None = None, **training) -> dict:
    loss = {"name": "cross_entropy"}
    run = _spiral_run(loss, width=50, learning_rate=1.0, n_steps=2000, optimizer="sgd", **training)
    return run | {"sampler": sampler}


_TRIANGLE = {"name": "triangle", "n_classes": 3, "amplitude": 70, "period": 500}
_SQUARED = {"name": "dynamical_squared_error", "amplitude": 20, "period": 1500}

EXAMPLES = {
    # Two periods of dynamical cross entropy, with every step around a bifurcation cascade.
    "cascade": _spiral_run(
        {"name": "dynamical_cross_entropy", "amplitude": 70, "period": 5000},
        width=100,
        learning_rate=1.0,
        n_steps=10_000,
        eigenpairs=3,
        windows=[(8500, 9500)],
    ),
    # The five losses, two periods each.
    "cross_entropy": _loss_run({"name": "cross_entropy"}, 1.0),
    "dynamical_cross_entropy": _loss_run({"name": "dynamical_cross_entropy", "amplitude": 70, "period": 1500}, 1.0),
    "squared_error": _loss_run({"name": "squared_error"}, 0.3),
    "dynamical_squared_error_sample": _loss_run(_SQUARED | {"weighting": "sample"}, 0.3),
    "dynamical_squared_error_component": _loss_run(_SQUARED | {"weighting": "component"}, 0.3),
    # Dynamical cross entropy under other schedules, four periods each.
    "triangle": _schedule_run(_TRIANGLE),
    "sine": _schedule_run(_TRIANGLE | {"name": "sine"}),
    "square": _schedule_run(_TRIANGLE | {"name": "square"}),
    "random_order": _schedule_run(_TRIANGLE | {"order": "random", "seed": 3}),
    "static_tail": _schedule_run({"name": "static_tail", "start": 1000, "schedule": _TRIANGLE}),
    "decaying_amplitude": _schedule_run({"name": "decaying_amplitude", "time": 500, "schedule": _TRIANGLE}),
    # Mini-batches with class probabilities that oscillate like Γ, and uniform ones, under the static loss.
    "oscillating_batches": _batch_run(sampler={"name": "oscillating", "batch_size": 50, "schedule": _TRIANGLE}),
    "uniform_batches": _batch_run(batch_size=50),
}
"""Settings by name."""


KEY_PATTERN = "[0-9a-f]" * 12


def example_run(name: str = "cascade", *, folder: str | os.PathLike | None = None) -> Path:
    """The run file of a named example, trained now unless the cache holds it.

    The cache is keyed on the example's settings, the sources of dynloss and landscape and the version of torch; files
    of other keys are removed. Training that was interrupted is resumed, and what another process trains is waited for.
    It uses one thread, for the same bits anywhere.

    Parameters
    ----------
    name : str
        One of `EXAMPLES`.
    folder : path-like, optional
        Where to keep it; by default DYNLOSS_CACHE of the environment, else ``dynloss`` in the user's cache folder.

    Returns
    -------
    Path
        A complete run, for `landscape.open_run`.

    Raises
    ------
    ValueError
        If there is no such example.
    """
    if name not in EXAMPLES:
        raise ValueError(f"there is no example {name!r}; choose from {', '.join(EXAMPLES)}")
    settings = EXAMPLES[name]
    folder = Path(folder) if folder is not None else cache_folder()
    path = folder / f"{name}-{_key(settings)}.h5"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if sys.stderr.isatty():  # like the progress bar: not into pages and logs
        print(f"Training the example run {name!r}, once; kept in {folder}", file=sys.stderr)
    unfinished = path.with_suffix(".part")
    while not path.exists():
        try:
            if not _is_complete(unfinished):
                _train(settings, unfinished)
            os.replace(unfinished, path)
        except BlockingIOError:  # another process trains it
            while is_being_written(unfinished):
                time.sleep(0.1)
        except FileNotFoundError:  # another process was quicker to give it its name
            if not path.exists():
                raise
    for stale in folder.glob(f"{name}-{KEY_PATTERN}.*"):
        if stale != path and stale.suffix in (".h5", ".part") and not is_being_written(stale):
            stale.unlink(missing_ok=True)
    return path


def _train(settings: dict, record: Path) -> None:
    """Train a run, or go on with it, in one thread."""
    data, sampler = spiral(**settings["data"]), settings.get("sampler")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(
            mlp(**settings["model"]),
            loss_from_config(settings["loss"]),
            data,
            validation=spiral(**settings["validation"]),
            sampler=sampler and sampler_from_config(sampler, data.targets),
            record=record,
            resume=True,
            **settings["training"],
        )
    finally:
        torch.set_num_threads(threads)


def _is_complete(unfinished: Path) -> bool:
    """Whether training ended, but was stopped before the file got its name; a damaged file is removed."""
    try:
        with open_run(unfinished) as run:
            return run.status == "complete"
    except FileNotFoundError:
        return False
    except RunFormatError:
        unfinished.unlink()
        return False


def cache_folder() -> Path:
    """Where example runs are kept unless told otherwise."""
    named = os.environ.get("DYNLOSS_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynloss"


def _key(settings: dict) -> str:
    digest = hashlib.sha256(json.dumps([settings, metadata.version("torch")], sort_keys=True).encode())
    for package in ("dynloss", "landscape"):
        root = files(package)
        for source in sorted(Path(str(root)).rglob("*.py")):
            digest.update(str(source.relative_to(str(root))).encode() + source.read_bytes())
    return digest.hexdigest()[:12]
