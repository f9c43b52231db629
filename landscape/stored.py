"""Variables that stay in their HDF5 file until they are indexed."""

from __future__ import annotations

import math

import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from landscape.attributes import ENCODING
from landscape.entries import stored_entries
from landscape.file_handle import LOCK, FileHandle, RunFormatError, damage_named
from landscape.whole_guard import WholeGuard


class StoredArray(BackendArray):
    """A stored variable cut to its committed rows; indexing reads just what is asked for."""

    def __init__(self, handle: FileHandle, path: str, shape: tuple[int, ...], dtype: np.dtype, guard):
        self.handle, self.path, self.shape, self.dtype, self.guard = handle, path, shape, dtype, guard

    def __getitem__(self, key: indexing.ExplicitIndexer):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple):
        # Resolved against the committed shape: the file may hold more rows than are committed.
        key = tuple(_resolve(k, size) for k, size in zip(key, self.shape, strict=True))
        with LOCK:
            _ = self.handle.file  # raises where it is closed
            with damage_named(self.handle.path, self.path):
                self.guard.check(key[0] if key else ())
                values = self.handle[self.path][key]
        return np.asarray(values).astype(self.dtype, copy=False)


def lazy_variable(handle: FileHandle, path: str, dims, attrs, limits, guard=None) -> xr.Variable:
    """The variable stored at `path`; `limits` are its committed lengths, None where all is committed.

    A `guard` checks the rows that are read; what has a checksum as a whole is checked as a whole.
    """
    dataset = handle[path]
    short = [dim for dim, size, n in zip(dims, dataset.shape, limits, strict=True) if n is not None and size < n]
    if short:
        raise RunFormatError(f"{handle.path}: {path} has {dataset.shape[0]} rows where {limits[0]} are committed")
    shape = tuple(size if n is None else n for size, n in zip(dataset.shape, limits, strict=True))
    if stored_entries(dataset) < math.prod(shape):
        raise RunFormatError(f"{handle.path}: {path} claims {shape} entries, more than the file holds")
    guard = guard or WholeGuard(handle, path)
    if dataset.dtype == "S1" and dataset.ndim and ENCODING in dataset.attrs:
        with damage_named(handle.path, path):
            guard.check()
            return xr.Variable(dims[:-1], _joined_texts(dataset), attrs)
    if h5py.check_string_dtype(dataset.dtype) is not None:
        values = dataset.asstr()[()]
        return xr.Variable(dims, np.asarray(values, dtype=str) if np.size(values) else np.zeros(shape, "U1"), attrs)
    dtype = dataset.dtype
    if dtype.kind not in "iuf":
        raise RunFormatError(f"{handle.path}: {path} has type {dtype}; only numbers, flags and texts are read")
    if dtype == np.int8 and dataset.attrs.get("dtype") in ("bool", b"bool"):
        dtype = np.dtype(bool)
    data = indexing.LazilyIndexedArray(StoredArray(handle, path, shape, dtype.newbyteorder("="), guard))
    chunks = dict(zip(dims, dataset.chunks, strict=True)) if dataset.chunks else {}
    return xr.Variable(dims, data, attrs, {"preferred_chunks": chunks} if chunks else None)


def _joined_texts(dataset: h5py.Dataset) -> np.ndarray:
    """Texts stored as characters along the last dim."""
    letters = np.ascontiguousarray(dataset[()])
    if not letters.size:
        return np.zeros(letters.shape[:-1], "U1")
    return np.char.decode(letters.view(f"S{letters.shape[-1]}")[..., 0], "utf-8")


def read_now(variable: xr.Variable) -> xr.Variable:
    """`variable` with its values in memory."""
    return xr.Variable(variable.dims, variable.values, variable.attrs)


def _resolve(key, size: int):
    if isinstance(key, slice):
        return slice(*key.indices(size))
    if isinstance(key, np.ndarray):
        return np.where(key < 0, key + size, key)
    return int(key) + size if key < 0 else int(key)
