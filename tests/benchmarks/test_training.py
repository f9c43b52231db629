"""Training of W1 by gradient descent, steps × networks a second: our ensembles, JAX and the loop of PyTorch, in turn.

On one core by process time; `landscape` on two cores by wall time, beside itself on one. What is timed is checked:
after 50 steps all have the same θ.
"""

import dataclasses
import functools
import os
import time

import numpy as np
import pytest
import torch
from peer_training import jax_fori_loop, torch_loop
from solvers import Solver

import dynloss
from dynloss import kernels

ROUNDS = 5
N_STEPS = {"one": 2000, "ours": 300}
N_MEMBERS = 64
PACKAGE = "dynloss", "dynloss-landscape"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Networks of one hidden layer of 100 on the spiral, under dynamical cross entropy."""

    dtype: torch.dtype
    n_steps: int
    n_members: int = 1
    learning_rate: float = 1.0

    @functools.cached_property
    def data(self):
        return dynloss.spiral(100, 3, seed=0)

    @property
    def inputs(self):
        return self.data.inputs.to(self.dtype)

    @property
    def targets(self):
        return self.data.targets

    @property
    def loss(self):
        return dynloss.DynamicalCrossEntropy(3, amplitude=70, period=5000)

    @property
    def class_weights(self):
        return self.loss.class_weights(torch.arange(self.n_steps)).numpy()

    def models_anew(self):
        return [dynloss.mlp(2, 100, 3, seed=seed).to(self.dtype) for seed in range(self.n_members)]

    @functools.cached_property
    def models(self):
        return self.models_anew()


def ensemble(kernel, n_threads=1):
    def prepare(problem):
        def solve():
            with pytest.MonkeyPatch.context() as patch:
                if kernel != "numba":
                    patch.setattr(kernels, "find_spec", lambda name: None)
                trained = dynloss.train_ensemble(
                    problem.models,
                    problem.loss,
                    (problem.inputs, problem.targets),
                    learning_rate=problem.learning_rate,
                    n_steps=problem.n_steps,
                    history_every=problem.n_steps,
                    n_threads=n_threads,
                )
            assert ("numba" in trained.attrs["kernel"]) == (kernel == "numba")
            return trained.params.values[:, -1]

        return solve

    return prepare


JAX = Solver("JAX", "fori_loop, one network", jax_fori_loop, ("jax", "jax"))
TORCH = Solver("PyTorch", "autograd and SGD, one network", torch_loop, ("torch", "torch"))
OURS = [
    Solver("dynloss", f"ensemble of {N_MEMBERS}, {name}", ensemble(kernel), PACKAGE, ours=True)
    for kernel, name in (("numba", "closed form, numba"), ("torch", "closed form"))
]
CASES = [
    pytest.param(dtype, round_, solver, id=f"{str(dtype)[6:]}-round{round_}-{solver}")
    for dtype in (torch.float64, torch.float32)
    for round_ in range(ROUNDS)
    for solver in (JAX, TORCH, *OURS)
]


@functools.cache
def reference(dtype):
    """θ of the first network after 50 steps, by autograd in float64."""
    return torch_loop(Problem(torch.float64, 50))()


@pytest.mark.parametrize(("dtype", "round_", "solver"), CASES)
def test_training(benchmark, results, quick, dtype, round_, solver):
    if quick and round_:
        pytest.skip("one round is enough to see that everything runs")
    reason = results.missing(solver)
    if reason:
        pytest.skip(f"ABSENT: {solver.name}: {reason}")
    n_members = N_MEMBERS if solver.ours else 1
    if round_ == 0:
        short = solver.prepare(Problem(dtype, 50, n_members))()
        np.testing.assert_allclose(short[0], reference(dtype)[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    n_steps = N_STEPS["ours" if solver.ours else "one"]
    benchmark.group = f"training {dtype}"
    benchmark.pedantic(solver.prepare(Problem(dtype, n_steps, n_members)))
    key = str(dtype)[6:], str(solver)
    row = results.training.setdefault(key, {"dtype": key[0], "solver": key[1], "ours": solver.ours, "microseconds": []})
    row["microseconds"].append(1e6 * benchmark.stats.stats.total / (n_steps * n_members))


def test_two_cores(results, quick):
    """Wall time of the ensemble on one thread and on two, in turn."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core only")
    problem = Problem(torch.float64, 100 if quick else 500, N_MEMBERS)
    seconds = {1: [], 2: []}
    for _ in range(1 if quick else ROUNDS):
        for n_threads, measured in seconds.items():
            solve = ensemble("numba", n_threads)(problem)
            begun = time.perf_counter()
            solve()
            measured.append(time.perf_counter() - begun)
    results.two_cores = float(np.median(np.divide(seconds[1], seconds[2])))
