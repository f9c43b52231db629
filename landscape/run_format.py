"""The run format, version 1: what a run file consists of, and how its groups are created."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import h5py
import numpy as np
import xarray as xr

from landscape.netcdf import add_dimension, add_variable, to_json, write_attrs, write_dataset

FORMAT = "landscape-run"
FORMAT_VERSION = 1
STATUSES = ("running", "complete", "diverged", "interrupted")
STATUS_TYPE = "S12"
"""Fixed length: only such an attribute can be rewritten in place while the file is being read."""

CHECKSUM = "checksum"
NO_STEP = -(2**63) + 2
"""What a reader that pads short variables sees in place of an uncommitted step: netCDF's own missing int64."""

HISTORY_ATTRS = {
    "loss": {"long_name": "loss"},
    "accuracy": {"long_name": "training accuracy"},
    "validation_accuracy": {"long_name": "validation accuracy"},
    "validation_loss": {"long_name": "validation loss"},
    "gradient_norm": {"long_name": "norm of the gradient"},
    "update_norm": {"long_name": "norm of the update from the row before"},
    "update_cosine": {"long_name": "cosine between successive updates"},
    "class_weight": {"long_name": "class weight"},
    "step": {"long_name": "step", "units": "updates"},
    "learning_rate": {"long_name": "learning rate"},
}
EIGENPAIR_VARIABLES = {
    "eigenvalue": (("mode",), "f8", "Hessian eigenvalue"),
    "residual": (("mode",), "f8", "residual ‖Hv − λv‖ / max(|λ|, 0.001 max|λ|)"),
    "converged": (("mode",), "i1", "residual within the tolerance"),
    "certified": (("mode",), "i1", "certified that no eigenvalue above is missing"),
    "gap": (("mode",), "f8", "distance to the next eigenvalue"),
    "overlap": (("mode",), "f8", "overlap with the same mode one row before"),
    "previous_mode": (("mode",), "f8", "mode one row before that overlaps most"),
    "n_hvp": ((), "i8", "number of Hessian-vector products"),
    "threshold": ((), "f8", "stability threshold"),
    "eigenvector": (("mode", "param"), None, "Hessian eigenvector"),
}


class Table:
    """Rows of one group along `step`, buffered in memory and written block by block.

    A row exists once `step` holds it. The buffers are arrays of `block_rows` rows, one a variable.
    """

    def __init__(self, group: h5py.Group, variables: Mapping[str, tuple], block_rows: int):
        self.group = group
        self.names = frozenset(variables)
        self.block_rows = block_rows
        self.n_buffered = 0
        self.n_committed = group["step"].shape[0]
        self.last_step: int | None = int(group["step"][-1]) if self.n_committed else None
        self.steps = np.zeros(block_rows, np.int64)
        self.buffers = {name: np.zeros((block_rows, *group[name].shape[1:]), group[name].dtype) for name in variables}
        self._ids = {name: group[name].id for name in (*variables, "step", CHECKSUM)}

    def check(self, step: int) -> None:
        """Refuse a step that does not follow the last row's."""
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(f"steps must increase: {self.group.name} already holds step {self.last_step}, got {step}")

    def push(self, step: int) -> bool:
        """Count the row that was filled at `n_buffered`; True where the buffer is full."""
        self.steps[self.n_buffered] = self.last_step = step
        self.n_buffered += 1
        return self.n_buffered == self.block_rows

    def write_rows(self) -> None:
        """Write the buffered rows of every variable but `step`; they do not exist yet."""
        n = self.n_buffered
        total = row_checksums(self.steps[:n], [buffer[:n] for buffer in self.buffers.values()])
        for name, buffer in self.buffers.items():
            _extend(self._ids[name], self.n_committed, buffer[:n])
        _extend(self._ids[CHECKSUM], self.n_committed, total)

    def write_steps(self) -> None:
        """Extend `step`: from now on the rows exist."""
        _extend(self._ids["step"], self.n_committed, self.steps[: self.n_buffered])
        self.n_committed += self.n_buffered
        self.n_buffered = 0


