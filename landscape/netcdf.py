"""HDF5 groups in netCDF-4 conventions: every axis has a dimension scale, and attributes are plain values.

Run files and Dataset files are both written through this module, so h5py, xarray, netCDF tools and HDF viewers open
them alike. Nothing outside the file is ever read: external links, external storage and virtual datasets are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import h5py
import numpy as np
import xarray as xr

from landscape.attributes import CRC, DIM_ID, DIM_IDS, ENCODING, decoded, read_attrs, write_attrs, write_text
from landscape.file_handle import FileHandle, RunFormatError, damage_named
from landscape.stored import lazy_variable, read_now
from landscape.whole_guard import checksum

if TYPE_CHECKING:
    from landscape.row_guard import RowGuard

NO_COORDINATE = "This is a netCDF dimension but not a netCDF variable."


def write_dataset(group: h5py.Group, dataset: xr.Dataset) -> None:
    """Write `dataset` into the empty `group`.

    Raises
    ------
    TypeError
        For variables of a type that the file cannot hold (complex, dates, objects).
    ValueError
        For names with a slash and for multi-indexes.
    """
    for name in [*dataset.variables, *dataset.dims]:
        if not isinstance(name, str) or not name or "/" in name or "\0" in name or name == ".":
            raise ValueError(f"names in a file must be non-empty strings without a slash, got {name!r}; rename it")
    for name, index in dataset.xindexes.items():
        if isinstance(dataset.indexes[name].nlevels, int) and dataset.indexes[name].nlevels > 1:
            raise ValueError(f"{name} is part of a multi-index, which netCDF has not: {index}; call reset_index first")
    extra = sorted(set(dataset.coords) - set(dataset.dims))
    if any(len(name.split()) != 1 for name in extra):
        raise ValueError(f"names of coordinates must hold no spaces, got {extra}; rename them")
    write_attrs(group, dict(dataset.attrs) | ({"coordinates": " ".join(extra)} if extra else {}))
    for dim, size in dataset.sizes.items():
        if dim in dataset.variables and dataset[dim].dims != (dim,):
            raise ValueError(f"{dim} is a dim and a variable of dims {dataset[dim].dims}; rename one of them")
        if dim not in dataset.variables:
            add_dimension(group, dim, size)
    for name in sorted(dataset.variables, key=lambda name: name not in dataset.dims):  # scales before their users
        variable = dataset.variables[name]
        write_variable(group, name, variable.dims, _storable(name, variable), variable.attrs)


def write_variable(group: h5py.Group, name: str, dims, values: np.ndarray, attrs: Mapping | None = None) -> None:
    """Write a variable whose values stay as they are, with a checksum of them. Texts stand as characters."""
    texts = values.dtype.kind == "S"
    if texts:
        width = max(1, values.dtype.itemsize)
        values = values.astype(f"S{width}").view("S1").reshape(*values.shape, width)
        dims = (*dims, f"string{width}")
        if dims[-1] not in group:
            add_dimension(group, dims[-1], width)
    dataset = add_variable(group, name, dims, values, attrs=attrs)
    dataset.attrs[CRC] = checksum(values)
    if texts:
        write_text(dataset, ENCODING, "utf-8")


def read_dataset(
    handle: FileHandle,
    path: str,
    n_rows: int | None = None,
    hide: tuple[str, ...] = (),
    guard: RowGuard | None = None,
) -> xr.Dataset:
    """Dataset in the group `path` of an open file: index coordinates and texts in memory, everything else lazy.

    Parameters
    ----------
    handle : FileHandle
        The open file.
    path : str
        Path of the group.
    n_rows : int, optional
        Number of committed rows: the dim `step` is cut to it.
    hide : tuple of str
        Names of variables to leave out.
    guard : RowGuard, optional
        Checks the rows of `step` when they are read.
    """
    _ = handle.file  # raises where it is closed
    with damage_named(handle.path, path):
        return _read_dataset(handle, path, n_rows, hide, guard)


def _read_dataset(handle: FileHandle, path: str, n_rows, hide, guard) -> xr.Dataset:
    group = handle.group(path)
    attrs = read_attrs(group)
    coordinates = str(attrs.pop("coordinates", "")).split()
    variables, names = {}, []
    for name in handle.members(path):
        if name in hide or not isinstance(handle[f"{path}/{name}"], h5py.Dataset):
            continue
        dataset = handle[f"{path}/{name}"]
        if decoded(dataset.attrs.get("NAME", "")).startswith(NO_COORDINATE):
            continue
        dims = dims_of(dataset)
        limits = tuple(n_rows if dim == "step" else None for dim in dims)
        by_row = guard if dims[:1] == ("step",) and dims != (name,) else None
        variable = lazy_variable(handle, f"{path}/{name}", dims, read_attrs(dataset), limits, by_row)
        variables[name] = read_now(variable) if variable.dims == (name,) else variable
        names.append(name)
    coords = {name: variables.pop(name) for name in names if variables[name].dims == (name,) or name in coordinates}
    return xr.Dataset(variables, coords, attrs)


def add_dimension(group: h5py.Group, name: str, size: int) -> h5py.Dataset:
    """The scale of a dim without a coordinate, in the form in which netCDF-4 writes it; it takes no space."""
    scale = group.create_dataset(name, shape=(size,), dtype=">f4")
    _make_scale(scale, f"{NO_COORDINATE}{size:10d}")
    return scale


def add_variable(group: h5py.Group, name: str, dims, values=None, *, attrs: Mapping | None = None, **create):
    """A variable on existing scales of its `dims`, or, where the first of them is its own name, a scale itself."""
    dataset = group.create_dataset(name, data=values, **create)
    if dims and dims[0] == name:
        _make_scale(dataset, name)
    else:
        for axis, dim in enumerate(dims):
            dataset.dims[axis].attach_scale(group[dim])
    if dims:
        dataset.attrs[DIM_IDS] = np.array([group[dim].attrs[DIM_ID] for dim in dims], np.int32)
    kind = h5py.check_string_dtype(dataset.dtype)
    flag = {"dtype": "bool"} if kind is None and dataset.dtype == np.int8 else {}
    write_attrs(dataset, {**(attrs or {}), **flag})
    return dataset


def _make_scale(dataset: h5py.Dataset, name: str) -> None:
    """Make a dim of `dataset`, with a number that no other dim of the file has."""
    n_dims = 0

    def count(_, item):
        nonlocal n_dims
        n_dims += isinstance(item, h5py.Dataset) and DIM_ID in item.attrs

    dataset.file.visititems(count)
    dataset.make_scale(name)
    dataset.attrs[DIM_ID] = np.int32(n_dims)


def dims_of(dataset: h5py.Dataset) -> tuple[str, ...]:
    """Names of the dims of a stored variable.

    They are read from netCDF-4's numbers of dims where the file has them, and from the lists of dimension scales
    elsewhere: HDF5 keeps those lists in a heap without a checksum, and one wrong bit there can make it loop for ever.
    """
    own, where = dataset.name.rsplit("/", 1)[-1], f"{dataset.file.filename}: {dataset.name}"
    if dataset.attrs.get("CLASS") is not None and dataset.ndim == 1:
        return (own,)
    if not dataset.shape:
        return ()
    if DIM_IDS in dataset.attrs:
        names = {scale.attrs[DIM_ID]: name for name, scale in _neighbours(dataset) if DIM_ID in scale.attrs}
        try:
            return tuple(names[number] for number in np.atleast_1d(dataset.attrs[DIM_IDS]).tolist())
        except KeyError:
            raise RunFormatError(f"{where} has a scale that is not beside it, or damaged") from None
    if any(len(axis) == 0 for axis in dataset.dims):
        raise RunFormatError(f"{where} has an axis without a dimension scale")
    return tuple(_scale_name(dataset, axis[0]) for axis in dataset.dims)


def _scale_name(dataset: h5py.Dataset, scale: h5py.Dataset) -> str:
    """Name of a scale among the neighbours of `dataset`.

    Its own ``scale.name`` would have HDF5 search the whole file, and one damaged object anywhere end that.
    """
    for name, neighbour in _neighbours(dataset):
        if neighbour == scale:
            return name
    raise RunFormatError(f"{dataset.file.filename}: the scale of {dataset.name} is not beside it, or damaged")


def _neighbours(dataset: h5py.Dataset) -> Iterator[tuple[str, h5py.Dataset]]:
    """What can be read of the group in which `dataset` lies, by name."""
    return readable_members(dataset.parent)


def readable_members(group: h5py.Group) -> Iterator[tuple[str, h5py.HLObject]]:
    """What of `group` lies in this very file and can be opened, by name, in the order of creation."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            with contextlib.suppress(KeyError, OSError, RuntimeError):
                yield name, group[name]


def _storable(name: str, variable: xr.Variable) -> np.ndarray:
    """The values of `variable` in a type that every netCDF reader knows."""
    values = np.asarray(variable.values)
    if values.dtype == bool:
        return values.astype(np.int8)
    if values.dtype.kind in "iu" and values.dtype != np.int8:
        return values
    if values.dtype.kind == "f" and values.itemsize in (4, 8):
        return values
    if values.dtype.kind in "UT" or (values.dtype == object and all(isinstance(v, str) for v in values.flat)):
        return np.char.encode(values.astype(str), "utf-8")
    remedy = {"c": "store its real and imaginary parts", "M": "store numbers", "m": "store numbers"}
    raise TypeError(
        f"{name} has type {values.dtype}, which a file of numbers cannot hold; "
        f"{remedy.get(values.dtype.kind, 'convert it to int64, float64, bool or text')}"
    )
