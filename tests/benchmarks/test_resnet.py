"""A ResNet-20 in float32: the price of one Hessian-vector product in gradients, and top-2 eigenpairs, certified."""

import functools

import pytest
import torch
from checked import check
from ours import PACKAGE, generic, together
from peers import CURVLINOPS, HESSIAN_EIGENTHINGS, LOSS, PYHESSIAN
from solvers import Solver
from workloads import resnet

ROUNDS = 3
GRADIENT = "one gradient"


@functools.cache
def workload_of(quick: bool):
    return resnet(n_images=32, n_checkpoints=2) if quick else resnet()


def gradient(workload):
    """The unit: one gradient by plain autograd."""
    model, params = _model(workload)
    return lambda: torch.autograd.grad(LOSS(model(workload.inputs), workload.targets), params)


def landscape_product(workload):
    params = torch.from_numpy(workload.checkpoints.params.values[0])
    vector = torch.randn_like(params)
    product = generic(workload).linearize(params, 0)
    return lambda: product(vector)


def hessian_eigenthings_product(workload):
    from hessian_eigenthings import HessianOperator, supervised_loss

    operator = HessianOperator(_model(workload)[0], [(workload.inputs, workload.targets)], supervised_loss(LOSS))
    vector = torch.randn(operator.size)
    return lambda: operator.matvec(vector)


def curvlinops_product(workload):
    from curvlinops import HessianLinearOperator

    model, params = _model(workload)
    data = [(workload.inputs, workload.targets)]
    operator = HessianLinearOperator(model, LOSS, params, data, check_deterministic=False)
    vector = torch.randn(operator.shape[1])
    return lambda: operator @ vector


def pyhessian_product(workload):
    from pyhessian import hessian_vector_product

    model, params = _model(workload)
    gradients = torch.autograd.grad(LOSS(model(workload.inputs), workload.targets), params, create_graph=True)
    vector = [torch.randn_like(p) for p in params]
    return lambda: hessian_vector_product(gradients, params, vector)


def _model(workload):
    model = workload.model_at(0)
    return model, list(model.parameters())


PRODUCTS = [
    Solver("autograd", GRADIENT, gradient, ("torch", "torch")),
    Solver("landscape", "any model", landscape_product, PACKAGE, ours=True),
    Solver("PyHessian", "graph kept", pyhessian_product, PYHESSIAN),
    Solver("hessian-eigenthings", "", hessian_eigenthings_product, HESSIAN_EIGENTHINGS),
    Solver("curvlinops", "", curvlinops_product, CURVLINOPS),
]


def pytest_generate_tests(metafunc):
    if "solver" in metafunc.fixturenames:
        rounds = 1 if metafunc.config.getoption("quick") else ROUNDS
        cases = [
            pytest.param(round_, solver, id=f"round{round_}-{solver.name}")
            for round_ in range(rounds)
            for solver in PRODUCTS
        ]
        metafunc.parametrize(("round_", "solver"), cases)


def test_hessian_vector_product(benchmark, results, quick, round_, solver):
    reason = results.missing(solver)
    if reason:
        pytest.skip(f"ABSENT: {solver.name}: {reason}")
    workload = workload_of(quick)
    benchmark.group = f"{workload.name} product"
    call = solver.prepare(workload)  # in every round, so that only one graph is held at a time
    benchmark.pedantic(call, warmup_rounds=1 if round_ == 0 else 0)
    empty = {"solver": solver.name, "settings": solver.settings, "ours": solver.ours, "milliseconds": []}
    row = results.products.setdefault(solver.name, {"workload": workload.name, "dtype": workload.dtype} | empty)
    row["milliseconds"].append(1e3 * benchmark.stats.stats.total)


def test_top_eigenpairs_of_the_resnet(benchmark, results, quick):
    workload = workload_of(quick)
    benchmark.group = f"{workload.name} {workload.dtype}"
    prepare = together(generic, certify=True, batch_rows=1)  # the graph of one checkpoint fills gigabytes
    solver = Solver("landscape", "any model, certified", prepare, PACKAGE, ours=True)
    assert not results.missing(solver)
    found = benchmark.pedantic(solver.prepare(workload, 2))
    row = results.row(workload, solver)
    row["milliseconds"].append(1e3 * benchmark.stats.stats.total / len(found))
    # In float64 a few of the millions of ReLUs next to zero switch, which changes Hv by 1e-3: another function.
    check(row, workload, found, dtype=torch.float32)
