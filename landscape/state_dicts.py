"""Checkpoints of any model as others save them, read lazily as those of a run are."""

from __future__ import annotations

import difflib
import os
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
    buffers: ParamLayout | None = None,
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
    buffers : ParamLayout, optional
        Names and shapes of the buffers that belong to each checkpoint; by default the running statistics of batch
        norms, where the first file holds any. ``ParamLayout.of_buffers(model)`` is that of all buffers of a model.
    dtype : str, optional
        "float64" or "float32"; by default float64 if any tensor is, else float32.

    Returns
    -------
    xarray.Dataset
        ``params`` (step, param), in the order of steps; ``buffers`` (step, buffer) where there are any, with which
        analyses evaluate the model at that step. Attrs: ``layout`` and ``buffer_layout``; ``prefix``, what was taken
        off; ``unused``, other names in the files.

    Raises
    ------
    FileNotFoundError
        If there are no files.
    ValueError
        If a file is damaged or refused, lacks tensors or has them in other shapes, each of which is named with the
        nearest name in the file, or steps cannot be told.

    Examples
    --------
    >>> checkpoints = read_state_dicts("ckpts/*.pt", objective.layout)  # doctest: +SKIP
    """
    if weights not in ("raw", "ema"):
        raise ValueError(f'weights must be "raw" or "ema", got {weights!r}')
    if dtype not in (None, "float64", "float32"):
        raise ValueError(f'dtype must be "float64" or "float32", got {dtype!r}')
    paths = files_by_step(source)
    prefixes, unused, wide = [], {}, False
    for path in paths.values():
        tensors = read_tensors(path, weights)
        prefixes.append(prefix := shared_prefix(tensors, layout))
        buffers = statistics_in(tensors, prefix, layout) if buffers is None else buffers
        names = [prefix + name for name in (*layout.names, *buffers.names)]
        _check(path, tensors, prefix, {layout: "parameters", buffers: "buffers"})
        unused |= dict.fromkeys(name for name in tensors if name not in names)
        wide |= any(tensors[name].dtype == torch.float64 for name in names)
    kind = np.dtype(dtype or ("float64" if wide else "float32"))
    files = tuple(zip(paths.values(), prefixes, strict=True))
    attrs = {"layout": layout.to_json(), "prefix": " ".join(sorted(set(prefixes))), "unused": list(unused)}
    found = {"params": _variable("param", files, layout, weights, kind, "parameters θ")}
    if buffers.names:
        found["buffers"] = _variable("buffer", files, buffers, weights, kind, "buffers of the model")
        attrs["buffer_layout"] = buffers.to_json()
    return xr.Dataset(found, {"step": np.array(list(paths), np.int64)}, attrs)


def _variable(dim: str, files, layout: ParamLayout, weights: str, dtype: np.dtype, label: str) -> xr.Variable:
    array = indexing.LazilyIndexedArray(StateDictArray(files, layout, weights, dtype))
    return xr.Variable(("step", dim), array, {"long_name": label})


def parameters_in(tensors: Mapping[str, torch.Tensor]) -> ParamLayout:
    """All floating-point tensors of a file but what batch norms have seen: θ where no model says what it is."""
    held = {n: tuple(t.shape) for n, t in tensors.items() if t.is_floating_point() and not n.endswith(STATISTICS)}
    return ParamLayout(tuple(held), tuple(held.values()))


def statistics_in(tensors: Mapping[str, torch.Tensor], prefix: str, layout: ParamLayout) -> ParamLayout:
    """The running means and variances among the tensors of a file."""
    names = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.endswith(STATISTICS[:2])}
    chosen = {name: tuple(tensor.shape) for name, tensor in names.items() if name not in layout.names}
    return ParamLayout(tuple(chosen), tuple(chosen.values()))


class StateDictArray(BackendArray):
    """Tensors of many files as rows: one is read from its file when it is asked for."""

    def __init__(self, files: tuple[tuple[Path, str], ...], layout: ParamLayout, weights: str, dtype: np.dtype):
        self.files, self.layout, self.weights, self.dtype = files, layout, weights, dtype
        self.shape = (len(files), layout.n_params)

    def __getitem__(self, key: indexing.ExplicitIndexer):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        rows, columns = key
        chosen = np.arange(self.shape[0])[rows]
        found = [self._row(*self.files[row])[columns] for row in np.atleast_1d(chosen).tolist()]
        return np.stack(found) if np.ndim(chosen) else found[0]

    def _row(self, path: Path, prefix: str) -> np.ndarray:
        tensors = read_tensors(path, self.weights)
        _check(path, tensors, prefix, {self.layout: "tensors"})
        kind = torch.float64 if self.dtype == np.float64 else torch.float32
        return self.layout.flatten([tensors[prefix + name].detach().to(kind) for name in self.layout.names]).numpy()


MOST = 10
"""Defects of a file that are named."""


def _check(path: Path, tensors: Mapping[str, torch.Tensor], prefix: str, layouts: Mapping[ParamLayout, str]) -> None:
    """Raise ValueError unless every tensor of the layouts is there in its shape, in numbers; each defect is named."""
    there = [name.removeprefix(prefix) for name in tensors]
    for layout, what in layouts.items():
        found = []
        missing = [name for name in layout.names if prefix + name not in tensors]
        free = [name for name in there if name not in layout.names]
        for name in missing:
            near = difflib.get_close_matches(name, free, 1, cutoff=0.3)
            free = [other for other in free if other not in near]
            found.append(f"{name} is missing" + (f" (the nearest name is {near[0]})" if near else ""))
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            tensor = tensors.get(prefix + name)
            if tensor is not None and tuple(tensor.shape) != shape:
                found.append(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
            elif tensor is not None and not tensor.is_floating_point():
                found.append(f"{name} is {tensor.dtype}, not floating-point numbers")
        if found:
            more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
            raise ValueError(
                f"{path} does not fit the model, {len(found)} of {len(layout.names)} {what}: "
                f"{'; '.join(found[:MOST])}{more}"
            )
