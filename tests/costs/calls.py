"""One measurement in a process of its own: ``calls.py FOLDER FAMILY SIZE CALL`` prints seconds and bytes as JSON."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "reliability"))

import torch
import xarray as xr
from memory import forget_peak, peak_bytes, resident_bytes
from networks import FAMILIES, Case

import landscape
from landscape.describe_state_dicts import describe_state_dicts

THREADS = 2
N_STEPS, EVERY = 20, 10


def train(folder: Path, case: Case) -> dict:
    """The checkpoints that the other calls read: a short training by Adam."""
    model = case.model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(N_STEPS + 1):
        if step % EVERY == 0:
            torch.save(model.state_dict(), folder / f"step_{step}.pt")
        optimizer.zero_grad()
        loss = case.loss_fn(model(case.inputs), case.targets, step)
        loss.backward()
        optimizer.step()
    return {"parameters": sum(p.numel() for p in model.parameters()), "loss": loss.item()}


def inspect(folder: Path, case: Case) -> dict:
    """``python -m landscape inspect`` of a folder."""
    assert f"{1 + N_STEPS // EVERY} checkpoints" in describe_state_dicts([folder])
    return {}


def row(folder: Path, case: Case) -> dict:
    """One checkpoint as a vector."""
    layout = landscape.ParamLayout.of(case.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # running statistics differ, as they should
        checkpoints = landscape.read_state_dicts(folder, layout)
    assert checkpoints.params.isel(step=1).values.shape == (layout.n_params,)
    return {}


def first_product(folder: Path, case: Case) -> dict:
    """What a Hessian product costs the first time: the self-check, and the race for the quickest way."""
    objective, last = ready(folder, case)
    params = torch.from_numpy(last.params.values)
    objective.linearize(params, N_STEPS)(torch.ones_like(params))
    return {"way": " / ".join(sorted(set(objective.product_ways.values())))}


def product(folder: Path, case: Case) -> dict:
    """A further product at the same parameters, and a gradient by plain autograd beside it."""
    objective, last = ready(folder, case, check=False)
    params = torch.from_numpy(last.params.values)
    apply, vector = objective.linearize(params, N_STEPS), torch.randn_like(params)
    apply(vector)
    found = dict(zip(("seconds", "processor_seconds"), timed(lambda: apply(vector)), strict=True))
    apply = None  # and its graph, which would stand in the memory of the gradient
    model, trainable = case.model, list(case.model.parameters())

    def gradient():
        torch.autograd.grad(case.loss_fn(model(case.inputs), case.targets, 0), trainable)

    gradient()
    return found | {"gradient_processor_seconds": timed(gradient)[1]}


def eigenpairs(folder: Path, case: Case, tol: float = 1e-2, **options) -> dict:
    """The two largest eigenpairs, certified."""
    objective, last = ready(folder, case, check=False)
    eigs = landscape.top_eigenpairs(objective, last, k=2, tol=tol, **options)
    if not options:
        landscape.save_dataset(eigs, folder / "eigs.h5", overwrite=True)
    return {
        "products": int(eigs.n_hvp),
        "eigenvalues": eigs.eigenvalue.values.ravel().tolist(),
        "largest_residual": float(eigs.residual.max()),
        "certified": bool(eigs.certified.all()),
    }


def tight_eigenpairs(folder: Path, case: Case) -> dict:
    """The same to a tenth of the residual."""
    return eigenpairs(folder, case, 1e-3)


def block(folder: Path, case: Case) -> dict:
    """The two largest eigenpairs of the Hessian of the last block alone."""
    return eigenpairs(folder, case, parameters=case.block)


def plane(folder: Path, case: Case) -> dict:
    """A plane of 11 × 11 points along two random directions."""
    objective, last = ready(folder, case, check=False)
    random = landscape.random_directions(last, layout=objective.layout, seed=0)
    landscape.plane_slice(objective, last, random, n_points=11)
    return {}


def decomposition(folder: Path, case: Case) -> dict:
    """The gradient inside and outside the span of the two eigenvectors that are in a file."""
    objective, last = ready(folder, case, check=False)
    eigs = landscape.load_dataset(folder / "eigs.h5")
    landscape.gradient_decomposition(objective, last.expand_dims("step"), eigs)
    return {}


def ready(folder: Path, case: Case, **options) -> tuple[landscape.Objective, xr.Dataset]:
    """The objective, and the last checkpoint, whose running statistics the model takes."""
    case.model.load_state_dict(torch.load(folder / f"step_{N_STEPS}.pt", weights_only=True))
    objective = landscape.Objective(case.model.eval(), case.loss_fn, case.inputs, case.targets, **options)
    return objective, landscape.read_state_dicts({N_STEPS: folder / f"step_{N_STEPS}.pt"}, objective.layout).isel(
        step=0
    )


def timed(call) -> tuple[float, float]:
    """Seconds by the clock and of the processor: the least of three calls, or of as many as fit in a second."""
    found, until = [], time.perf_counter() + 1
    while len(found) < 3 or time.perf_counter() < until:
        begun, worked = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - begun, time.process_time() - worked))
    return min(clock for clock, _ in found), min(processor for _, processor in found)


CALLS = {
    "inspect": inspect,
    "row": row,
    "first product": first_product,
    "product": product,
    "eigenpairs 1e-2": eigenpairs,
    "eigenpairs 1e-3": tight_eigenpairs,
    "eigenpairs of a block 1e-2": block,
    "plane 11 x 11": plane,
    "gradient decomposition": decomposition,
}


def main(folder: str, family: str, size: str, name: str) -> dict:
    """Seconds, by the clock and of the processor, and the largest memory above that of Python and its packages."""
    torch.set_num_threads(THREADS)
    if family == "transformers.GPT2":
        import transformers  # noqa: F401  # its memory is that of a package
    call, before = {"train": train, **CALLS}[name], resident_bytes()
    case = FAMILIES[family](size)
    forget_peak()
    begun, worked = time.perf_counter(), time.process_time()
    found = call(Path(folder), case)
    seconds, processor = time.perf_counter() - begun, time.process_time() - worked
    return {"seconds": seconds, "processor_seconds": processor, "bytes": peak_bytes() - before, **found}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
