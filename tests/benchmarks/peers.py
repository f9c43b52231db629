"""The peers' top eigenpairs, each through its own public interface, one checkpoint at a time as their users must.

A function here takes a model that holds the checkpoint's parameters, its data, k and the peer's own settings. None of
them needs torchvision, which curvlinops' dependencies ask for but do not import here.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable

import torch
from reference import TOLERANCE, relative_residuals
from scipy.sparse.linalg import eigsh
from solvers import Counted, Pairs, Solver, flat
from workloads import Workload

LOSS = torch.nn.CrossEntropyLoss()

HESSIAN_EIGENTHINGS = "hessian_eigenthings", "hessian-eigenthings"
CURVLINOPS = "curvlinops", "curvlinops-for-pytorch"
PYHESSIAN = "pyhessian", "pyhessian"
LANDSCAPER = "landscaper", "landscaper"


def pyhessian(model, inputs, targets, k: int, **settings) -> Pairs:
    """Power iteration with deflation; the gradient's graph is kept, as in all that it does with a single batch."""
    module = importlib.import_module("pyhessian.hessian")
    if not isinstance(module.hessian_vector_product, Counted):
        module.hessian_vector_product = Counted(module.hessian_vector_product)
    before = module.hessian_vector_product.n_calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on reference cycles of .grad, which are broken below
        solver = module.hessian(model, LOSS, data=(inputs, targets), cuda=False)
    values, vectors = solver.eigenvalues(top_n=k, **settings)
    model.zero_grad(set_to_none=True)
    return Pairs(values, [flat(v) for v in vectors], module.hessian_vector_product.n_calls - before)


def landscaper(model, inputs, targets, k: int, *, try_cache: bool = False, **settings) -> Pairs:
    """The same algorithm; `try_cache` keeps the gradient's graph."""
    from landscaper import PyHessian

    solver = PyHessian(model, LOSS, [(inputs, targets)], "cpu", try_cache=try_cache)
    solver.hv_product = Counted(solver.hv_product)
    values, vectors = solver.eigenvalues(top_n=k, **settings)
    return Pairs(values, [flat(v) for v in vectors], solver.hv_product.n_calls)


def curvlinops(model, inputs, targets, k: int, *, check_deterministic: bool = True, **settings) -> Pairs:
    """Implicitly restarted Lanczos, as in the documentation of curvlinops; products are forward over reverse mode."""
    from curvlinops import HessianLinearOperator

    data, params = [(inputs, targets)], list(model.parameters())
    operator = HessianLinearOperator(model, LOSS, params, data, check_deterministic=check_deterministic).to_scipy()
    operator._matvec = Counted(operator._matvec)
    values, vectors = eigsh(operator, k=k, which="LA", **settings)
    return Pairs(values, vectors.T, operator._matvec.n_calls)


def hessian_eigenthings(model, inputs, targets, k: int, *, max_iter: int | None = None) -> Pairs:
    """Lanczos with a number of steps that is fixed beforehand."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    operator = HessianOperator(model, [(inputs, targets)], supervised_loss(LOSS))
    found = lanczos(operator, k=k, max_iter=max_iter, which="LA", seed=0)
    return Pairs(found.eigenvalues.tolist(), found.eigenvectors, found.iterations)


def one_by_one(solve: Callable, **settings):
    """The `prepare` of a peer: loading the checkpoints into models is not timed."""

    def prepare(workload: Workload, k: int):
        models = [workload.model_at(row) for row in range(workload.n_checkpoints)]
        return lambda: [solve(model, workload.inputs, workload.targets, k, **settings) for model in models]

    return prepare


def by_hand(workload: Workload, k: int):
    """hessian-eigenthings with the fewest steps whose measured residuals are within the tolerance everywhere."""
    return one_by_one(hessian_eigenthings, max_iter=fewest_steps(workload.whole or workload, k))(workload, k)


@functools.cache
def fewest_steps(workload: Workload, k: int) -> int:
    """The number of Lanczos steps that a user would find by trying: 8, 9, … until all pairs are good."""

    def good(row: int, max_iter: int) -> bool:
        pairs = hessian_eigenthings(workload.model_at(row), workload.inputs, workload.targets, k, max_iter=max_iter)
        return max(relative_residuals(workload, row, pairs)) <= TOLERANCE

    max_iter, row, n_good = 8, 0, 0
    while n_good < workload.n_checkpoints:
        if good(row, max_iter):
            row, n_good = (row + 1) % workload.n_checkpoints, n_good + 1
        else:
            max_iter, n_good = max_iter + 1, 0
    return max_iter


PEERS = [
    Solver("hessian-eigenthings", "steps by hand", by_hand, HESSIAN_EIGENTHINGS),
    Solver("hessian-eigenthings", "defaults", one_by_one(hessian_eigenthings), HESSIAN_EIGENTHINGS),
    Solver("curvlinops + eigsh", "tol=1e-3", one_by_one(curvlinops, tol=1e-3, check_deterministic=False), CURVLINOPS),
    Solver("curvlinops + eigsh", "defaults", one_by_one(curvlinops), CURVLINOPS),
    Solver("PyHessian", "tol=1e-6", one_by_one(pyhessian, tol=1e-6, maxIter=1000), PYHESSIAN),
    Solver("PyHessian", "defaults", one_by_one(pyhessian), PYHESSIAN),
    Solver("Landscaper", "tol=1e-6", one_by_one(landscaper, tol=1e-6, maxIter=1000, try_cache=True), LANDSCAPER),
    Solver("Landscaper", "defaults", one_by_one(landscaper), LANDSCAPER),
]