def row_checksums(steps: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
    """Checksum of each row: Σ_j (2j + 1)·word_j mod 2^64 over its bytes as 64-bit words, the step being word 0.

    `values` are the row's variables in the order of their creation, each padded with zeros to whole words. Odd
    weights have inverses mod 2^64, so any change within one word is noticed. One is added, so that zeros never pass.

    Parameters
    ----------
    steps : ndarray of int64, shape (row,)
        Steps.
    values : sequence of ndarray, each of shape (row, …)
        Values of each variable.
    """
    total = steps.astype(np.uint64) + np.uint64(1)
    n_words = 1
    for array in values:
        rows = np.ascontiguousarray(array).reshape(len(steps), -1).view(np.uint8)
        if rows.shape[1] % 8:
            rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
        words = rows.view(np.uint64)
        weights = np.arange(n_words, n_words + words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        total = total + words @ weights
        n_words += words.shape[1]
    return total


def create_table(group: h5py.Group, variables: Mapping[str, tuple], sizes: Mapping[str, int], block_rows: int) -> None:
    """Create the variables of a table, a mapping name -> (dims after step, dtype, attrs), and their scales."""
    rows = _chunk_rows(block_rows, 8)
    create = {"shape": (0,), "maxshape": (None,), "chunks": (rows,), "dtype": "i8", "fillvalue": NO_STEP}
    add_variable(group, "step", ("step",), attrs=HISTORY_ATTRS["step"], **create)
    for dim, size in sizes.items():
        if dim == "param":
            add_dimension(group, dim, size)
        else:
            add_variable(group, dim, (dim,), np.arange(size), attrs={"long_name": dim})
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
    add_variable(
        group, CHECKSUM, ("step",), shape=(0,), maxshape=(None,), chunks=(rows,), dtype="u8",
        attrs={"long_name": "checksum of the row: sum of (2j + 1) word_j, plus 1, mod 2^64"},
    )  # fmt: skip


def write_root(file: h5py.File, config: Mapping | None, producer: str) -> None:
    """Root attributes of a run that begins now."""
    write_attrs(file, {"format": FORMAT, "format_version": FORMAT_VERSION, "producer": producer})
    file.attrs["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.attrs["software"] = to_json(software())
    file.attrs["config"] = to_json(dict(config or {}))
    file.attrs.create("status", np.bytes_("running"), dtype=STATUS_TYPE)


def software() -> dict[str, str]:
    """Versions of what records a run."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("dynloss-landscape", "torch", "numpy", "h5py"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return versions | {"hdf5": h5py.version.hdf5_version}


def write_data(group: h5py.Group, data: Mapping[str, tuple[Any, Any]]) -> None:
    """One group of `inputs` and `targets` a data set."""
    for name, pair in data.items():
        inputs, targets = (to_array(part) for part in pair)
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
            raise ValueError(
                f"data[{name!r}] needs one target a sample, got inputs {inputs.shape} and targets {targets.shape}"
            )
        features = ["feature", *(f"feature_{axis}" for axis in range(1, inputs.ndim - 1))][: inputs.ndim - 1]
        outputs = ["output", *(f"output_{axis}" for axis in range(1, targets.ndim - 1))][: targets.ndim - 1]
        write_dataset(
            group.create_group(name, track_order=True),
            xr.Dataset({"inputs": (("sample", *features), inputs), "targets": (("sample", *outputs), targets)}),
        )


def write_layout(group: h5py.Group, layout) -> None:
    """Names, shapes and offsets of the tensors of θ, readable without this package."""
    shapes = [" ".join(map(str, shape)) for shape in layout.shapes]
    write_dataset(
        group,
        xr.Dataset(
            {
                "name": ("tensor", np.array(layout.names, dtype=str)),
                "shape": ("tensor", np.array(shapes, dtype=str), {"long_name": "sizes of the axes"}),
                "offset": (
                    "tensor",
                    np.array(layout.offsets, np.int64),
                    {"long_name": "index of the first entry in θ"},
                ),
                "size": ("tensor", np.array(layout.sizes, np.int64), {"long_name": "number of entries"}),
            }
        ),
    )


def to_array(value: Any) -> np.ndarray:
    """A tensor or array-like as a numpy array on the CPU; shares memory where it can."""
    return value.numpy(force=True) if hasattr(value, "detach") else np.asarray(value)


def _chunk_rows(block_rows: int, row_bytes: int) -> int:
    """Rows a chunk: whole blocks of about 8 kB, unless one block is larger; never more than 1 MB."""
    if block_rows * row_bytes < 2**13:
        return block_rows * (2**13 // (block_rows * row_bytes))
    return max(1, min(block_rows, 2**20 // row_bytes))


def _chunks(block_rows: int, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    row_bytes = max(1, int(np.prod(shape, dtype=np.int64))) * itemsize
    if row_bytes <= 2**20:
        return (_chunk_rows(block_rows, row_bytes), *(max(1, size) for size in shape))
    lead = (1,) * (len(shape) - 1)  # one long row: pieces of 1 MB of the last axis
    return (1, *lead, min(shape[-1], 2**20 // itemsize))


def _extend(target: h5py.h5d.DatasetID, start: int, rows: np.ndarray) -> None:
    """Write `rows` at row `start`, through h5py's low level, which costs a tenth of its indexing."""
    target.set_extent((start + len(rows), *rows.shape[1:]))
    space = target.get_space()
    space.select_hyperslab((start,) + (0,) * (rows.ndim - 1), rows.shape)
    target.write(h5py.h5s.create_simple(rows.shape), space, rows)
