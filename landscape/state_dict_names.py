"""Checkpoint files of others by their names: which they are, their steps, and what stands before all names inside."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landscape.params import ParamLayout

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
"""What a folder of Hugging Face holds: the list of its shards, or one file."""

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before all names: DataParallel, torch.compile, and modules that hold a model."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of names that are no parameters: what batch norms have seen."""

STEP_NAMES = (r"step", r"checkpoint", r"ckpt", r"iter(?:ation)?", r"epoch", r"")


def files_by_step(source) -> dict[int, Path]:
    """The files of `source` by step, in the order of steps.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If the steps of two files are the same, or a name holds none.
    """
    if isinstance(source, Mapping):
        found = {int(step): Path(path) for step, path in source.items()}
        if not found:
            raise FileNotFoundError("the mapping of steps to files is empty")
        return dict(sorted(found.items()))
    paths = _paths(source)
    named = [(step_in(path), path) for path in paths] if len(paths) > 1 else [(step_in(paths[0], 0), paths[0])]
    twice = [step for step, n in Counter(step for step, _ in named).items() if n > 1]
    if twice:
        both = [str(path) for step, path in named if step == twice[0]]
        raise ValueError(f"step {twice[0]} is in several names ({', '.join(both[:3])}); give a mapping of step to file")
    return dict(sorted(named))


def step_in(path: Path, default: int | None = None) -> int:
    """The step that a file's name tells.

    Examples
    --------
    >>> [step_in(Path(name)) for name in ("epoch=3-step=900.ckpt", "checkpoint-500", "step_1200.pt", "weights_7.bin")]
    [900, 500, 1200, 7]
    """
    for name in STEP_NAMES:
        numbers = re.findall(rf"{name}[=_\-]?(\d+)", path.name if path.is_dir() else path.stem, flags=re.IGNORECASE)
        if numbers:
            return int(numbers[-1])
    if default is None:
        raise ValueError(f"the name of {path} tells no step; give a mapping of step to file")
    return default


def shared_prefix(names: Iterable[str], layout: ParamLayout | None = None) -> str:
    """What wrappers put before every name, as far as the layout has it not."""
    names, prefix = list(names), ""
    while names and not (layout is not None and set(layout.names) <= set(names)):
        known = next((known for known in PREFIXES if all(name.startswith(known) for name in names)), None)
        if known is None:
            break
        names, prefix = [name.removeprefix(known) for name in names], prefix + known
    return prefix


def is_folder_of_one(path: Path) -> bool:
    """Whether the folder `path` is one checkpoint, as Hugging Face writes it."""
    return path.is_dir() and any((path / name).exists() for name in (*INDEXES, *WHOLE))


def is_of_state_dicts(sources: Sequence[str | os.PathLike]) -> bool:
    """Whether these paths mean checkpoints of others: several, a folder, a pattern, or a file of their kinds."""
    first = Path(sources[0])
    return len(sources) > 1 or first.is_dir() or first.suffix in SUFFIXES or is_pattern(first)


def is_pattern(path: Path) -> bool:
    """Whether `path` stands for the files that it matches: it is none itself."""
    return any(letter in str(path) for letter in "*?[") and not path.exists()


def _paths(source) -> list[Path]:
    several = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else None
    if several is not None:
        paths = [Path(path) for path in several]
    elif Path(source).is_dir() and not is_folder_of_one(Path(source)):
        folder = Path(source)
        paths = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES or is_folder_of_one(path)]
        if not paths:
            raise FileNotFoundError(f"{folder} holds no checkpoint: no {', '.join(SUFFIXES)}, no folder of one")
    elif Path(source).exists():
        paths = [Path(source)]
    else:
        paths = [Path(path) for path in sorted(glob.glob(os.fspath(source)))]
    if not paths:
        raise FileNotFoundError(f"no file matches {source}; check the path")
    return paths
