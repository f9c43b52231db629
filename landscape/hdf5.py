"""Datasets in files of their own: one HDF5 file in netCDF-4 conventions, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import xarray as xr

from landscape.file_handle import FileHandle, RunFormatError
from landscape.netcdf import read_dataset, write_dataset


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike, *, overwrite: bool = True) -> Path:
    """Path of the file in which `dataset` now stands.

    The file is written under a temporary name beside `path` and renamed, so `path` never holds half a Dataset. Any
    netCDF-4 reader opens it. Attributes without a netCDF type (bool, None, dict) stand in one JSON attribute.

    Parameters
    ----------
    dataset : xr.Dataset
        What an analysis returned. Values: integers, float32, float64, bool and text.
    path : str or path-like
        Where to write, for example ``"run.eigs.h5"``.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is False.
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If a variable is complex, a date or an object, or an attribute cannot be stored.

    Examples
    --------
    >>> import tempfile
    >>> widths = xr.Dataset({"width": ("rise", [0.64, 1.32])}, {"rise": [0.05, 0.1]}, {"certified": True})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_dataset(widths, f"{folder}/widths.h5")
    ...     load_dataset(file).identical(widths)
    True
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"dataset must be an xarray.Dataset, got {type(dataset).__name__}; see DataArray.to_dataset")
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    with written_whole(path, libver=("v110", "v110")) as file:
        write_dataset(file, dataset)
    return path


@contextlib.contextmanager
def written_whole(path: Path, **options) -> Iterator[h5py.File]:
    """A new HDF5 file under a temporary name beside `path`, which takes its name once it is written and closed."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with h5py.File(new, "w", track_order=True, **options) as file:
            yield file
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def load_dataset(path: str | os.PathLike, *, lazy: bool = False) -> xr.Dataset:
    """The Dataset in the file `path`.

    Parameters
    ----------
    path : str or path-like
        A file that `save_dataset` wrote, or another netCDF-4 file of numbers, flags and texts.
    lazy : bool
        If True, values are read when they are used, and the file stays open until ``dataset.close()``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RunFormatError
        If it is not a file that can be read, or is a run file (which `open_run` reads).
    """
    handle = FileHandle(path)
    try:
        if "format" in handle.file.attrs:
            raise RunFormatError(f"{path} is a run file: read it with landscape.open_run")
        dataset = read_dataset(handle, "/")
        if not lazy:
            return dataset.load()
    except BaseException:
        handle.close()
        raise
    finally:
        if not lazy:
            handle.close()
    dataset.set_close(handle.close)
    return dataset
