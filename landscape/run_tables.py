"""Tables of a run file: rows along `step`, buffered in memory, committed block by block, each with a checksum."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from landscape.netcdf import add_dimension, add_variable, dims_of, readable_members, write_variable

CHECKSUM, STEP_CHECK = "checksum", "step_check"
"""Variables of a table besides `step` and what is recorded: the checksum of the row, and the step with all bits turned.

The second says at once whether the steps are right, where the checksum would need the whole rows.
"""

NO_STEP = -(2**63) + 2
"""What a reader that pads short variables sees in place of an uncommitted step: netCDF's own missing int64."""

BUFFER_BYTES = 2**26
"""At most so much of a table waits in memory."""

STEP_ATTRS = {"long_name": "step", "units": "updates"}
STEP_CHECK_ATTRS = {"long_name": "step, every bit turned"}
CHECKSUM_ATTRS = {"long_name": "checksum of the row: sum of (2j + 1) word_j, plus 1, mod 2^64"}


class Table:
    """Rows of the group `group`: buffers in memory, and how they reach the file.

    A row exists once `step` holds it; the other variables may be longer, with rows that a killed writer did not
    commit. They are overwritten in place: shrinking a file is not safe against a second kill.

    Parameters
    ----------
    group : h5py.Group
        A group that `create_table` made, in a file open for writing.
    block_rows : int
        Rows to buffer, less where they are long.
    """

    def __init__(self, group: h5py.Group, block_rows: int):
        self.group = group
        names = table_names(group)
        row_bytes = sum(max(1, group[name].dtype.itemsize * int(np.prod(group[name].shape[1:]))) for name in names)
        self.block_rows = max(1, min(block_rows, BUFFER_BYTES // max(1, row_bytes)))
        self.n_buffered = 0
        self.n_committed = group["step"].shape[0]
        self.resumed = group["step"][()]
        self.last_step = int(self.resumed[-1]) if self.n_committed else -(2**63)
        self.exact = True
        self.steps = np.zeros(self.block_rows, np.int64)
        self.buffers = {name: np.zeros((self.block_rows, *group[name].shape[1:]), group[name].dtype) for name in names}
        self._columns = {name: Column(group[name]) for name in (*names, "step", STEP_CHECK, CHECKSUM)}

    @property
    def n_rows(self) -> int:
        """Number of rows, committed or waiting."""
        return self.n_committed + self.n_buffered

    def push(self, step: int) -> bool:
        """Count the row that was filled at `n_buffered`; True where the buffer is full.

        A resumed run repeats rows that the file already holds; they are compared with it and not stored again.

        Raises
        ------
        ValueError
            If the step does not follow the last row's.
        """
        if step <= self.last_step:
            self._repeat(step)
            return False
        self.steps[self.n_buffered] = self.last_step = step
        self.n_buffered += 1
        return self.n_buffered == self.block_rows

    def write_rows(self) -> None:
        """Write the buffered rows of every variable but `step`; they do not exist yet."""
        n = self.n_buffered
        total = row_checksums(self.steps[:n], [buffer[:n] for buffer in self.buffers.values()])
        for name, buffer in self.buffers.items():
            self._columns[name].write(self.n_committed, buffer[:n])
        self._columns[CHECKSUM].write(self.n_committed, total)
        self._columns[STEP_CHECK].write(self.n_committed, ~self.steps[:n])

    def write_steps(self) -> None:
        """Extend `step`: from now on the rows exist."""
        self._columns["step"].write(self.n_committed, self.steps[: self.n_buffered])
        self.n_committed += self.n_buffered
        self.n_buffered = 0

    def _repeat(self, step: int) -> None:
        row = int(np.searchsorted(self.resumed, step))
        if row == len(self.resumed) or self.resumed[row] != step:
            raise ValueError(f"steps must increase: {self.group.name} already holds step {self.last_step}, got {step}")
        for name, buffer in self.buffers.items():
            if self.exact and not np.array_equal(self.group[name][row], buffer[self.n_buffered], equal_nan=True):
                self.exact = False
                warnings.warn(
                    f"{self.group.file.filename}: resumed training gives another {name} at step {step} than the file "
                    "holds; it goes on, but not to the same end (other threads, kernel or code?)",
                    RuntimeWarning,
                    stacklevel=4,
                )


class Column:
    """A stored variable that grows along its first axis, written through h5py's low level.

    What does not change from write to write is kept, as asking HDF5 for it would cost more than writing a block.
    """

    def __init__(self, dataset: h5py.Dataset):
        self._id = dataset.id
        self._origin = (0,) * (dataset.ndim - 1)
        self._type = h5py.h5t.py_create(dataset.dtype)
        self._length = dataset.shape[0]
        self._memory = (None, None)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write the C-contiguous `rows`, of the stored type, at row `start`; a variable that is too short grows."""
        shape = rows.shape
        if self._length < start + shape[0]:
            self._id.set_extent((start + shape[0], *shape[1:]))
            self._length = start + shape[0]
        if self._memory[0] != shape:
            self._memory = (shape, h5py.h5s.create_simple(shape))
        space = self._id.get_space()
        space.select_hyperslab((start, *self._origin), shape)
        self._id.write(self._memory[1], space, rows, self._type)


def create_table(group: h5py.Group, variables: Mapping[str, tuple], sizes: Mapping[str, int], block_rows: int) -> None:
    """Create the variables of a table and their scales.

    Parameters
    ----------
    group : h5py.Group
        An empty group that tracks the order of creation.
    variables : mapping of str to tuple
        Dims after `step`, dtype and attributes of each.
    sizes : mapping of str to int
        Sizes of the dims.
    block_rows : int
        Rows that are usually written together; chunks hold whole blocks.
    """
    rows = _chunk_rows(block_rows, 8)
    create = {"shape": (0,), "maxshape": (None,), "chunks": (rows,)}
    add_variable(group, "step", ("step",), attrs=STEP_ATTRS, dtype="i8", fillvalue=NO_STEP, **create)
    for dim, size in sizes.items():
        if dim in ("param", "buffer"):
            add_dimension(group, dim, size)
        else:
            write_variable(group, dim, (dim,), np.arange(size), {"long_name": dim})
    for name, (dims, dtype, attrs) in variables.items():
        dtype = np.dtype(dtype)
        shape = tuple(sizes[dim] for dim in dims)
        add_variable(
            group,
            name,
            ("step", *dims),
            attrs=attrs,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=_chunks(block_rows, shape, dtype.itemsize),
            dtype=dtype,
            fillvalue=np.nan if dtype.kind == "f" else 0,
            fill_time="never",  # rows that are not committed are not read
        )
    add_variable(group, CHECKSUM, ("step",), attrs=CHECKSUM_ATTRS, dtype="u8", **create)
    add_variable(group, STEP_CHECK, ("step",), attrs=STEP_CHECK_ATTRS, dtype="i8", **create)


def table_names(group: h5py.Group) -> list[str]:
    """Names of what is recorded with rows, in the order in which it was created."""
    own = ("step", STEP_CHECK, CHECKSUM)
    return [
        name
        for name, member in readable_members(group)
        if isinstance(member, h5py.Dataset) and name not in own and dims_of(member)[:1] == ("step",)
    ]


def allocated_by_a_commit(group: h5py.Group, block_rows: int) -> int:
    """Bytes of the file that one commit of the table in `group` can take at most, twice over."""
    total = 0
    for name in (*table_names(group), "step", STEP_CHECK, CHECKSUM):
        dataset = group[name]
        row = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
        chunk = dataset.dtype.itemsize * int(np.prod(dataset.chunks))
        total += 2 * (row * block_rows + chunk + 2**14)  # 16 kB for the index of the chunks
    return total


def row_checksums(steps: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
    """Checksum of each row: 1 + Σ_j (2j + 1)·word_j mod 2^64 over its bytes as 64-bit words, the step being word 0.

    The row's variables follow each other in the order of their creation, each padded with zeros to whole words. Odd
    weights have inverses mod 2^64, so any change within one word is noticed. One is added, so that zeros never pass.

    Parameters
    ----------
    steps : ndarray of int64, shape (row,)
        Steps.
    values : sequence of ndarray, each of shape (row, …)
        Values of each variable, little-endian.

    Returns
    -------
    ndarray of uint64, shape (row,)
    """
    words = [_words(array, len(steps)) for array in values if array.size]
    total = steps.astype(np.uint64) + np.uint64(1)
    if not words:
        return total
    words = words[0] if len(words) == 1 else np.concatenate(words, axis=1)
    weights = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return total + np.einsum("ij,j->i", words, weights)  # faster here than @, which has no BLAS for integers


def _words(array: np.ndarray, n_rows: int) -> np.ndarray:
    """The bytes of each row as 64-bit words (row, word), the last one padded with zeros."""
    rows = np.ascontiguousarray(array).reshape(n_rows, -1)
    if rows.itemsize != 8:
        rows = rows.view(np.uint8)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    return rows.view(np.uint64)


def _chunk_rows(block_rows: int, row_bytes: int) -> int:
    """Rows a chunk: whole blocks of about 8 kB, or an even part of a larger block, of 1 MB at most."""
    if block_rows * row_bytes < 2**13:
        return block_rows * (2**13 // (block_rows * row_bytes))
    n_chunks = -(-block_rows // max(1, 2**20 // row_bytes))
    return -(-block_rows // n_chunks)


def _chunks(block_rows: int, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    row_bytes = max(1, int(np.prod(shape, dtype=np.int64))) * itemsize
    if row_bytes <= 2**20:
        return (_chunk_rows(block_rows, row_bytes), *(max(1, size) for size in shape))
    lead = (1,) * (len(shape) - 1)  # one long row: pieces of 1 MB of the last axis
    return (1, *lead, min(shape[-1], 2**20 // itemsize))
