"""What becomes of a file when a write to it fails: no further byte reaches it, as if its writer had been killed.

HDF5 keeps what it could not write, tries again when the file is closed, and writes what depends on it all the same: a
row whose step was not written would exist. A killed writer does no such harm, so a failed one is made to look like it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path

import h5py

_NO_RESERVATIONS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot reserve space."""


def abandon(file: h5py.File) -> None:
    """Close `file` and keep HDF5 from writing to it; what it still holds goes into a file without a name."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        nowhere = _nameless()
        try:
            os.dup2(nowhere, file.id.get_vfd_handle(), inheritable=False)
        finally:
            os.close(nowhere)
    with contextlib.suppress(OSError, RuntimeError):
        file.close()


def check_room(folder: Path, n_bytes: int) -> None:
    """See that a file of `n_bytes` can be made in `folder`, without leaving one there.

    Raises
    ------
    OSError
        If it cannot: no permission, no space, a limit on the size of files, a file system that is read-only.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            except OSError as error:
                if error.errno not in _NO_RESERVATIONS:
                    raise


def reason(error: BaseException) -> str:
    """Why a write failed, in the words of the operating system where HDF5 passes them on."""
    text = " ".join(str(error).split())
    quoted = re.search(r"error message = '([^']+)'", text)
    return quoted[1] if quoted else getattr(error, "strerror", None) or text


def _nameless() -> int:
    """Descriptor of a file that takes any write and is gone once it is closed: in memory, so that no disk is full."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("abandoned")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
