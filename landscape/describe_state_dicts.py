"""What checkpoints of others hold, as text: ``python -m landscape inspect PATH…``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from landscape.describe import row_text, spans
from landscape.state_dict_files import read_tensors
from landscape.state_dict_names import files_by_step, shared_prefix

MOST = 60
"""Tensors that are listed."""


def describe_state_dicts(sources: Sequence[str | os.PathLike]) -> str:
    """Text that lists the files of `sources` by step, and the tensors of the first; files that differ are named.

    Raises
    ------
    FileNotFoundError
        If there are no files.
    ValueError
        If a file is damaged or refused, or steps cannot be told.
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
    width = max(map(len, tensors))
    for name, tensor in list(tensors.items())[:MOST]:
        kind = str(tensor.dtype).removeprefix("torch.")
        lines.append(row_text("", f"{name:<{width}}  {kind:<9} {tuple(tensor.shape)}"))
    if len(tensors) > MOST:
        lines.append(row_text("", f"… and {len(tensors) - MOST} more"))
    for path in different[:5]:
        lines.append(row_text("different", f"{path} holds other tensors than {first}"))
    return "\n".join(lines)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
