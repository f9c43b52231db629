"""Two workers against one: eigenpairs of 400 checkpoints of the spiral network of width 1000; the aim is 1.7 times.

Wall-clock times, in turn in every round, of clusters that are up and have imported everything. What the machine allows
is shown too: one half in each of two processes, with nothing sent but the request. Needs two idle cores:

    python -m pytest -c tests/benchmarks/pytest.ini tests/benchmarks/test_distribute.py -s
"""

import statistics
import time

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from dynloss.kernels import fastest_objective
from landscape import map_checkpoints, top_eigenpairs
from landscape.cluster import connected

pytest.importorskip("distributed")

N_CHECKPOINTS, EVERY, ROUNDS, AIM = 400, 5, 3, 1.7


def descent():
    """An objective and checkpoints of plain gradient descent on it, every fifth step."""
    torch.set_num_threads(1)
    model, data = dynloss.mlp(2, 1000, 3, seed=0), dynloss.spiral(100, 3, seed=0)
    objective = fastest_objective(model, dynloss.CrossEntropy(3), *data)
    params, saved = objective.layout.flatten_model(model).clone(), []
    for step in range(N_CHECKPOINTS * EVERY):
        if step % EVERY == 0:
            saved.append(params.numpy().copy())
        params -= objective.gradient(params, step)
    steps = np.arange(N_CHECKPOINTS) * EVERY
    attrs = {"optimizer": "gd", "learning_rate": 1.0}
    return objective, xr.Dataset({"params": (("step", "param"), np.stack(saved))}, {"step": steps}, attrs)


def seconds(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def test_two_workers_against_one():
    objective, checkpoints = descent()
    times, results = {}, {}
    with connected(None, 1) as client_of_one, connected(None, 2) as client_of_two:
        shared = client_of_two.scatter((objective, checkpoints), broadcast=True)

        def half(start, objective, checkpoints):
            torch.set_num_threads(1)
            top_eigenpairs(objective, checkpoints.isel(step=slice(start, None, 2)), tol=1e-3)

        def halves():
            client_of_two.gather([client_of_two.submit(half, start, *shared, pure=False) for start in (0, 1)])

        ways = {
            "plain call": lambda: top_eigenpairs(objective, checkpoints, tol=1e-3),
            "1 worker": lambda: map_checkpoints(top_eigenpairs, objective, checkpoints, client=client_of_one, tol=1e-3),
            "2 workers": lambda: map_checkpoints(
                top_eigenpairs, objective, checkpoints, client=client_of_two, tol=1e-3
            ),
            "2 halves": halves,
        }
        for client in (client_of_one, client_of_two):
            map_checkpoints(top_eigenpairs, objective, checkpoints[{"step": slice(8)}], client=client, rows_per_task=1)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                took, results[name] = seconds(way)
                times.setdefault(name, []).append(took)
    del results["2 halves"]
    for found in results.values():
        xr.testing.assert_allclose(found.eigenvalue, results["plain call"].eigenvalue, rtol=1e-5)
    for name, took in times.items():
        print(f"\n{name:>10}: {min(took):.2f} s, rounds {', '.join(f'{t:.2f}' for t in took)}", end="")
    ours, allowed = (
        statistics.median(a / b for a, b in zip(times["1 worker"], times[name], strict=True))
        for name in ("2 workers", "2 halves")
    )
    print(
        f"\ntwo workers: {ours:.2f} times one (median of {ROUNDS} rounds; aim {AIM}); two halves: {allowed:.2f} times"
    )


if __name__ == "__main__":
    test_two_workers_against_one()
