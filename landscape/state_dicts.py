"""Checkpoints of any model as others save them, read lazily as those of a run are."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from landscape.params import ParamLayout
from landscape.state_dict_files import read_tensors
from landscape.state_dict_names import STATISTICS, files_by_step, shared_prefix


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

    Warns
    -----
    UserWarning
        If running statistics of batch norms differ from file to file: losses of evaluation mode then take those of one
        model at the parameters of another.

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
    prefixes, unused, wide, statistics, moved = set(), {}, False, None, None
    for path in paths.values():
        tensors = read_tensors(path, weights)
        prefix = shared_prefix(tensors, layout)
        _check(path, tensors, prefix, layout)
        prefixes.add(prefix)
        names = {prefix + name for name in layout.names}
        unused |= dict.fromkeys(name for name in tensors if name not in names)
        wide |= any(tensors[name].dtype == torch.float64 for name in names)
        own = {name: tensor.clone() for name, tensor in tensors.items() if name.endswith(STATISTICS[:2])}
        statistics = own if statistics is None else statistics
        if own.keys() != statistics.keys() or not all(torch.equal(own[name], statistics[name]) for name in own):
            moved = moved or path
    if moved is not None:
        warnings.warn(
            f"the running statistics of batch norms in {moved} are not those in {next(iter(paths.values()))}; "
            "those of the objective's model are used for every checkpoint",
            stacklevel=2,
        )
    kind = np.dtype(dtype or ("float64" if wide else "float32"))
    array = indexing.LazilyIndexedArray(StateDictArray(tuple(paths.values()), layout, weights, kind))
    attrs = {"layout": layout.to_json(), "prefix": " ".join(sorted(prefixes)), "unused": list(unused)}
    variable = xr.Variable(("step", "param"), array, {"long_name": "parameters θ"})
    return xr.Dataset({"params": variable}, {"step": np.array(list(paths), np.int64)}, attrs)


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
