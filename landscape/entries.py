"""How many entries of a stored variable its file can hold; a damaged or hostile shape may claim any number."""

from __future__ import annotations

import math

import h5py

from landscape.file_handle import RunFormatError

COMPRESSION = 1100
"""HDF5's filters shrink values at most so many times: deflate's best is 1032."""

LARGEST_CHUNK = 2**26
"""No file of ours has larger chunks; to read one compressed entry, HDF5 would hold the whole chunk."""


def stored_entries(dataset: h5py.Dataset) -> float:
    """Number of entries of which the file can hold the bytes.

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
