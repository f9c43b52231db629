"""What checkpoints of others hold, as text: ``python -m landscape inspect PATH…``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from landscape.analysis_inputs import objective_of
from landscape.describe_rows import row_text, spans
from landscape.state_dict_files import read_tensors
from landscape.state_dict_names import files_by_step, shared_prefix
from landscape.state_dicts import parameters_in, read_state_dicts, statistics_in

MOST = 60
"""Tensors that are listed."""


def describe_state_dicts(sources: Sequence[str | os.PathLike], objective: str | None = None) -> str:
    """Text that lists the files of `sources` by step, and the tensors of the first; files that differ are named.

    Each tensor is a parameter, a buffer that belongs to the checkpoint, or left out: by the function `objective`,
    ``FILE.py:function``, for its model, else as ``convert`` takes them.

    Raises
    ------
    FileNotFoundError
        If there are no files.
    ValueError
        If a file is damaged or refused, steps cannot be told, or a file does not fit the objective's model.
    """
    import numpy as np

    paths = files_by_step(sources[0] if len(sources) == 1 else list(sources))
    first, *others = paths.values()
    tensors = read_tensors(first)
    shapes = _shapes(tensors)
    different = [path for path in others if _shapes(read_tensors(path)) != shapes]
    prefix = shared_prefix(tensors)
    n_bytes = sum(os.path.getsize(path) for path in paths.values() if path.is_file())
    count = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    lines = [
        f"{len(paths)} checkpoints, {n_bytes / 1e6:.1f} MB" if len(paths) > 1 else str(first),
        row_text("steps", spans(np.array(list(paths)))),
        row_text("tensors", f"{len(tensors)}, with {count:,} floating-point numbers"),
    ]
    if prefix:
        lines.append(row_text("prefix", f"{prefix} before all names; it is taken off where the model has it not"))
    roles = _roles(tensors, paths, objective)
    width, wide = max(map(len, tensors)), max(len(str(tuple(tensor.shape))) for tensor in tensors.values())
    for name, tensor in list(tensors.items())[:MOST]:
        kind, shape = str(tensor.dtype).removeprefix("torch."), str(tuple(tensor.shape))
        lines.append(row_text("", f"{name:<{width}}  {kind:<9} {shape:<{wide}}  {roles[name]}"))
    if len(tensors) > MOST:
        lines.append(row_text("", f"… and {len(tensors) - MOST} more"))
    loaded = sum(tensors[name].numel() for name, role in roles.items() if role == "parameter")
    lines.append(row_text("loaded", f"{loaded:,} parameters" + ("" if objective else ", as convert takes them")))
    for path in different[:5]:
        lines.append(row_text("different", f"{path} holds other tensors than {first}"))
    return "\n".join(lines)


def _roles(tensors: dict[str, torch.Tensor], paths: dict, objective: str | None) -> dict[str, str]:
    """What each tensor is: parameter, buffer or left out."""
    layout = parameters_in(tensors) if objective is None else objective_of(objective, paths).layout
    if objective is not None:
        read_state_dicts(paths, layout)  # raises where a file does not fit
    prefix = shared_prefix(tensors, layout)
    buffers = statistics_in(tensors, prefix, layout).names
    named = {prefix + name: "parameter" for name in layout.names} | {prefix + name: "buffer" for name in buffers}
    return {name: named.get(name, "left out") for name in tensors}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
