"""Slices of the loss, points a second: ours by each objective, loss-landscapes and the load-and-run loop, in turn.

All evaluate the same plane through the last checkpoint, along filter-normalised random directions, in the type of the
workload, and are compared with the network run in float64 at some of its points. Planes are asked of the objectives
themselves, as `landscape.plane_slice` does.
"""

import functools

import numpy as np
import pytest
import torch
import workloads
from ours import PACKAGE, closed_form, fastest, generic, numba_is_used
from peer_slices import PEERS, load_and_run
from solvers import Solver

import dynloss
import landscape

ROUNDS = 3
CASES = [("W1", "float32", 201), ("W1", "float64", 201), ("W2", "float32", 51), ("W2", "float64", 51)]
LARGE = [("W2", "float32", 201), ("W2", "float64", 201)]  # of the closed forms only, beside the peers' 51²
WIDTHS = {"W1": 100, "W2": 1000}
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


def by(objective_of):
    def prepare(workload, plane):
        objective = objective_of(workload)

        def solve():
            terms = objective.plane_losses(*plane, 0).numpy()
            return np.tensordot(np.ones(len(terms)), terms, 1)

        return solve

    return prepare


def ours(name, objective_of):
    return Solver("landscape", name, by(objective_of), PACKAGE, ours=True)


CLOSED = ([ours("closed form, numba", fastest)] if numba_is_used() else []) + [ours("closed form", closed_form)]
SOLVERS = [*PEERS, *CLOSED, ours("any model", generic)]


def pytest_generate_tests(metafunc):
    if "solver" not in metafunc.fixturenames:
        return
    quick = metafunc.config.getoption("quick")
    cases = [
        pytest.param(*case, round_, solver, id="-".join([*map(str, case), f"round{round_}", str(solver)]))
        for cases, solvers in ((CASES, SOLVERS), (LARGE, CLOSED), ([("W3", "float32", 5)], [PEERS[1], SOLVERS[-1]]))
        for case in cases
        for round_ in range(1 if quick or cases is LARGE else ROUNDS)
        for solver in solvers
    ]
    metafunc.parametrize(("name", "dtype", "n_points", "round_", "solver"), cases)


@functools.cache
def workload_of(name: str, dtype: str, quick: bool) -> workloads.Workload:
    if name == "W3":
        return workloads.resnet(n_images=32, n_checkpoints=2) if quick else workloads.resnet()
    return workloads.spiral(name, WIDTHS[name], getattr(torch, dtype))


def plane_of(workload, n_points: int):
    """Centre (n,), directions (2, n) and both grids, of the workload's type."""
    last = workload.checkpoints.isel(step=-1)
    layout = landscape.ParamLayout.of(workload.model)
    directions = landscape.random_directions(last, layout=layout).direction.values
    grid = torch.linspace(-1, 1, n_points, dtype=workload.inputs.dtype)
    return torch.from_numpy(last.params.values), torch.from_numpy(directions).to(grid), grid, grid


@functools.cache
def reference(name: str, dtype: str, n_points: int, quick: bool):
    """Losses in float64 at 36 points or fewer, with their rows and columns."""
    workload = workload_of(name, dtype, quick)
    center, directions, *grid = (t.double() for t in plane_of(workload, n_points))
    places = np.unique(np.linspace(0, n_points - 1, 6).round().astype(int))
    some = [g[places] for g in grid]
    if name == "W3":  # in float64 some of the millions of ReLUs next to zero switch
        return places, load_and_run(workload, plane_of(workload, n_points))[np.ix_(places, places)]
    rows = torch.cartesian_prod(*some) @ directions + center
    wide = landscape.Objective(
        workload.model, dynloss.CrossEntropy(3), workload.inputs.double(), workload.targets, dtype=torch.float64
    )
    return places, np.array([wide.loss(row, 0) for row in rows]).reshape(len(places), -1)


def test_slice(benchmark, results, quick, name, dtype, n_points, round_, solver):
    reason = results.missing(solver)
    if reason:
        pytest.skip(f"ABSENT: {solver.name}: {reason}")
    n = min(n_points, 11) if quick else n_points
    workload = workload_of(name, dtype, quick)
    benchmark.group = f"slice {name} {dtype} {n_points}²"
    if round_ == 0 and name != "W3":
        solver.prepare(workload, plane_of(workload, 3))()  # imports and compilation are not timed
    losses = benchmark.pedantic(solver.prepare(workload, plane_of(workload, n)))
    places, expected = reference(name, dtype, n, quick)
    difference = float(np.nanmax(np.abs(losses[np.ix_(places, places)] / expected - 1)))
    row = results.slices.setdefault((name, dtype, str(solver), n_points), empty_row(name, dtype, n_points, solver))
    row["milliseconds"].append(1e3 * benchmark.stats.stats.total / n**2)
    row["difference"] = max(difference, row["difference"])
    if solver.ours:
        assert difference < TOLERANCE[dtype]


def empty_row(name: str, dtype: str, n_points: int, solver: Solver) -> dict:
    """Milliseconds are those of a point, in each round; `compared_with` is the key of a peer's row."""
    peer = PEERS[1 if name == "W3" else 0]
    at = 51 if name == "W2" else n_points  # the cost of a point does not depend on how many there are
    row = {"workload": name, "dtype": dtype, "points": n_points, "solver": str(solver), "ours": solver.ours}
    return row | {"compared_with": (name, dtype, str(peer), at), "milliseconds": [], "difference": 0.0}


def test_reweighting_a_plane(benchmark, results, quick):
    """The plane at another phase from its class terms, beside computing it by the fastest objective."""
    workload, loss = workload_of("W1", "float64", quick), dynloss.DynamicalCrossEntropy(3, 70, 5000)
    directions = plane_of(workload, 3)[1]
    objective = fastest(workload)
    checkpoint = workload.checkpoints.isel(step=-1)
    plane = landscape.plane_slice(objective, checkpoint, directions.numpy(), n_points=201, terms=True)
    weights = loss.class_weights(1234)
    benchmark.group = "a new phase of a plane"
    computed = benchmark.pedantic(landscape.reweight, (plane, weights), rounds=20, warmup_rounds=1)
    np.testing.assert_allclose(computed.loss, np.tensordot(weights, plane.term_loss, 1), rtol=1e-12)
    row = results.slices.get(("W1", "float64", str(CLOSED[0]), 201))
    if row and not quick:
        results.reweighting = 201**2 * min(row["milliseconds"]) / (1e3 * benchmark.stats.stats.median)
