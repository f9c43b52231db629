"""Variables that stay in their HDF5 file until they are indexed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

READ_ATTEMPTS = 25

ENCODING = "_Encoding"
"""Attribute of an array of characters that holds texts along its last dim (netCDF and xarray know it)."""

COMPRESSION = 1100
"""HDF5's filters shrink values at most so many times: deflate's best is 1032."""

LARGEST_CHUNK = 2**26
"""No file of ours has larger chunks; to read one compressed entry, HDF5 would hold the whole chunk."""

_HANDLES: weakref.WeakSet[FileHandle] = weakref.WeakSet()
LOCK = threading.RLock()
"""Held while a file is read or opened anew: what was read of it must not lose its file meanwhile."""


class RunFormatError(ValueError):
    """A file is not what it should be: another format, a newer version, or damaged."""

    def __init__(self, message: str):  # what a file calls its parts must not break the line, or the terminal
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in message))


@contextlib.contextmanager
def damage_named(path: Path, what: str) -> Iterator[None]:
    """Whatever h5py raises on damaged objects becomes a RunFormatError that names the file and `what` was read."""
    try:
        yield
    except RunFormatError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise RunFormatError(f"{path}: {what} cannot be read: {_first_line(error)}") from None


class FileHandle:
    """An HDF5 file open for reading, also while another process writes it and after its writer was killed.

    Parameters
    ----------
    path : str or path-like
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RunFormatError
        If it is not an HDF5 file, or damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._objects: dict[str, h5py.HLObject] = {}
        if not self.path.exists():
            raise FileNotFoundError(f"there is no file {self.path}; check the path")
        if self.path.is_dir():
            raise RunFormatError(f"{self.path} is a directory; give the path of a file in it")
        if not os.access(self.path, os.R_OK):
            raise PermissionError(f"no permission to read {self.path}")
        if not h5py.is_hdf5(self.path):
            raise RunFormatError(f"{self.path} is not an HDF5 file; give a file that landscape wrote")
        with LOCK:
            self._file, self._found = None, os.stat(self.path)
            # HDF5 keeps one cache for all handles of a file in a process: the old ones would show us old rows.
            others = self._others()
            if any(other.is_out_of_date() for other in others):
                _open_anew([*others, self])
            else:
                self._open()
            _HANDLES.add(self)

    def _open(self) -> None:
        self._found = os.stat(self.path)
        # As a SWMR reader: the only way into files that are being written, or whose writer was killed. Without a lock,
        # which could shut out a writer that resumes just then; with it where this process writes the file itself.
        for locking in (False, True):
            with contextlib.suppress(OSError):
                self._file = _open_as_swmr_reader(self.path, locking)
                return
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise RunFormatError(f"{self.path} is damaged and cannot be opened: {_first_line(error)}") from None

    def _others(self) -> list[FileHandle]:
        """The other open handles of this file in this process."""
        found = [handle for handle in _HANDLES if handle is not self and handle.is_open]
        return [handle for handle in found if os.path.samestat(handle._found, self._found)]

    def is_out_of_date(self) -> bool:
        """Whether the file may hold more than this handle shows; no if it is gone or replaced."""
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        noted = (self._found.st_mtime_ns, self._found.st_size)
        # The clock of a file system ticks some hundred times a second: what changed just now may change unnoticed.
        changed = (now.st_mtime_ns, now.st_size) != noted or abs(time.time() - self._found.st_mtime) < 0.1
        return changed and os.path.samestat(now, self._found)

    def refresh(self) -> None:
        """Show what was written since the file was opened, here and in every other handle of it in this process.

        Raises
        ------
        FileNotFoundError
            If the file is gone; the handle stays as it was.
        RunFormatError
            If another file has taken its place; the handle stays as it was.
        """
        with LOCK:
            _ = self.file
            if not self.path.exists():
                raise FileNotFoundError(f"{self.path} is gone; what was open of it is still readable")
            if not os.path.samestat(os.stat(self.path), self._found):
                raise RunFormatError(f"another file has taken the place of {self.path}; open it again")
            _open_anew([*self._others(), self])

    @property
    def file(self) -> h5py.File:
        """The open file; raises ValueError once it is closed."""
        if not self._file:
            raise ValueError(
                f"{self.path} is closed: read inside `with open_run(…)`, or call .load() before leaving it"
            )
        return self._file

    @property
    def is_open(self) -> bool:
        """Whether the file is still open."""
        return bool(self._file)

    def close(self) -> None:
        """Close the file; lazy variables that still point to it can no longer be read."""
        with LOCK:
            self._objects.clear()
            if self._file:
                self._file.close()

    def members(self, path: str) -> list[str]:
        """Names of what lies in the group `path` of this very file."""
        return list(self.group(path))

    def group(self, path: str) -> h5py.Group:
        """The group at `path`."""
        group = self[path]
        if not isinstance(group, h5py.Group):
            raise RunFormatError(f"{self.path}: {path} is not a group")
        return group

    def __contains__(self, path: str) -> bool:
        return path in self.file

    def __getitem__(self, path: str) -> Any:
        with LOCK:
            file = self.file
            if path not in self._objects:
                try:
                    self._objects[path] = self._hard(file, path)
                except KeyError:
                    raise RunFormatError(
                        f"{self.path} has no {path}; it is incomplete or from another program"
                    ) from None
                except (OSError, RuntimeError) as error:
                    raise RunFormatError(f"{self.path}: {path} cannot be read: {_first_line(error)}") from None
            return self._objects[path]

    def _hard(self, file: h5py.File, path: str) -> h5py.HLObject:
        """What a path of hard links leads to: a file must not make us read another one."""
        here = file
        for part in path.strip("/").split("/") if path.strip("/") else []:
            if not isinstance(here.get(part, getlink=True), h5py.HardLink):
                raise RunFormatError(f"{self.path}: {path} is a link to somewhere else, which is not followed")
            here = here[part]
        if isinstance(here, h5py.Dataset) and (here.is_virtual or here.external):
            raise RunFormatError(f"{self.path}: {path} keeps its values in another file, which is not read")
        return here

    def __getstate__(self):
        return {"path": self.path.absolute()}

    def __setstate__(self, state):  # lazy variables travel to other processes by the path of their file
        self.__init__(state["path"])


