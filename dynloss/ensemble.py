"""Many members trained at once by gradient descent, each with its own learning rate, class weights and data."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from dynloss.checks import checked_samples, model_outputs
from dynloss.ensemble_record import EnsembleRecord
from dynloss.kernels import fastest_objective
from dynloss.measures import SCALARS, accuracies_of

N_UPDATES = 2
"""Updates before a row of the history that it tells of: the last and the one before."""

STEPS_AT_ONCE = 256
"""Steps whose class weights are computed together, and between two looks at whether training was interrupted."""

WORK_OF_A_THREAD = 2**20
"""Parameters times samples times members; with less in a step, threads wait for each other's Python."""


def train_ensemble(
    models: torch.nn.Module | Sequence[torch.nn.Module],
    losses,
    data,
    *,
    n_steps: int,
    learning_rate: float | Sequence[float] = 1.0,
    validation=None,
    history_every: int = 1,
    scalars: Sequence[str] = tuple(SCALARS),
    checkpoint_every: int | None = None,
    n_threads: int | None = None,
) -> xr.Dataset:
    """Train many members by θ_{t+1} = θ_t − η∇F(θ_t, t) at once, and return what became of each.

    A member is a model, a loss, data and a learning rate; what is given once is shared by all. The members that share
    data are computed together, and threads take different members. With compiled kernels, each member is trained to
    the same bits as by `dynloss.train`. A member whose loss is no longer finite stops; the others go on.

    Parameters
    ----------
    models : torch.nn.Module, or sequence of them
        Initial parameters; all of one architecture, type and device. They stay as they are.
    losses : loss, or sequence of losses
        With class terms (``terms``, ``class_weights``), all of one kind: only schedules differ.
    data : ClassificationData, or sequence of them
        Training samples: ``inputs`` (P, …) and integer ``targets`` (P,).
    n_steps : int
        Number of updates.
    learning_rate : float, or sequence of float
        η > 0.
    validation : ClassificationData, or sequence of them, optional
        Samples on which validation_accuracy is measured; NaN without.
    history_every : int
        Steps between rows of the history. `landscape.find_onsets` needs every step, 1.
    scalars : sequence of str
        What a row holds, by default all below; without the accuracies a dense history costs half as much.
    checkpoint_every : int, optional
        Steps between saved θ; by default only the first and the last are kept.
    n_threads : int, optional
        Threads that train different members; by default one on a GPU, and on the CPU as many as cores, or fewer where
        a step of all members is too little work to be shared.

    Returns
    -------
    xarray.Dataset
        ``loss``, ``accuracy``, ``validation_accuracy``, ``gradient_norm``, ``update_norm``, ``update_cosine`` (member,
        step), evaluated at θ_t before update t, NaN after a member has diverged; ``params`` (member, checkpoint, param)
        with the steps of its coordinate ``checkpoint``; ``status`` (member), "complete" or "diverged"; ``last_step``
        (member), updates made. Coordinates of the members: ``learning_rate``, ``amplitude``, ``period`` (NaN for static
        losses). `dynloss.member` gives one of them as a run has it.

    Raises
    ------
    ValueError
        For settings out of range, numbers of members that differ, models of other architectures, losses of other kinds,
        and data that do not fit.

    Examples
    --------
    >>> import dynloss
    >>> models = [dynloss.mlp(2, width=10, n_classes=3, seed=seed) for seed in range(4)]
    >>> loss = dynloss.DynamicalCrossEntropy(3, amplitude=10, period=50)
    >>> trained = dynloss.train_ensemble(models, loss, dynloss.spiral(20, 3, seed=0), n_steps=100)
    >>> trained.loss.shape, set(trained.status.values.tolist())
    ((4, 100), {'complete'})
    """
    for name, value in (("n_steps", n_steps), ("history_every", history_every), ("checkpoint_every", checkpoint_every)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    unknown = sorted(set(scalars) - SCALARS.keys())
    if unknown or not scalars:
        raise ValueError(f"scalars must be some of {', '.join(SCALARS)}, got {', '.join(unknown) or 'none'}")
    each = _members(models=models, losses=losses, data=data, learning_rate=learning_rate, validation=validation)
    _check(each)
    n_members = len(each["models"])
    n_threads = min(n_members, n_threads or _threads(each))
    groups = _groups(each, n_threads)
    record = EnsembleRecord(groups[0].params, n_members, n_steps, scalars, history_every, checkpoint_every)
    stop = threading.Event()
    progress = tqdm(total=n_members * n_steps, desc="training", unit="step", unit_scale=True, delay=1, disable=None)
    n_torch_threads = torch.get_num_threads()
    if n_threads > 1:
        torch.set_num_threads(1)  # threads that start now begin with it
    try:
        with progress, ThreadPoolExecutor(n_threads) as pool:
            running = [pool.submit(_descend, group, n_steps, record, progress, stop) for group in groups]
            try:
                for done in as_completed(running):
                    done.result()
            finally:
                stop.set()
    finally:
        torch.set_num_threads(n_torch_threads)
    attrs = {"optimizer": "gd", "kernel": groups[0].objective.kernel, "layout": groups[0].objective.layout.to_json()}
    trained = record.dataset(each["losses"], each["learning_rate"], attrs)
    diverged = np.flatnonzero(trained.status.values == "diverged")
    if len(diverged):
        shown = ", ".join(map(str, diverged[:8])) + (", …" if len(diverged) > 8 else "")
        warnings.warn(f"{len(diverged)} of {n_members} members diverged ({shown})", RuntimeWarning, stacklevel=2)
    return trained


def _members(**given) -> dict[str, list]:
    """What each member has, of what is given once or for each."""
    several = {}
    for name, value in given.items():
        single = not isinstance(value, Sequence | np.ndarray) or _is_pair_of_tensors(value)
        several[name] = [value] if single else list(value)
    n_members = max(map(len, several.values()))
    if any(len(values) not in (1, n_members) for values in several.values()):
        counts = ", ".join(f"{len(values)} {name}" for name, values in several.items())
        raise ValueError(f"give one of each for all members, or one for each member; got {counts}")
    return {name: values if len(values) == n_members else values * n_members for name, values in several.items()}


def _is_pair_of_tensors(value) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, torch.Tensor) for part in value)


