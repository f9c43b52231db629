"""The run format, version 1: what a run file consists of, and how its groups are created."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import xarray as xr

from landscape.attributes import to_json, write_attrs, write_text
from landscape.failed_writes import abandon
from landscape.netcdf import write_dataset
from landscape.run_state import create_state
from landscape.run_tables import CHECKSUM, STEP_CHECK, create_table
from landscape.superblock import PAGE

if TYPE_CHECKING:
    from landscape.params import ParamLayout

FORMAT = "landscape-run"
FORMAT_VERSION = 1
STATUSES = ("running", "complete", "diverged", "interrupted")
STATUS_TYPE = "S12"
"""Fixed length: only such an attribute can be rewritten in place while the file is being read."""

OPEN = {"libver": ("v110", "v110"), "rdcc_nbytes": 0}
"""How a writer opens a file. Without a chunk cache a commit writes its rows and nothing else, once."""

PAGED = {"fs_strategy": "page", "fs_page_size": PAGE}
"""How a file is laid out: no header or index crosses a page border, where a kill can cut a write in two."""

HISTORY_ATTRS = {
    "loss": {"long_name": "loss"},
    "accuracy": {"long_name": "training accuracy"},
    "validation_accuracy": {"long_name": "validation accuracy"},
    "validation_loss": {"long_name": "validation loss"},
    "gradient_norm": {"long_name": "norm of the gradient"},
    "update_norm": {"long_name": "norm of the update from the row before"},
    "update_cosine": {"long_name": "cosine between successive updates"},
    "class_weight": {"long_name": "class weight"},
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


def create_file(path: Path, layout: ParamLayout, **content: Any) -> h5py.File:
    """A new run file at `path`, open for appending; `content` as for `create_run`.

    It is made under another name and renamed, so that whoever sees `path` sees a whole run file.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        file = h5py.File(new, "w", track_order=True, **PAGED, **OPEN)
        try:
            create_run(file, layout, **content)
            file.swmr_mode = True
            os.replace(new, path)
        except BaseException:
            abandon(file)
            raise
    finally:
        new.unlink(missing_ok=True)
    return file


def create_run(
    file: h5py.File,
    layout: ParamLayout,
    *,
    history: Mapping[str, Mapping[str, int]],
    attrs: Mapping[str, Any],
    config: Mapping[str, Any],
    producer: str,
    data: Mapping[str, tuple[Any, Any]],
    n_modes: int,
    dtype: np.dtype,
    block_rows: int,
    state: Mapping[str, np.ndarray],
    optimizer_state: Sequence[str],
    buffers: ParamLayout | None,
) -> None:
    """Create everything that the empty `file` will ever hold but rows: under SWMR nothing can be created any more."""
    write_root(file, config, producer)
    file.attrs["block_rows"] = np.int64(block_rows)
    write_layout(file.create_group("layout", track_order=True), layout)
    write_data(file.create_group("data", track_order=True), data)
    n = layout.n_params

    sizes = {dim: size for dims in history.values() for dim, size in dims.items()}
    for what, names, dims in (("history", history, sizes), ("optimizer_state", optimizer_state, ["param"])):
        reserved = sorted({"step", "params", "buffers", CHECKSUM, STEP_CHECK, *dims}.intersection(names))
        if reserved:
            raise ValueError(f"names of the {what} must not be those of dims or of the file itself, got {reserved}")
    scalars = {
        name: (tuple(dims), "f8", HISTORY_ATTRS.get(name, {"long_name": name.replace("_", " ")}))
        for name, dims in history.items()
    }
    params = {"params": (("param",), dtype, {"long_name": "parameters θ"})}
    params |= {name: (("param",), dtype, {"long_name": name.replace("_", " ")}) for name in optimizer_state}
    sizes_of_rows = {"param": n}
    if buffers is not None:
        params["buffers"] = (("buffer",), dtype, {"long_name": "buffers of the model"})
        sizes_of_rows["buffer"] = buffers.n_params
    pairs = {
        name: (dims, kind or dtype, {"long_name": text}) for name, (dims, kind, text) in EIGENPAIR_VARIABLES.items()
    }
    tables = {"history": (scalars, sizes), "checkpoints": (params, sizes_of_rows)}
    if n_modes:
        tables["eigenpairs"] = (pairs, {"mode": n_modes, "param": n})
    for name, (variables, sizes) in tables.items():
        group = file.create_group(name, track_order=True)
        layouts = {"layout": layout.to_json()} | ({} if buffers is None else {"buffer_layout": buffers.to_json()})
        write_attrs(group, {**attrs, **layouts} if name == "checkpoints" else attrs)
        create_table(group, variables, sizes, block_rows)
    if state:
        create_state(file.create_group("state", track_order=True), state, n)


def write_root(file: h5py.File, config: Mapping[str, Any], producer: str) -> None:
    """Root attributes of a run that begins now."""
    write_attrs(file, {"format": FORMAT, "format_version": FORMAT_VERSION, "producer": producer})
    write_text(file, "created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    write_text(file, "software", to_json(software()))
    write_text(file, "config", to_json(dict(config)))
    file.attrs.create("status", np.bytes_("running"), dtype=STATUS_TYPE)
    file.attrs["n_resumed"] = np.int64(0)


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


def write_layout(group: h5py.Group, layout: ParamLayout) -> None:
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
