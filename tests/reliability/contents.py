"""Everything that a reader can see of a run file, place by place, and where two files differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape import RunFormatError, open_run
from landscape.run_state import saved_states

Contents = dict[str, Any]
"""By place: texts, (dims, type, shape, attributes, bytes) of variables, and the error of what cannot be read."""


def contents(path: str | Path, *, check: bool = True) -> Contents:
    """What `open_run` shows of the file `path`; any exception but `RunFormatError` is raised.

    Parameters
    ----------
    path : str or Path
        A run file, perhaps a damaged one.
    check : bool
        Whether rows are compared with their checksums.
    """
    options = {} if check or "check" not in inspect.signature(open_run).parameters else {"check": False}
    run = attempt(lambda: open_run(path, **options))
    if isinstance(run, RunFormatError):
        return {"file": run}
    with run:
        found: Contents = {}
        for name in ("status", "producer", "created", "software", "config", "tensors", "layout"):
            found[name] = attempt(lambda name=name: repr(getattr(run, name)))
        for name in ("history", "checkpoints", "eigenpairs", "state"):
            found |= of_dataset(name, attempt(lambda name=name: getattr(run, name)))
        sets = attempt(lambda: run.data)
        found["data"] = sets if isinstance(sets, RunFormatError) else repr(list(sets))
        for name, dataset in sets.items() if isinstance(sets, dict) else ():
            found |= of_dataset(f"data/{name}", dataset)
        found["repr"] = attempt(lambda: repr(run).replace(run.path.name, "FILE"))
    return found


def attempt(read: Callable[[], Any]) -> Any:
    """What `read` returns, or its `RunFormatError`."""
    try:
        return read()
    except RunFormatError as error:
        return error


def of_dataset(place: str, dataset: xr.Dataset | RunFormatError | None) -> Contents:
    """All of `dataset`, each variable read on its own."""
    if dataset is None or isinstance(dataset, RunFormatError):
        return {place: dataset}
    found: Contents = {place: repr((list(dataset.variables), dict(dataset.sizes), dict(dataset.attrs)))}
    for name, variable in dataset.variables.items():
        found[f"{place}/{name}"] = attempt(lambda variable=variable: _frozen(variable))
    return found


def _frozen(variable: xr.Variable) -> tuple:
    values = variable.values
    values = values.astype(str) if values.dtype.hasobject else values
    return variable.dims, values.dtype, values.shape, repr(variable.attrs), np.ascontiguousarray(values).tobytes()


def states(path: str | Path) -> list[Contents]:
    """The states that a reader may rightly find in `path`: that of either slot, or none."""
    with open_run(path) as run:
        saved = saved_states(run._handle.group("state")) if "state" in run._handle else []
        return [{"state": None}, *(of_dataset("state", one.state) for one in saved)]


def errors(found: Contents) -> dict[str, str]:
    """Messages of what could not be read, by place."""
    return {place: str(value) for place, value in found.items() if isinstance(value, RunFormatError)}


def differences(found: Contents, expected: Contents, ignore: tuple[str, ...] = ()) -> list[str]:
    """Places that could be read and are not as expected, or came, or went without an error."""
    lost = errors(found)
    if "file" in lost:
        return []
    wrong = []
    for place in sorted((expected.keys() | found.keys()) - set(ignore) - lost.keys()):
        above = any(place.startswith(f"{one}/") for one in lost)
        if not above and (place not in found or place not in expected or found[place] != expected[place]):
            wrong.append(f"{place}: {_explained(found.get(place), expected.get(place))}")
    return wrong


def _explained(found: Any, expected: Any) -> str:
    """How two values of one place differ."""
    if isinstance(found, tuple) and isinstance(expected, tuple) and found[:-1] == expected[:-1]:
        dtype = found[1]
        theirs, ours = (np.frombuffer(value[-1], dtype) for value in (found, expected))
        (different,) = np.nonzero(theirs.view(f"V{dtype.itemsize}") != ours.view(f"V{dtype.itemsize}"))
        i = different[0]
        return f"{len(different)} of {len(ours)} entries differ, the first at {i}: {theirs[i]!r}, not {ours[i]!r}"
    theirs, ours = ((value[:-1] if isinstance(value, tuple) else value) for value in (found, expected))
    return f"{str(theirs)[:200]}, not {str(ours)[:200]}"