def _check(each: dict[str, list]) -> None:
    first_model, first_loss = each["models"][0], each["losses"][0]
    shapes = [(name, p.shape, p.dtype, p.device) for name, p in first_model.named_parameters()]
    for model in {id(model): model for model in each["models"]}.values():
        if type(model) is not type(first_model) or shapes != [
            (name, p.shape, p.dtype, p.device) for name, p in model.named_parameters()
        ]:
            raise ValueError("all models must be of one architecture, type and device; train others in another call")
        if not all(p.isfinite().all() for p in model.parameters()):
            raise ValueError("the parameters of a model hold NaN or inf; train it from others")
    for loss in {id(loss): loss for loss in each["losses"]}.values():
        if not (hasattr(loss, "terms") and hasattr(loss, "class_weights")):
            raise ValueError("an ensemble needs losses with class terms: methods terms and class_weights")
        kinds = [(type(one), getattr(one, "weighting", None), one.n_classes) for one in (loss, first_loss)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"all losses must be of one kind, got {kinds[1][0].__name__} and {kinds[0][0].__name__}")
    rates = np.asarray(each["learning_rate"], dtype=float)
    if not ((rates > 0) & np.isfinite(rates)).all():
        raise ValueError(f"learning_rate must be positive, got {rates.min()}")


@dataclass
class _Group:
    """Members that share data, and are computed together in one thread."""

    numbers: np.ndarray
    objective: object
    params: torch.Tensor
    rates: torch.Tensor
    losses: list
    accuracies: Callable[[torch.Tensor], dict[str, torch.Tensor]]


