"""Values of one row of a run's table: checked, and put into the table's buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from landscape.run_format import EIGENPAIR_VARIABLES, to_array
from landscape.run_tables import Table


def put_history(table: Table, values: Mapping[str, Any]) -> None:
    """Put a row into the buffers of the history; it is not counted yet. Called at every step, this must be quick.

    Raises
    ------
    ValueError
        If a variable is missing, unknown, no number or of another shape.
    """
    row, buffers = table.n_buffered, table.buffers
    if len(values) != len(buffers):
        raise ValueError(_mismatch(buffers, values))
    for name, value in values.items():
        if name not in buffers:
            raise ValueError(_mismatch(buffers, values))
        buffer = buffers[name]
        if type(value) is float and buffer.ndim == 1:
            buffer[row] = value
            continue
        shape = buffer.shape[1:]
        try:
            array = to_array(value)
            if array.shape != shape:  # numpy would spread a single value over all classes
                raise ValueError(f"got {array.shape}")
            buffer[row] = array
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold numbers of shape {shape}: {error}") from None


def put_checkpoint(table: Table, params: Any, optimizer_state: Mapping[str, Any] | None, model_buffers: Any) -> None:
    """Put θ, the vectors of the optimiser and the buffers of the model into a row; it is not counted yet.

    Raises
    ------
    ValueError
        If a vector is missing, unknown or of another length.
    """
    row, buffers = table.n_buffered, table.buffers
    vectors = {"params": params, **(optimizer_state or {})}
    if (model_buffers is not None) != ("buffers" in buffers):
        raise ValueError(
            f"append must give {'' if model_buffers is None else 'no '}buffers, as RunWriter was told to save "
            f"{'them' if model_buffers is None else 'none'}"
        )
    if model_buffers is not None:
        vectors["buffers"] = model_buffers
    if vectors.keys() != buffers.keys():
        declared = ", ".join(sorted(buffers.keys() - {"params", "buffers"})) or "nothing"
        given = sorted(vectors.keys() - {"params", "buffers"})
        raise ValueError(f"optimizer_state must give {declared}, as the writer declared; got {given}")
    for name, vector in vectors.items():
        array, buffer = to_array(vector), buffers[name]
        if array.shape != buffer.shape[1:]:
            raise ValueError(f"{name} must have shape {buffer.shape[1:]}, got {array.shape}")
        buffer[row] = array


def put_eigenpairs(table: Table, eigs: xr.Dataset) -> Iterator[int]:
    """Put each row of `eigs` into the buffers, and yield its step for the caller to count the row.

    Raises
    ------
    ValueError
        If it has other numbers of modes or parameters than the table.
    """
    eigs = eigs if "step" in eigs.dims else eigs.expand_dims("step")
    n_modes, n_params = table.buffers["eigenvector"].shape[1:]
    for dim, size in {"mode": n_modes, "param": n_params}.items():
        if eigs.sizes.get(dim) != size:
            raise ValueError(f"eigs must have {size} entries along {dim}, got {eigs.sizes.get(dim)}")
    values = {
        name: eigs[name].transpose("step", *dims).values
        for name, (dims, _, _) in EIGENPAIR_VARIABLES.items()
        if name in eigs
    }
    for row, step in enumerate(eigs["step"].values.tolist()):
        for name, buffer in table.buffers.items():
            missing = np.nan if buffer.dtype.kind == "f" else 0
            buffer[table.n_buffered] = values[name][row] if name in values else missing
        yield step


def _mismatch(buffers: Mapping, given: Mapping) -> str:
    missing, unknown = sorted(buffers.keys() - given.keys()), sorted(given.keys() - buffers.keys())
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    parts += [f"has {', '.join(unknown)}, which the writer's history does not name"] if unknown else []
    return f"append must give every variable of the history: this row {' and '.join(parts)}"
