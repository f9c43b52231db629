"""Variables that are written once, compared with their checksum when they are first read."""

from __future__ import annotations

import math
import zlib

import h5py
import numpy as np

from landscape.attributes import CRC
from landscape.entries import stored_entries
from landscape.file_handle import FileHandle, RunFormatError

BLOCK_BYTES = 2**22
"""So much is read at a time."""


def checksum(values: np.ndarray) -> np.uint32:
    """CRC-32 of the bytes of `values` in C order, as zlib has it: nothing but zeros has another one than 0 too."""
    return np.uint32(zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data if values.size else b""))


class WholeGuard:
    """Raises where the variable at `path` is not what was written; it is compared once, a block at a time.

    A variable without a checksum, as other programs write them, is taken as it is.
    """

    def __init__(self, handle: FileHandle, path: str):
        self.handle, self.path, self.right = handle, path, False

    def check(self, _rows=None) -> None:
        """Compare all of it, whichever rows are asked for.

        Raises
        ------
        RunFormatError
            If it differs from its checksum.
        """
        if self.right:
            return
        dataset, name = self.handle[self.path], self.path.strip("/")
        if CRC in dataset.attrs:
            if stored_entries(dataset) < math.prod(dataset.shape):
                raise RunFormatError(f"{self.handle.path}: {name} claims more entries than the file holds")
            if _stored_checksum(dataset) != dataset.attrs[CRC]:
                raise RunFormatError(f"{self.handle.path}: {name} is damaged: its values differ from their checksum")
        self.right = True

    def __getstate__(self):  # to another process, which reads the file itself
        return self.__dict__ | {"right": False}


def _stored_checksum(dataset: h5py.Dataset) -> int:
    if not dataset.ndim or not dataset.size:
        return int(checksum(np.asarray(dataset[()])))
    row = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
    size, found = max(1, BLOCK_BYTES // row), 0
    for start in range(0, dataset.shape[0], size):
        found = zlib.crc32(np.ascontiguousarray(dataset[start : start + size]).view(np.uint8).data, found)
    return found
