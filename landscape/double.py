"""Float64 where code asks for a shorter type by name."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class Double(TorchFunctionMode):
    """While it lasts, every floating-point tensor is of float64, also where a shorter type is asked for, or default.

    Losses of Hugging Face's models, for example, take their logits to float32 first.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return tree_map(_doubled, func(*args, **kwargs))


def _doubled(leaf):
    if isinstance(leaf, torch.Tensor):
        return leaf.double() if leaf.is_floating_point() else leaf
    return torch.float64 if leaf in (torch.float32, torch.float16, torch.bfloat16) else leaf
