"""Training by full-batch gradient descent on flat parameters, recorded in a run file while it happens."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from dynloss.checks import check_same_run, checked_samples, model_outputs
from dynloss.data import ClassificationData
from dynloss.kernels import fastest_objective
from dynloss.rebuild import PRODUCER
from dynloss.settings import TrainingSettings
from landscape import RunWriter, open_run, top_eigenpairs

STATE_EVERY = 64
"""Steps between the states from which an interrupted run resumes."""

EIGENPAIR_ROWS = 8
"""Eigenpairs are computed for so many steps at once."""

SCALARS = ("loss", "accuracy", "validation_accuracy", "gradient_norm", "update_norm", "update_cosine")


def train(
    model: torch.nn.Module,
    loss,
    data: ClassificationData,
    *,
    record: str | os.PathLike,
    validation: ClassificationData | None = None,
    optimizer: str = "gd",
    learning_rate: float = 1.0,
    n_steps: int = 10_000,
    checkpoint_every: int = 25,
    eigenpairs: int = 0,
    eigenpairs_every: int = 25,
    windows: Sequence[tuple[int, int]] = (),
    tol: float = 1e-4,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Train `model` by θ_{t+1} = θ_t − η∇F(θ_t, t) and record the run; afterwards the model holds the last θ.

    Row t of the file holds θ_t and what was evaluated at θ_t under the class weights of step t, before the update.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier, (P, …) → (P, class); its parameters' type is that of the whole computation.
    loss : callable
        ``loss(outputs, targets, step)``, e.g. `dynloss.DynamicalCrossEntropy`.
    data : ClassificationData
        ``inputs`` (P, …) and integer ``targets`` (P,), or any pair of such tensors; used as one batch.
    record : path-like
        The run file to write.
    validation : ClassificationData, optional
        Samples on which validation_accuracy is measured; NaN without.
    optimizer : str
        "gd".
    learning_rate : float
        Learning rate η.
    n_steps : int
        Number of updates.
    checkpoint_every : int
        Steps between saved checkpoints; the first and the last state are always saved.
    eigenpairs : int
        Number k of top Hessian eigenpairs to record, 0 for none.
    eigenpairs_every : int
        Steps between them, an odd number.
    windows : sequence of (int, int)
        Ranges (first, stop) of steps in which every checkpoint and its eigenpairs are saved.
    tol : float
        Largest relative residual of the eigenpairs.
    seed : int
        Seed of the eigensolver's random starts.
    overwrite : bool
        Whether an existing file may be replaced.
    resume : bool
        Go on with the interrupted or killed run in `record`, to the same end as an undisturbed one.

    Returns
    -------
    Path
        The run file. Its status is "diverged", and a warning says where, if the loss became infinite or NaN.

    Raises
    ------
    ValueError
        For settings out of range, NaN in the data, data, model and loss that do not fit, or if the run to resume is
        another one. No file is made or changed then.
    FileExistsError
        If `record` exists and neither `overwrite` nor `resume` is set.
    """
    settings = TrainingSettings(
        optimizer, learning_rate, n_steps, checkpoint_every, eigenpairs, eigenpairs_every, tuple(windows), tol, seed
    )
    sets = {"training": checked_samples("data", model, *data)}
    if validation is not None:
        sets["validation"] = checked_samples("validation", model, *validation)
    inputs, targets = sets["training"]
    loss(model_outputs(model, inputs), targets.to(next(model.parameters()).device), 0)  # raises if it does not fit
    objective = fastest_objective(model, loss, inputs, targets)
    params = objective.layout.flatten_model(model).to(objective.device, objective.dtype)
    if not params.isfinite().all():
        raise ValueError("the parameters of model hold NaN or inf; train it from others")
    if settings.eigenpairs > len(params):
        raise ValueError(f"eigenpairs must be at most {len(params)}, the number of parameters, got {eigenpairs}")
    nowhere = torch.full_like(params, math.nan)
    state = {"params": params, "update": nowhere, "update_before": nowhere, "random_state": torch.get_rng_state()}
    attrs = _attrs(settings, loss, objective.kernel)
    config = {"training": asdict(settings), "model": _config(model), "loss": _config(loss)}
    previous = _eigenpairs_before_resuming(record, config, sets, params) if resume else None
    with RunWriter(
        record,
        objective.layout,
        history=_history(loss),
        attrs=attrs,
        config=config,
        producer=PRODUCER,
        data=sets,
        n_modes=eigenpairs,
        dtype=str(objective.dtype).removeprefix("torch."),
        overwrite=overwrite,
        resume=resume,
        state=state,
    ) as writer:
        pairs = _Eigenpairs(writer, objective, settings, attrs, previous)
        params, failed_at = _descend(objective, settings, sets, writer, pairs, state)
        writer.finish("complete" if failed_at is None else "diverged")
    with torch.no_grad():
        for name, tensor in objective.layout.unflatten(params).items():
            model.get_parameter(name).copy_(tensor)
    pairs.warn()
    if failed_at is not None:
        warnings.warn(
            f"training diverged: the loss is not finite at step {failed_at}; what was recorded until then is in "
            f"{record}. A learning_rate below {learning_rate} may help",
            RuntimeWarning,
            stacklevel=2,
        )
    return Path(record)


