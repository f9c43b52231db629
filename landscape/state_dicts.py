"""Checkpoints of any model as others save them, read lazily as those of a run are."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from landscape.params import ParamLayout
from landscape.state_dict_files import SUFFIXES, is_folder_of_one, read_tensors

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before all names: DataParallel, torch.compile, and modules that hold a model."""

STEP_NAMES = (r"step", r"checkpoint", r"ckpt", r"iter(?:ation)?", r"epoch", r"")


def read_state_dicts(
    source: str | os.PathLike | Sequence | Mapping[int, str | os.PathLike],
    layout: ParamLayout,
    *,
    weights: str = "raw",
    dtype: str | None = None,
) -> xr.Dataset:
    """Checkpoints in files that others wrote, as a Dataset like ``run.checkpoints``; a row is read when it is used.

    Files may be of torch.save (.pt, .pth, .bin, Lightning's .ckpt), safetensors, or folders of Hugging Face, sharded
    too. Nothing in them is run: files with anything but tensors, numbers and texts are refused. A prefix that all names
    share and the layout has not (``module.``, ``_orig_mod.``, ``model.``, ``net.``) is taken off, which attrs say.

    Parameters
    ----------
    source : path, sequence of paths, or mapping of int to path
        By step; a folder; or a pattern such as ``"ckpts/*.pt"``. Steps not given are those in the names, as in
        ``step_1200``, ``epoch=3-step=900`` or ``checkpoint-500``.
    layout : ParamLayout
        Names and shapes of the tensors of θ: ``objective.layout``.
    weights : {"raw", "ema"}
        Which, where files hold averaged weights too.
    dtype : str, optional
        "float64" or "float32"; by default float64 if any tensor is, else float32.

    Returns
    -------
    xarray.Dataset
        ``params`` (step, param), in the order of steps. Attrs: ``layout``; ``prefix``, what was taken off; ``unused``,
        names in the files that are no parameters of the layout, such as running statistics of batch norms: those of the
        objective's model are used for every checkpoint.

    Raises
    ------
    FileNotFoundError
        If there are no files.
    ValueError
        If a file is damaged or refused, lacks a parameter or has it in another shape, or steps cannot be told.

    Examples
    --------
    >>> checkpoints = read_state_dicts("ckpts/*.pt", objective.layout)  # doctest: +SKIP
    """
    if weights not in ("raw", "ema"):
        raise ValueError(f'weights must be "raw" or "ema", got {weights!r}')
    if dtype not in (None, "float64", "float32"):
        raise ValueError(f'dtype must be "float64" or "float32", got {dtype!r}')
    paths = files_by_step(source)
    prefixes, unused, wide = set(), {}, False
    for path in paths.values():
        tensors = read_tensors(path, weights)
        prefix = shared_prefix(tensors, layout)
        _check(path, tensors, prefix, layout)
        prefixes.add(prefix)
        names = {prefix + name for name in layout.names}
        unused |= dict.fromkeys(name for name in tensors if name not in names)
        wide |= any(tensors[name].dtype == torch.float64 for name in names)
    kind = np.dtype(dtype or ("float64" if wide else "float32"))
    array = indexing.LazilyIndexedArray(StateDictArray(tuple(paths.values()), layout, weights, kind))
    attrs = {"layout": layout.to_json(), "prefix": " ".join(sorted(prefixes)), "unused": list(unused)}
    variable = xr.Variable(("step", "param"), array, {"long_name": "parameters θ"})
    return xr.Dataset({"params": variable}, {"step": np.array(list(paths), np.int64)}, attrs)


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


def shared_prefix(names, layout: ParamLayout) -> str:
    """What stands before every name and not in the layout."""
    names, prefix = list(names), ""
    while not set(layout.names) <= set(names):
        for known in PREFIXES:
            if names and all(name.startswith(known) for name in names):
                names, prefix = [name.removeprefix(known) for name in names], prefix + known
                break
        else:
            return prefix
    return prefix


class StateDictArray(BackendArray):
    """θ of many files: a row is read from its file when it is asked for."""

    def __init__(self, paths: tuple[Path, ...], layout: ParamLayout, weights: str, dtype: np.dtype):
        self.paths, self.layout, self.weights, self.dtype = paths, layout, weights, dtype
        self.shape = (len(paths), layout.n_params)

    def __getitem__(self, key: indexing.ExplicitIndexer):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        rows, columns = key
        chosen = np.arange(self.shape[0])[rows]
        found = [self._row(int(row))[columns] for row in np.atleast_1d(chosen)]
        return np.stack(found) if np.ndim(chosen) else found[0]

    def _row(self, row: int) -> np.ndarray:
        tensors = read_tensors(self.paths[row], self.weights)
        prefix = shared_prefix(tensors, self.layout)
        _check(self.paths[row], tensors, prefix, self.layout)
        kind = torch.float64 if self.dtype == np.float64 else torch.float32
        return self.layout.flatten([tensors[prefix + name].to(kind) for name in self.layout.names]).numpy()


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


def _check(path: Path, tensors: Mapping[str, torch.Tensor], prefix: str, layout: ParamLayout) -> None:
    """Raise ValueError unless every parameter of the layout is there in its shape, in numbers."""
    missing = [name for name in layout.names if prefix + name not in tensors]
    if missing:
        near = difflib.get_close_matches(missing[0], [name.removeprefix(prefix) for name in tensors], 1, cutoff=0.3)
        hint = f"; the nearest name is {near[0]}" if near else ""
        raise ValueError(f"{path} lacks {len(missing)} of {len(layout.names)} parameters, first {missing[0]}{hint}")
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        tensor = tensors[prefix + name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, that of the layout is {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}, not floating-point numbers")
