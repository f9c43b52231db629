"""One writer a run: a lock that its process holds, and that ends with the process however it ends."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; nothing guards against a second writer there
    fcntl = None


class WriterLock:
    """The lock on the run file `path`: an empty file beside it, named ``<path>.lock``, locked by flock.

    The operating system drops the lock when the process ends, so a lock file left by a killed writer means nothing.

    Raises
    ------
    BlockingIOError
        If another writer, in this process or another, holds it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = lock_path(path)
        self._descriptor: int | None = None
        for attempt in range(20):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _lock(descriptor):
                os.close(descriptor)
                # is_being_written holds the lock for microseconds; a writer holds it for long.
                if attempt == 19:
                    raise BlockingIOError(
                        f"{path} is being written already, here or in another process; a run has one writer"
                    )
                time.sleep(0.01)
            elif _same(descriptor, self.path):
                self._descriptor = descriptor
                return
            else:  # its last holder removed it between our open and our lock
                os.close(descriptor)
        raise BlockingIOError(f"{path} is being opened by many writers at once; a run has one writer")

    def release(self) -> None:
        """Remove the lock file and drop the lock."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a folder that is gone, or cannot be written any more
                if _same(self._descriptor, self.path):
                    self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def is_being_written(path: str | os.PathLike) -> bool:
    """Whether a writer on this machine holds the lock of the run file `path`."""
    try:
        descriptor = os.open(lock_path(path), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def lock_path(path: str | os.PathLike) -> Path:
    """The lock file of the run file `path`."""
    path = Path(os.path.realpath(path))  # one lock, whatever links lead to the file
    return path.with_name(path.name + ".lock")


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: recording must still be possible
        return True
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