def _descend(objective, settings, sets, writer, pairs, state) -> tuple[torch.Tensor, int | None]:
    """Train and record; returns the last θ, and the step at which the loss was not finite, or None."""
    accuracies, weights = _accuracies(objective, sets), _class_weights(objective.loss_fn, settings.n_steps)
    start = 0
    if writer.state is not None:
        start = int(writer.state.step)
        state = {name: torch.from_numpy(writer.state[name].values) for name in state}
        torch.set_rng_state(state["random_state"])
    params, update, before = (state[name].to(objective.device) for name in ("params", "update", "update_before"))
    progress = tqdm(total=settings.n_steps, initial=start, desc="training", unit="step", delay=1, disable=None)
    with progress:
        for step in range(start, settings.n_steps):
            if step % STATE_EVERY == 0:
                pairs.flush()
                random_state = torch.get_rng_state()
                now = {"params": params, "update": update, "update_before": before, "random_state": random_state}
                writer.save_state(step, now)
            value, gradient = objective.value_and_gradient(params, step)
            value, norm = float(value), float(update.norm())
            row = accuracies(params) | {
                "loss": value,
                "gradient_norm": float(gradient.norm()),
                "update_norm": norm,
                "update_cosine": _cosine(update, before),
            }
            if weights is not None:
                row["class_weight"] = weights[step]
            finite = math.isfinite(value)
            writer.append(step, params if settings.saves_checkpoint(step) or not finite else None, **row)
            if not finite:
                return params, step
            if settings.saves_eigenpairs(step):
                pairs.add(step, params)
            moved = params - settings.learning_rate * gradient
            params, update, before = moved, moved - params, update
            progress.update()
            if step % 100 == 0:
                progress.set_postfix(loss=f"{value:.4g}", refresh=False)
    pairs.flush()
    if not params.isfinite().all():
        return params, settings.n_steps
    writer.append(settings.n_steps, params)
    return params, None


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """NaN where a or b is zero or not known."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else math.nan


class _Eigenpairs:
    """Collects states, and records their eigenpairs a few at a time; nothing where none are asked for."""

    def __init__(self, writer, objective, settings, attrs, previous: xr.Dataset | None):
        self.writer, self.objective, self.settings, self.attrs = writer, objective, settings, attrs
        self.steps: list[int] = []
        self.params: list[np.ndarray] = []
        self.uncertified: list[int] = []
        # A run's certificates are wrong with a probability of at most 1e-6 in all.
        self.failure = 1e-6 / max(1, settings.n_steps)
        self.previous = previous

    def add(self, step: int, params: torch.Tensor) -> None:
        self.steps.append(step)
        self.params.append(params.cpu().numpy())
        if len(self.steps) == EIGENPAIR_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.steps:
            return
        checkpoints = xr.Dataset({"params": (("step", "param"), np.stack(self.params))}, {"step": self.steps})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one warning for the whole run: `warn`
            eigs = top_eigenpairs(
                self.objective,
                checkpoints.assign_attrs(self.attrs),
                self.settings.eigenpairs,
                tol=self.settings.tol,
                failure=self.failure * len(self.steps),
                batch_rows=EIGENPAIR_ROWS,
                previous=self.previous,
                seed=self.settings.seed,
            )
        self.writer.append_eigenpairs(eigs)
        self.uncertified += eigs.step.values[~eigs.certified.all("mode").values].tolist()
        self.previous = eigs.isel(step=-1)
        self.steps, self.params = [], []

    def warn(self) -> None:
        if self.uncertified:
            warnings.warn(
                f"eigenpairs of {len(self.uncertified)} steps are not certified (the first at step "
                f"{self.uncertified[0]}); see residual and certified in run.eigenpairs",
                stacklevel=3,
            )


def _eigenpairs_before_resuming(record, config: dict, sets: dict, params: torch.Tensor) -> xr.Dataset | None:
    """The last row of eigenpairs before the step from which the run in `record` would resume; it must be this run."""
    if not Path(record).exists():
        return None
    with open_run(record) as run:
        if run.status in ("complete", "diverged"):  # nothing to resume, as the writer will say
            return None
        check_same_run(run, config, sets, params)
        if run.eigenpairs is None or run.state is None:
            return None
        earlier = run.eigenpairs.sel(step=slice(None, int(run.state.step) - 1))
        return earlier.isel(step=-1).load() if earlier.sizes["step"] else None


def _accuracies(objective, sets):
    """A function of θ: accuracy and validation_accuracy, from one forward pass."""
    inputs = objective.as_inputs(torch.cat([inputs for inputs, _ in sets.values()]))
    targets = torch.cat([targets for _, targets in sets.values()]).to(objective.device)
    n_training = len(sets["training"][1])

    def accuracies(params: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            right = (objective.outputs(params, inputs).argmax(-1) == targets).to(torch.float64)
        validation = float(right[n_training:].mean()) if len(right) > n_training else math.nan
        return {"accuracy": float(right[:n_training].mean()), "validation_accuracy": validation}

    return accuracies


def _history(loss) -> dict[str, dict[str, int]]:
    scalars: dict[str, dict[str, int]] = {name: {} for name in SCALARS}
    has_weights = hasattr(loss, "class_weights")
    return scalars | ({"class_weight": {"class": len(loss.class_weights(0))}} if has_weights else {})


def _class_weights(loss, n_steps: int) -> np.ndarray | None:
    """Γ (step, class) at every step of the run."""
    if not hasattr(loss, "class_weights"):
        return None
    return np.asarray(loss.class_weights(torch.arange(n_steps)), dtype=float)


def _attrs(settings: TrainingSettings, loss, kernel: str) -> dict:
    """What analyses read: the optimiser, the oscillation, and what bit-identical repetition depends on."""
    attrs = {"optimizer": settings.optimizer, "learning_rate": settings.learning_rate}
    for name in ("period", "amplitude"):
        if getattr(loss, name, None) is not None:
            attrs[name] = getattr(loss, name)
    return attrs | {"kernel": kernel, "n_threads": torch.get_num_threads()}


def _config(thing) -> dict:
    """How to build a model or a loss again; for those of others only what they are called."""
    return thing.config() if hasattr(thing, "config") else {"name": type(thing).__name__}
