"""Two workers against one: eigenpairs of 400 checkpoints of the spiral network of width 1000; the aim is 1.7 times.

Wall-clock times, in turn in every round, of clusters that are up and have imported everything. Needs two idle cores:

    python -m pytest -c tests/benchmarks/pytest.ini tests/benchmarks/test_distribute.py -s
"""

import logging
import statistics
import time

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from dynloss.kernels import fastest_objective
from landscape import map_checkpoints, top_eigenpairs

distributed = pytest.importorskip("distributed")

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


def seconds(function, *args, **options):
    start = time.perf_counter()
    result = function(*args, **options)
    return time.perf_counter() - start, result


def test_two_workers_against_one():
    objective, checkpoints = descent()
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL, "memory_limit": 0}
    times = {"plain call": [], "1 worker": [], "2 workers": []}
    results = {}
    with (
        distributed.LocalCluster(n_workers=1, **options) as one,
        distributed.LocalCluster(n_workers=2, **options) as two,
        distributed.Client(one, set_as_default=False) as client_of_one,
        distributed.Client(two, set_as_default=False) as client_of_two,
    ):
        clients = {"plain call": None, "1 worker": client_of_one, "2 workers": client_of_two}
        for client in (client_of_one, client_of_two):
            map_checkpoints(top_eigenpairs, objective, checkpoints[{"step": slice(8)}], client=client, rows_per_task=1)
        for _ in range(ROUNDS):
            for name, client in clients.items():
                if client is None:
                    took, results[name] = seconds(top_eigenpairs, objective, checkpoints, tol=1e-3)
                else:
                    took, results[name] = seconds(
                        map_checkpoints, top_eigenpairs, objective, checkpoints, client=client, tol=1e-3
                    )
                times[name].append(took)
    for name, found in results.items():
        xr.testing.assert_allclose(found.eigenvalue, results["plain call"].eigenvalue, rtol=1e-5)
        print(
            f"\n{name:>10}: {min(times[name]):.2f} s, rounds {', '.join(f'{took:.2f}' for took in times[name])}", end=""
        )
    ratio = statistics.median(a / b for a, b in zip(times["1 worker"], times["2 workers"], strict=True))
    print(f"\ntwo workers are {ratio:.2f} times as fast as one (median of {ROUNDS} rounds; the aim is {AIM})")


if __name__ == "__main__":
    test_two_workers_against_one()
