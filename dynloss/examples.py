"""The gallery's named runs: trained when first asked for, then kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import torch

from dynloss.data import spiral
from dynloss.losses import loss_from_config
from dynloss.models import mlp
from dynloss.train import train
from landscape import RunFormatError, open_run
from landscape.writer_lock import is_being_written

EXAMPLES = {
    "cascade": {
        "data": {"n_per_class": 100, "n_classes": 3, "seed": 0},
        "validation": {"n_per_class": 100, "n_classes": 3, "seed": 1},
        "model": {"n_inputs": 2, "width": 100, "n_classes": 3, "seed": 0},
        "loss": {"name": "dynamical_cross_entropy", "n_classes": 3, "amplitude": 70, "period": 5000},
        "training": {
            "learning_rate": 1.0,
            "n_steps": 10_000,
            "checkpoint_every": 15,
            "eigenpairs": 3,
            "eigenpairs_every": 15,
            "windows": [(8500, 9500)],
            "seed": 0,
        },
    },
}
"""Settings by name. "cascade": two periods of dynamical cross entropy, with every step around a bifurcation cascade."""


KEY_PATTERN = "[0-9a-f]" * 12


def example_run(name: str = "cascade", *, folder: str | os.PathLike | None = None) -> Path:
    """The run file of a named example, trained now unless the cache holds it.

    The cache is keyed on the example's settings, the sources of dynloss and landscape and the version of torch; files
    of other keys are removed. Training that was interrupted is resumed. It uses one thread, for the same bits anywhere.

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
        print(f"Training the example run {name!r}: about a minute, once; kept in {folder}", file=sys.stderr)
    unfinished = path.with_suffix(".part")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if not _is_complete(unfinished):
            train(
                mlp(**settings["model"]),
                loss_from_config(settings["loss"]),
                spiral(**settings["data"]),
                validation=spiral(**settings["validation"]),
                record=unfinished,
                resume=True,
                **settings["training"],
            )
    finally:
        torch.set_num_threads(threads)
    os.replace(unfinished, path)
    for stale in folder.glob(f"{name}-{KEY_PATTERN}.*"):
        if stale != path and stale.suffix in (".h5", ".part") and not is_being_written(stale):
            stale.unlink(missing_ok=True)
    return path


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
