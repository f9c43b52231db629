"""Rows of a checkpoints Dataset as tensors, a batch at a time, and their steps beside every result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from landscape.params import ParamLayout

LOADED_ENTRIES = 2**24
"""Entries of θ that are loaded at a time, one row at least: two checkpoints of ten million parameters are not."""


def rows(checkpoints: xr.Dataset, objective) -> xr.Dataset:
    """`checkpoints` with dims (step, param), a single selected row becoming one step; checked against `objective`.

    Raises
    ------
    ValueError
        If there are no params in it, no rows, or they are those of another model.
    """
    if "params" not in checkpoints or "step" not in checkpoints.coords:
        raise ValueError("checkpoints must be a Dataset with params (step, param) and the coordinate step")
    if "step" not in checkpoints.dims:
        checkpoints = checkpoints.expand_dims("step")
    if checkpoints.sizes["step"] == 0:
        raise ValueError("checkpoints hold no rows")
    layout = checkpoints.attrs.get("layout")
    difference = layout and ParamLayout.from_json(layout).difference(objective.layout)
    if difference or checkpoints.sizes["param"] != objective.n_params:
        raise ValueError(
            f"these checkpoints belong to another model: {checkpoints.sizes['param']} parameters against "
            f"{objective.n_params} of the objective's{'; ' + difference if difference else ''}"
        )
    return checkpoints.transpose("step", "param", ...)


def matched(objective, checkpoints: xr.Dataset) -> tuple:
    """`objective` as these checkpoints need it, and them as `rows` gives them, with what was decided in their attrs.

    Where they hold ``buffers`` (step, buffer), such as the running statistics of batch norms, each row is evaluated
    with its own. The attrs of every result say which, ``batch_norm``, and the ``weight_decay`` of the objective.

    Raises
    ------
    ValueError
        As `rows`; or if the buffers are not those of the objective's model.
    """
    checkpoints = rows(checkpoints, objective)
    if "buffers" in checkpoints:
        from landscape.buffers import with_buffers

        objective = with_buffers(objective, checkpoints)
    said = {"batch_norm": objective.batch_norm, "weight_decay": objective.weight_decay}
    return objective, checkpoints.assign_attrs({name: value for name, value in said.items() if value})


def refuse_repeated_steps(dataset: xr.Dataset | xr.DataArray, name: str) -> None:
    """Raise ValueError if the rows of `dataset` cannot be told apart by their step; their order is free."""
    steps, counts = np.unique(dataset.step.values, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f'{name} hold step {steps[counts > 1][0]} more than once; keep one: {name}.drop_duplicates("step")'
        )


def rows_at_a_time(most: int, n_params: int) -> int:
    """How many rows of length `n_params` are loaded together: `most`, and fewer where they are long."""
    return max(1, min(most, LOADED_ENTRIES // n_params))


def batches(checkpoints: xr.Dataset, objective, size: int, label: str) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Steps (E,) and params (E, n) of `size` rows at a time, with a progress bar named `label` on a terminal."""
    steps = checkpoints.step.values
    with tqdm(total=len(steps), desc=label, unit="step", delay=1, disable=None) as progress:
        for start in range(0, len(steps), size):
            # Loading from a fresh selection leaves nothing cached in `checkpoints`, so memory stays that of a batch.
            block = checkpoints.params.isel(step=slice(start, start + size)).values
            yield steps[start : start + size], objective.as_params(block)
            progress.update(len(block))
