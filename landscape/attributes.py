"""Attributes of HDF5 objects: plain values that netCDF tools read, and one JSON text for all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

JSON_ATTRIBUTE = "json_attributes"
"""Attribute that holds, as one JSON object, those attributes that netCDF has no type for (bool, None, dict, …)."""

ENCODING = "_Encoding"
"""Attribute of an array of characters that holds texts along its last dim (netCDF and xarray know it)."""

CRC = "crc32"
"""Attribute of a variable that is written once: the checksum of its values."""

LAYOUTS = "layout", "buffer_layout"
"""Attributes of checkpoints that say how θ and the buffers divide into tensors; others say how they were trained."""

DIM_ID, DIM_IDS = "_Netcdf4Dimid", "_Netcdf4Coordinates"
"""netCDF-4's number of a dim, on its scale, and the numbers of a variable's dims."""

_INTERNAL = {
    "CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", DIM_ID, DIM_IDS, "_NCProperties",
    "_nc3_strict", "_FillValue", ENCODING, CRC, JSON_ATTRIBUTE,
}  # fmt: skip


def write_attrs(target: h5py.HLObject, attrs: Mapping[str, Any]) -> None:
    """Store `attrs`: texts, numbers and lists of numbers as themselves, everything else in one JSON attribute."""
    other = {}
    for name, value in attrs.items():
        if not isinstance(name, str):
            raise TypeError(f"names of attributes must be strings, got {name!r}")
        native = _native(value) if name and "\0" not in name and name not in _INTERNAL else None
        if native is None:
            other[name] = value
        elif isinstance(native, str):
            write_text(target, name, native)
        else:
            target.attrs[name] = native
    if other:
        write_text(target, JSON_ATTRIBUTE, to_json(other))


def write_text(target: h5py.HLObject, name: str, text: str) -> None:
    """Store the attribute `text` with a fixed length: it stands in the header of `target`, which has a checksum."""
    letters = np.bytes_(text.encode() or b"\0")
    target.attrs.create(name, letters, dtype=h5py.string_dtype("utf-8", max(1, len(text.encode()))))


def read_attrs(target: h5py.HLObject) -> dict[str, Any]:
    """The attributes that `write_attrs` stored, without those of the file format itself."""
    attrs = {name: _plain(target.attrs[name]) for name in target.attrs if name not in _INTERNAL}
    if JSON_ATTRIBUTE in target.attrs:
        attrs |= json.loads(decoded(target.attrs[JSON_ATTRIBUTE]))
    if isinstance(target, h5py.Dataset) and attrs.get("dtype") == "bool":
        del attrs["dtype"]
    return attrs


def to_json(value: Any) -> str:
    """JSON text of `value`; numpy numbers and arrays, sets of paths and tuples become their plain counterparts.

    Raises
    ------
    TypeError
        If something in it has no plain counterpart.
    """

    def plain(item):
        if isinstance(item, np.generic | np.ndarray):
            return item.tolist()
        if hasattr(item, "__fspath__"):
            return str(item)
        raise TypeError(
            f"cannot store {item!r} of type {type(item).__name__} as JSON; give texts, numbers, lists, dicts"
        )

    return json.dumps(value, default=plain)


def _native(value: Any) -> Any:
    """`value` as netCDF can hold it, or None."""
    if isinstance(value, str):
        return value if "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value) else None
    if isinstance(value, np.ndarray | list):
        if isinstance(value, list) and not all(type(item) in (int, float) for item in value):
            return None
        value = np.asarray(value)
        return value if value.ndim == 1 and value.size and value.dtype.kind in "if" and value.itemsize > 2 else None
    if type(value) is int:
        return np.int64(value) if -(2**63) <= value < 2**63 else None
    if type(value) is float or (isinstance(value, np.number) and value.dtype.kind in "if" and value.itemsize > 2):
        return value
    return None


def _plain(value: Any) -> Any:
    """An attribute as Python's own type where there is one."""
    if isinstance(value, bytes):
        return decoded(value)
    if isinstance(value, np.ndarray) and value.dtype in (np.int64, np.float64):
        return value.tolist()
    if isinstance(value, np.int64 | np.float64):
        return value.item()
    return value


def decoded(value: Any) -> str:
    """A text that may be stored as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
