"""HDF5 files opened for reading: while they are written, after their writer was killed, and where they are damaged."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

READ_ATTEMPTS = 25

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
            with contextlib.suppress(OSError, RuntimeError):
                self._file = _open_as_swmr_reader(self.path, locking)
                return
        try:
            self._file = h5py.File(self.path, "r")
        except (OSError, RuntimeError) as error:
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
