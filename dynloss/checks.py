"""Checks before a run's file is touched: that data, model and loss fit, and that a run to resume is this one."""

from __future__ import annotations

import json

import numpy as np
import torch

from landscape import Run
from landscape.attributes import to_json
from landscape.model_copy import refuse_training_mode


def checked_samples(name: str, model: torch.nn.Module, inputs, targets) -> tuple[torch.Tensor, torch.Tensor]:
    """`inputs` and `targets` as tensors, targets int64.

    Raises
    ------
    ValueError
        Unless they are finite samples that `model` takes, of the classes that it answers with; `name` says which set.
    """
    inputs, targets = torch.as_tensor(inputs), torch.as_tensor(targets)
    if not (inputs.ndim and targets.ndim) or len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"{name} needs one target a sample, got inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}"
        )
    if not inputs.isfinite().all():
        raise ValueError(f"{name} holds NaN or inf in its inputs; remove or impute those samples first")
    if targets.is_floating_point() or targets.ndim != 1:
        raise ValueError(f"{name} needs integer targets of shape (P,), got {targets.dtype} {tuple(targets.shape)}")
    try:
        outputs = model_outputs(model, inputs[:1])
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: the model does not take inputs {tuple(inputs.shape)}: {reason}") from None
    if outputs.ndim != 2:
        raise ValueError(f"{name}: the model must answer with (P, class), got {tuple(outputs.shape)} for one sample")
    if targets.min() < 0 or targets.max() >= outputs.shape[1]:
        raise ValueError(
            f"{name} has targets from {targets.min()} to {targets.max()}; "
            f"the model's classes are 0 … {outputs.shape[1] - 1}"
        )
    return inputs, targets.long()


def model_outputs(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of `model` on `inputs`, which take the type and device of its parameters."""
    refuse_training_mode(model)
    first = next(model.parameters(), inputs)
    inputs = inputs.to(first.device, first.dtype if inputs.is_floating_point() else inputs.dtype)
    with torch.no_grad():
        return model(inputs)


def check_same_run(run: Run, config: dict, sets: dict, params: torch.Tensor) -> None:
    """Raise ValueError unless `run` was begun with these settings, data sets and first parameters."""
    found = _differences(run.config, json.loads(to_json(config)))
    for name in [*sets, *(run.data.keys() - sets.keys())]:
        stored = [run.data[name][part].values for part in ("inputs", "targets")] if name in run.data else []
        given = [part.numpy(force=True) for part in sets.get(name, ())]
        if len(stored) != len(given) or not all(map(np.array_equal, stored, given)):
            found.append(f"its {name} data are others")
    first = run.checkpoints.params.isel(step=slice(0, 1)).values
    if len(first) and not np.array_equal(first[0], params.numpy(force=True)):
        found.append("it began with other parameters")
    if found:
        raise ValueError(f"{run.path} holds another run, and cannot be resumed as this one: {'; '.join(found)}")


def _differences(theirs: dict, ours: dict) -> list[str]:
    """What two configs differ in, as words; settings within settings are compared one by one."""
    found = []
    for key in [*ours, *sorted(theirs.keys() - ours.keys())]:
        old, new = theirs.get(key), ours.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        elif old != new:
            found.append(f"its {key} is {old}, not {new}")
    return found