class StoredArray(BackendArray):
    """A stored variable cut to its committed rows; indexing reads just what is asked for."""

    def __init__(self, handle: FileHandle, path: str, shape: tuple[int, ...], dtype: np.dtype, guard=None):
        self.handle, self.path, self.shape, self.dtype, self.guard = handle, path, shape, dtype, guard

    def __getitem__(self, key: indexing.ExplicitIndexer):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple):
        # Resolved against the committed shape: the file may hold more rows than are committed.
        key = tuple(_resolve(k, size) for k, size in zip(key, self.shape, strict=True))
        with LOCK:
            _ = self.handle.file  # raises where it is closed
            with damage_named(self.handle.path, self.path):
                if self.guard is not None:
                    self.guard.check(key[0])
                values = self.handle[self.path][key]
        return np.asarray(values).astype(self.dtype, copy=False)


def lazy_variable(handle: FileHandle, path: str, dims, attrs, limits, guard=None) -> xr.Variable:
    """The variable stored at `path`; `limits` are its committed lengths, None where all is committed.

    A `guard` checks the rows that are read.
    """
    dataset = handle[path]
    short = [dim for dim, size, n in zip(dims, dataset.shape, limits, strict=True) if n is not None and size < n]
    if short:
        raise RunFormatError(f"{handle.path}: {path} has {dataset.shape[0]} rows where {limits[0]} are committed")
    shape = tuple(size if n is None else n for size, n in zip(dataset.shape, limits, strict=True))
    if stored_entries(dataset) < math.prod(shape):
        raise RunFormatError(f"{handle.path}: {path} claims {shape} entries, more than the file holds")
    if dataset.dtype == "S1" and dataset.ndim and ENCODING in dataset.attrs:
        with damage_named(handle.path, path):
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


def stored_entries(dataset: h5py.Dataset) -> float:
    """Number of entries of which the file can hold the bytes; a damaged or hostile shape may claim any number.

    Raises
    ------
    RunFormatError
        If a compressed chunk would unfold to more than any file of ours has in one.
    """
    if not dataset.chunks and dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return math.inf  # within its header, at most 64 kB
    filters = dataset.id.get_create_plist().get_nfilters()
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if filters else 0
    if chunk > LARGEST_CHUNK:
        raise RunFormatError(f"{dataset.file.filename}: {dataset.name} has larger chunks than are read")
    if dataset.compression:
        # A chunk whose compressed bytes outnumber its own unfolds to something else than it claims.
        stored: list[int] = []
        dataset.id.chunk_iter(lambda info: stored.append(info.size))
        if max(stored, default=0) > 1.01 * chunk + 1024:
            raise RunFormatError(f"{dataset.file.filename}: {dataset.name} holds chunks that are no compressed values")
    return dataset.id.get_storage_size() * (COMPRESSION if filters else 1) // max(1, dataset.dtype.itemsize)


def read_now(variable: xr.Variable) -> xr.Variable:
    """`variable` with its values in memory."""
    return xr.Variable(variable.dims, variable.values, variable.attrs)


def _resolve(key, size: int):
    if isinstance(key, slice):
        return slice(*key.indices(size))
    if isinstance(key, np.ndarray):
        return np.where(key < 0, key + size, key)
    return int(key) + size if key < 0 else int(key)


def _open_anew(handles: list[FileHandle]) -> None:
    """Open the file of `handles` again in each of them, once all have closed it."""
    for handle in handles:
        handle.close()
    for handle in handles:
        handle._open()


def _open_as_swmr_reader(path: Path, locking: bool) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    if not locking:
        access.set_file_locking(False, True)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    with contextlib.suppress(AttributeError, OSError):  # a platform where it is not found that way keeps the default
        _limit_read_attempts(access)
    return h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ, fapl=access))


def _limit_read_attempts(access: h5py.h5p.PropFAID) -> None:
    """Let damaged metadata be an error after some hundredths of a second.

    HDF5 reads metadata with a wrong checksum again, up to 100 times, as a writer may just be at it, and doubles its
    pause from one nanosecond on each time: with damage that stays it would not return within a lifetime.
    """
    set_attempts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
    set_attempts(ctypes.c_int64(access.id), ctypes.c_uint(READ_ATTEMPTS))


def _first_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text.splitlines()[0] if text else type(error).__name__
