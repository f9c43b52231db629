"""The same eigenpairs on a CUDA device, where there is one: how fast, and that they are equal."""

import time

import numpy as np
import pytest
import torch
from checked import check
from ours import PACKAGE, closed_form, generic, together
from reference import Reference
from solvers import Solver
from test_eigenpairs import SIZES, workload_of

import landscape

K = 2
OBJECTIVES = {"closed form": closed_form, "any model": generic}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: no row about one")


@pytest.mark.benchmark(timer=time.perf_counter)  # the results are on the host when the call ends
@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", SIZES)
def test_top_eigenpairs_on_cuda(benchmark, results, quick, name, kind):
    here = workload_of(name, "float32", True, quick)
    there = here.on("cuda")
    prepare = together(OBJECTIVES[kind], certify=True)
    solver = Solver("landscape", f"{kind}, certified, CUDA", prepare, PACKAGE, ours=True)
    benchmark.group = f"{name} float32"
    found = benchmark.pedantic(solver.prepare(there, K), rounds=3, warmup_rounds=1)
    row = results.row(here, solver)
    row["milliseconds"] += [1e3 * seconds / len(found) for seconds in benchmark.stats.stats.data]
    check(row, here, found, Reference())
    eigenvalues = [
        landscape.top_eigenpairs(OBJECTIVES[kind](workload), here.checkpoints, k=K, tol=1e-4).eigenvalue
        for workload in (here, there)
    ]
    np.testing.assert_allclose(*eigenvalues, rtol=1e-5)
