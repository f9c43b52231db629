"""Our own rows: `landscape.top_eigenpairs` over all checkpoints in one call, through each objective there is."""

from __future__ import annotations

import torch
from reference import TOLERANCE
from solvers import Pairs, Solver
from workloads import Workload, spiral

import dynloss
import landscape
from dynloss.kernels import fastest_objective
from dynloss.kernels.torch_kernels import NetworkObjective

PACKAGE = "landscape", "dynloss-landscape"


def generic(workload: Workload) -> landscape.Objective:
    """The objective of any model and loss: autograd."""
    return landscape.Objective(workload.model, _cross_entropy, workload.inputs, workload.targets)


def fastest(workload: Workload) -> landscape.Objective:
    """What `dynloss.objective(run)` returns for a run of this model and loss."""
    return fastest_objective(workload.model, dynloss.CrossEntropy(3), workload.inputs, workload.targets)


def closed_form(workload: Workload) -> landscape.Objective:
    """The closed form in torch, which serves where numba is not installed."""
    return NetworkObjective(workload.model, dynloss.CrossEntropy(3), workload.inputs, workload.targets)


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets)


def together(objective_of, *, certify: bool, **options):
    """The `prepare` of ours: the objective holds the data; everything else is timed."""

    def prepare(workload: Workload, k: int):
        objective = objective_of(workload)

        def solve() -> list[Pairs]:
            eigs = landscape.top_eigenpairs(
                objective, workload.checkpoints, k=k, tol=TOLERANCE, certify=certify, **options
            )
            certified = eigs.certified.values if certify else [None] * eigs.sizes["step"]
            rows = zip(eigs.eigenvalue.values, eigs.eigenvector.values, eigs.n_hvp.values, certified, strict=True)
            return [Pairs(*row) for row in rows]

        return solve

    return prepare


def _solver(settings: str, objective_of, certify: bool) -> Solver:
    settings += ", certified" if certify else ""
    prepare = together(objective_of, certify=certify)
    return Solver("landscape", settings, prepare, PACKAGE, ours=True)


def numba_is_used() -> bool:
    """Whether the fastest objective here is another than the closed form in torch."""
    return type(fastest(spiral("W1", 100, torch.float64))) is not NetworkObjective


def solvers(with_numba: bool) -> list[Solver]:
    """Our rows; the others are compared with the first."""
    objectives = {"closed form, numba": fastest} if with_numba else {}
    objectives |= {"closed form": closed_form, "any model": generic}
    return [_solver(name, of, certify) for name, of in objectives.items() for certify in (True, False)]
