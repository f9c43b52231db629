"""What is timed: a solver prepares a workload, and what it returns finds the top eigenpairs of all its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from workloads import Workload


class Pairs(NamedTuple):
    """The k eigenpairs that a solver returned for one checkpoint, in any order."""

    values: Sequence[float]  # (k,)
    vectors: Sequence  # k flat vectors (n,)
    n_products: int
    certified: Sequence[bool] | None = None


@dataclass(frozen=True)
class Solver:
    """One row of the table."""

    name: str
    settings: str
    prepare: Callable[[Workload, int], Callable[[], list[Pairs]]]  # (workload, k) → the call that is timed
    package: tuple[str, str]  # what must be importable, and the distribution whose version is reported
    ours: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.settings}"


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable):
        self.function, self.n_calls = function, 0

    def __call__(self, *args, **kwargs):
        self.n_calls += 1
        return self.function(*args, **kwargs)


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One vector (n,) of one tensor for each parameter."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
