"""The first 48 bytes of an HDF5 file, and how a file whose writer was killed becomes writable again.

While a file is being written, a flag in its superblock says so, and a killed writer leaves it set: HDF5 then refuses
to open the file for writing, for fear of another writer. Whoever holds the run's lock knows that there is none.
Layout of the superblock: HDF5 File Format Specification 3.0, II.A (versions 2 and 3).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from landscape.file_handle import RunFormatError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIELDS = struct.Struct("<8s4B4Q")  # signature; version, 2 sizes, flags; base, extension, end of file, root group
_MASK = 0xFFFFFFFF
PAGE = 4096
"""A file is given out in pages, so that a header never crosses the border of one: there a kill can cut a write."""


def make_writable(path: str | os.PathLike, reserve: int = 0) -> None:
    """Clear the consistency flags of the file `path`, whose writer is dead; the caller holds its lock.

    The end of file that the superblock names may lag behind the space that the killed writer had given out, part of
    which it may not have written yet. Were it given out again, rows would overwrite each other. So `reserve` bytes
    are left alone behind whatever is known; they are a hole in the file and take no space on disk.

    Parameters
    ----------
    path : str or path-like
        The file; nothing is changed where its last writer closed it.
    reserve : int
        Bytes that a writer can have given out since it last wrote the superblock.

    Raises
    ------
    RunFormatError
        If the file does not begin with a superblock of version 2 or 3 with a right checksum.
    """
    path = Path(path)
    with path.open("r+b", buffering=0) as file:
        block = file.read(_FIELDS.size + 4)
        if len(block) < _FIELDS.size + 4 or not block.startswith(_SIGNATURE) or block[8] not in (2, 3):
            raise RunFormatError(f"{path} does not begin like a run file; it cannot be resumed")
        fields, (checksum,) = block[: _FIELDS.size], struct.unpack("<I", block[_FIELDS.size :])
        if lookup3(fields) != checksum or block[9] != 8:
            raise RunFormatError(f"the first bytes of {path} are damaged; it cannot be resumed")
        *head, flags, base, extension, end, root = _FIELDS.unpack(fields)
        if not flags and os.fstat(file.fileno()).st_size >= end:
            return
        end = max(end, os.fstat(file.fileno()).st_size) + reserve
        end += -end % PAGE
        file.truncate(end)
        fields = _FIELDS.pack(*head, flags & ~0b101, base, extension, end, root)
        file.seek(0)
        file.write(fields + struct.pack("<I", lookup3(fields)))


def lookup3(data: bytes, seed: int = 0) -> int:
    """Checksum of `data` by Bob Jenkins' lookup3 (2006, in the public domain; his ``hashlittle``), which HDF5 uses.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    x = y = z = (0xDEADBEEF + len(data) + seed) & _MASK
    if not data:
        return z
    n_mixed = 3 * ((len(data) - 1) // 12)  # whole blocks of three words are mixed; the last, padded, ends the sum
    words = struct.unpack(f"<{n_mixed + 3}I", data.ljust(4 * n_mixed + 12, b"\0"))
    for i in range(0, n_mixed, 3):
        x, y, z = (x + words[i]) & _MASK, (y + words[i + 1]) & _MASK, (z + words[i + 2]) & _MASK
        for bits in (
            4,
            6,
            8,
            16,
            19,
            4,
        ):  # each round changes two of the three, and the next one starts with the second
            x = ((x - z) & _MASK) ^ _rotated(z, bits)
            x, y, z = y, (z + y) & _MASK, x
    z, y, x = (x + words[-3]) & _MASK, (y + words[-2]) & _MASK, (z + words[-1]) & _MASK
    for bits in (14, 11, 25, 16, 4, 14, 24):
        x = ((x ^ y) - _rotated(y, bits)) & _MASK
        x, y, z = z, x, y
    return y


def _rotated(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _MASK
