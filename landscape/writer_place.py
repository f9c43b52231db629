"""Where a run is written: a folder that allows it, one writer at a time, and still the same file at each commit."""

from __future__ import annotations

import os
from pathlib import Path

from landscape.writer_lock import WriterLock


class WriterPlace:
    """The place of the run file `path`, locked until `release`.

    Parameters
    ----------
    path : Path
        The file, which need not exist.

    Attributes
    ----------
    path : Path
        Where it lies, whatever becomes of symbolic links and of the working directory.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    PermissionError
        If the folder or the file cannot be written to.
    BlockingIOError
        If another writer has the file open.
    """

    def __init__(self, path: Path):
        self.path = Path(os.path.realpath(path))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
        for place in (self.path, self.path.parent):
            if place.exists() and not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                raise PermissionError(f"no permission to write to {place}; record the run elsewhere, or allow it")
        self._lock = WriterLock(self.path)
        self._found: os.stat_result | None = None

    def remember(self) -> None:
        """Note which file lies there now."""
        self._found = os.stat(self.path)

    def check(self) -> None:
        """See that the remembered file still lies there.

        Raises
        ------
        OSError
            If it does not.
        """
        try:
            if os.path.samestat(os.stat(self.path), self._found):
                return
        except OSError:
            pass
        raise OSError("it was deleted, moved or replaced, and the lock that guards it is lost")

    def release(self) -> None:
        """Let other writers in."""
        self._lock.release()