def _threads(each: dict[str, list]) -> int:
    model = each["models"][0]
    if next(model.parameters()).device.type != "cpu":
        return 1
    n_params = sum(p.numel() for p in model.parameters())
    work = sum(len(targets) for _, targets in each["data"]) * n_params
    return max(1, min(os.cpu_count() or 1, work // WORK_OF_A_THREAD))


def _groups(each: dict[str, list], n_threads: int) -> list[_Group]:
    by_data: dict[tuple, list[int]] = {}
    for i, (data, validation) in enumerate(zip(each["data"], each["validation"], strict=True)):
        by_data.setdefault((id(data), id(validation)), []).append(i)
    at_most = -(-len(each["models"]) // n_threads)
    parts = [np.array_split(numbers, -(-len(numbers) // at_most)) for numbers in by_data.values()]
    return [_group(each, part) for several in parts for part in several]


def _group(each: dict[str, list], numbers: np.ndarray) -> _Group:
    first = numbers[0]
    model, loss = each["models"][first], each["losses"][first]
    inputs, targets = checked_samples("data", model, *each["data"][first])
    loss(model_outputs(model, inputs), targets.to(next(model.parameters()).device), 0)  # raises if it does not fit
    objective = fastest_objective(model, loss, inputs, targets)
    sets = {"training": (inputs, targets)}
    if each["validation"][first] is not None:
        sets["validation"] = checked_samples("validation", model, *each["validation"][first])
    params = torch.stack([objective.layout.flatten_model(each["models"][i]).detach() for i in numbers])
    return _Group(
        numbers,
        objective,
        objective.as_params(params).clone(),
        torch.tensor([each["learning_rate"][i] for i in numbers], dtype=objective.dtype, device=objective.device),
        [each["losses"][i] for i in numbers],
        accuracies_of(objective, sets),
    )


def _descend(group: _Group, n_steps: int, record: EnsembleRecord, progress: tqdm, stop: threading.Event) -> None:
    """Train a group; its rows of the record are filled."""
    alive = np.arange(len(group.numbers))
    params, rates = group.params, group.rates[:, None]
    update = before = torch.full_like(params, torch.nan)
    for first in range(0, n_steps, STEPS_AT_ONCE):
        if stop.is_set():
            return
        steps = np.arange(first, min(first + STEPS_AT_ONCE, n_steps))
        given = [loss.class_weights(torch.from_numpy(steps)) for loss in group.losses]
        weights = np.stack([np.asarray(one) for one in given], axis=1)  # (step, member, class)
        objective = group.objective.reweighted(weights.reshape(-1, weights.shape[-1]))
        rows_of = (steps - first)[:, None] * len(group.losses)
        step, end = first, first + len(steps)
        while step < end:
            losses, gradients = objective.value_and_gradient(params, rows_of[step - first] + alive)
            record.checkpoint(group.numbers[alive], step, params)
            if step % record.history_every == 0:
                row = {"loss": losses, **_norms(gradients, update, before)}
                row |= group.accuracies(params) if record.has_accuracies else {}
                record.row(group.numbers[alive], step, row)
            finite = losses.isfinite()
            if not finite.all():
                kept = finite.numpy(force=True)
                record.diverged(group.numbers[alive[~kept]], step)
                alive = alive[kept]
                params, gradients, rates, update = (t[finite] for t in (params, gradients, rates, update))
                if not len(alive):
                    progress.update(len(group.numbers) * (n_steps - first))
                    return
            before, moved = update, params - rates * gradients
            params, update = moved, moved - params
            step += 1
            quiet = min(record.next(step) - N_UPDATES, end) - step
            if quiet > 0 and hasattr(objective, "descend"):
                at = rows_of[step - first : step - first + quiet] + alive
                params, made = objective.descend(params, rates[:, 0], at)
                step += made
        progress.update(len(group.numbers) * len(steps))
    record.checkpoint(group.numbers[alive], n_steps, params)
    record.diverged(group.numbers[alive[~params.isfinite().all(1).numpy(force=True)]], n_steps)


def _norms(gradients: torch.Tensor, update: torch.Tensor, before: torch.Tensor) -> dict[str, torch.Tensor]:
    norm, norm_before = update.norm(dim=1), before.norm(dim=1)
    cosine = (update * before).sum(1) / (norm * norm_before)  # NaN where one is zero or not known
    return {"gradient_norm": gradients.norm(dim=1), "update_norm": norm, "update_cosine": cosine}
