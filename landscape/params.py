"""Named parameter tensors and the one flat vector they make: the only flattening code of the project."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class ParamLayout:
    """Where each named tensor lies in the flat vector θ of shape (n,).

    Tensors follow each other in the order of `names`, each flattened in row-major order. Two layouts are equal
    when they hold the same names and shapes in the same order.

    Parameters
    ----------
    names : tuple of str
        Names of the tensors, as in ``model.named_parameters()``.
    shapes : tuple of tuple of int
        Their shapes; ``()`` is a scalar.

    Examples
    --------
    >>> layout = ParamLayout(("weight", "bias"), ((2, 3), (2,)))
    >>> layout.n_params, layout.offsets
    (8, (0, 6))
    >>> tensors = layout.unflatten(torch.arange(8.0))
    >>> tensors["bias"]
    tensor([6., 7.])
    >>> layout.flatten(tensors)
    tensor([0., 1., 2., 3., 4., 5., 6., 7.])
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "shapes", tuple(tuple(int(s) for s in shape) for shape in self.shapes))
        if len(self.names) != len(self.shapes):
            raise ValueError(f"a layout needs one shape a name, got {len(self.names)} names, {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            raise ValueError("parameter names must be unique in a layout")

    @classmethod
    def of(cls, model: torch.nn.Module) -> ParamLayout:
        """Layout of the parameters of `model` that require gradients; tied parameters count once, frozen ones not.

        Raises
        ------
        ValueError
            If no parameter requires gradients.
        """
        trainable = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("the model has no parameter that requires gradients; call model.requires_grad_(True)")
        names, shapes = zip(*trainable, strict=True)
        return cls(names, shapes)

    @classmethod
    def of_buffers(cls, model: torch.nn.Module) -> ParamLayout:
        """Layout of the buffers of `model` that are saved in its state dict and hold floating-point numbers.

        Those are the running statistics of batch norms, for most models; there may be none.
        """
        saved = model.state_dict()
        held = [(n, tuple(b.shape)) for n, b in model.named_buffers() if n in saved and b.is_floating_point()]
        return cls(tuple(name for name, _ in held), tuple(shape for _, shape in held))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position in θ of the first entry of each tensor."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        return tuple(starts[:-1])

    @property
    def n_params(self) -> int:
        """Length of θ."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, torch.Tensor] | Iterable[torch.Tensor]) -> torch.Tensor:
        """Flat vector (n,) made of `tensors`, a mapping by name or the tensors in the order of `names`."""
        if isinstance(tensors, Mapping):
            missing = [name for name in self.names if name not in tensors]
            if missing:
                raise ValueError(f"these parameters of the layout are missing: {', '.join(missing)}")
            tensors = [tensors[name] for name in self.names]
        tensors = list(tensors)
        if len(tensors) != len(self.names):
            raise ValueError(f"the layout has {len(self.names)} tensors, got {len(tensors)}")
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tensor.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)

    def flatten_model(self, model: torch.nn.Module) -> torch.Tensor:
        """A detached copy of the parameters of `model`, or of its buffers in such a layout, as a flat vector (n,)."""
        return self.flatten({name: p.detach() for name, p in (*model.named_parameters(), *model.named_buffers())})

    def unflatten(self, params: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of `params` (…, n) by name, each of shape ``(…, *shape)``; they carry its gradients."""
        if params.shape[-1] != self.n_params:
            raise ValueError(f"params must have {self.n_params} entries in the last dim, got {tuple(params.shape)}")
        parts = params.split(self.sizes, dim=-1)
        lead = params.shape[:-1]
        return {n: p.reshape(lead + s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def to_json(self) -> str:
        """The layout as a JSON list of [name, shape], as stored in the attrs of checkpoints."""
        return json.dumps([[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)])

    @classmethod
    def from_json(cls, text: str) -> ParamLayout:
        """The layout that `to_json` wrote."""
        entries = json.loads(text)
        return cls(tuple(name for name, _ in entries), tuple(tuple(shape) for _, shape in entries))

    def difference(self, other: ParamLayout) -> str:
        """One line that says where `other` differs first, or "" where it does not."""
        for i, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            if i >= len(other.names):
                return f"{name} {list(shape)} is missing"
            if (other.names[i], other.shapes[i]) != (name, shape):
                return f"{name} {list(shape)} stands against {other.names[i]} {list(other.shapes[i])}"
        if len(other.names) > len(self.names):
            return f"{other.names[len(self.names)]} has no counterpart"
        return ""
