"""Training by gradient descent and its kin on flat parameters, recorded in a run file while it happens."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dynloss.checks import checked_samples, model_outputs
from dynloss.data import ClassificationData
from dynloss.eigenpairs import EigenpairRecorder, eigenpairs_before_resuming
from dynloss.kernels import fastest_objective, kernels_for
from dynloss.measures import SCALARS, accuracies_of
from dynloss.optimizers import RULES
from dynloss.rebuild import PRODUCER
from dynloss.samplers import UniformSampler
from dynloss.settings import TrainingSettings
from landscape import RunWriter, open_run

STATE_EVERY = 64
"""Steps between the states from which an interrupted run resumes."""


def train(
    model: torch.nn.Module,
    loss,
    data: ClassificationData,
    *,
    record: str | os.PathLike,
    validation: ClassificationData | None = None,
    sampler: Callable[[int], torch.Tensor] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **settings,
) -> Path:
    """Train `model`, by default by θ_{t+1} = θ_t − η∇F(θ_t, t), and record it; afterwards the model holds the last θ.

    Row t of the file holds θ_t and what was evaluated at θ_t under the class weights of step t, before the update:
    ``loss`` and the accuracies on all samples, ``gradient_norm`` of the gradient that the update uses.

    Ctrl-C ends the run in order: the last rows are committed, its status is "interrupted". Handlers of signals are
    the caller's, so SIGTERM kills a Python program as ever, and the rows since the last commit with it; inside
    ``with landscape.termination.orderly_termination():`` it acts like Ctrl-C, as it does on the command line. After
    either, and after a full disk, `resume` goes on.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier, (P, …) → (P, class); its parameters' type is that of the whole computation.
    loss : callable
        ``loss(outputs, targets, step)``, e.g. `dynloss.DynamicalCrossEntropy`.
    data : ClassificationData
        ``inputs`` (P, …) and integer ``targets`` (P,), or any pair of such tensors.
    record : path-like
        The run file to write.
    validation : ClassificationData, optional
        Samples on which validation_accuracy is measured; NaN without.
    sampler : callable, optional
        Mini-batches other than those of ``batch_size``: step → indices of the batch, e.g. `dynloss.OscillatingSampler`.
    overwrite : bool
        Whether an existing file may be replaced.
    resume : bool
        Go on with the interrupted or killed run in `record`, to the same end as an undisturbed one.
    **settings
        Fields of `dynloss.TrainingSettings`: optimizer, learning_rate, n_steps, batch_size, checkpoint_every,
        eigenpairs, eigenpairs_every, windows, seed, …

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
    OSError
        If the file cannot be written: no permission, no space, or it was deleted meanwhile. What was committed stays.
    """
    settings = TrainingSettings(**settings)
    sets = {"training": checked_samples("data", model, *data)}
    if validation is not None:
        sets["validation"] = checked_samples("validation", model, *validation)
    inputs, targets = sets["training"]
    loss(model_outputs(model, inputs), targets.to(next(model.parameters()).device), 0)  # raises if it does not fit
    kernel = _recorded_kernel(record) if resume else None
    # A run whose kernel does not serve here is refused as another one when its file is opened to resume it.
    served = kernel if kernel in kernels_for(model, loss) else None
    objective = fastest_objective(model, loss, inputs, targets, kernel=served)
    params = objective.layout.flatten_model(model).to(objective.device, objective.dtype)
    if not params.isfinite().all():
        raise ValueError("the parameters of model hold NaN or inf; train it from others")
    if settings.eigenpairs > len(params):
        raise ValueError(
            f"eigenpairs must be at most {len(params)}, the number of parameters, got {settings.eigenpairs}"
        )
    sampler = _sampler(settings, sampler, len(targets))
    rule = RULES[settings.optimizer](settings)
    nowhere = torch.full_like(params, math.nan)
    motion = {"params": params, "update": nowhere, "update_before": nowhere}
    state = {**motion, **rule.start(params), "random_state": torch.get_rng_state()}
    attrs = _attrs(settings, loss, sampler, objective.kernel)
    config = {"training": asdict(settings), "model": _config(model), "loss": _config(loss), **_named(sampler)}
    previous = eigenpairs_before_resuming(record, config, sets, params) if resume else None
    with RunWriter(
        record,
        objective.layout,
        history=_history(loss),
        attrs=attrs,
        config=config,
        producer=PRODUCER,
        data=sets,
        n_modes=settings.eigenpairs,
        dtype=str(objective.dtype).removeprefix("torch."),
        overwrite=overwrite,
        resume=resume,
        state=state,
        optimizer_state=rule.saved_names,
    ) as writer:
        pairs = EigenpairRecorder(writer, objective, settings, attrs, previous)
        params, failed_at = _descend(objective, settings, rule, sampler, sets, writer, pairs, state)
        writer.finish("complete" if failed_at is None else "diverged")
    with torch.no_grad():
        for name, tensor in objective.layout.unflatten(params).items():
            model.get_parameter(name).copy_(tensor)
    pairs.warn()
    if failed_at is not None:
        warnings.warn(
            f"training diverged: the loss is not finite at step {failed_at}; what was recorded until then is in "
            f"{record}. A learning_rate below {settings.learning_rate} may help",
            RuntimeWarning,
            stacklevel=2,
        )
    return Path(record)


def _descend(objective, settings, rule, sampler, sets, writer, pairs, state) -> tuple[torch.Tensor, int | None]:
    """Train and record; returns the last θ, and the step at which the loss was not finite, or None."""
    accuracies, weights = accuracies_of(objective, sets), _class_weights(objective.loss_fn, settings.n_steps)
    start = 0
    if writer.state is not None:
        start = int(writer.state.step)
        state = {name: torch.from_numpy(writer.state[name].values) for name in state}
        torch.set_rng_state(state["random_state"])
    state = {name: vector.to(objective.device) for name, vector in state.items() if name != "random_state"}
    progress = tqdm(total=settings.n_steps, initial=start, desc="training", unit="step", delay=1, disable=None)
    with progress:
        for step in range(start, settings.n_steps):
            params = state["params"]
            if step % STATE_EVERY == 0:
                pairs.flush()
                writer.save_state(step, {**state, "random_state": torch.get_rng_state()})
            value, gradient = _loss_and_gradient(objective, params, step, sampler, sets["training"])
            row = {name: float(value) for name, value in accuracies(params).items()} | {
                "loss": value,
                "gradient_norm": float(gradient.norm()),
                "update_norm": float(state["update"].norm()),
                "update_cosine": _cosine(state["update"], state["update_before"]),
            }
            if weights is not None:
                row["class_weight"] = weights[step]
            finite = math.isfinite(value)
            saved = settings.saves_checkpoint(step) or not finite
            writer.append(step, params if saved else None, optimizer_state=_saved(rule, state), **row)
            if not finite:
                return params, step
            if settings.saves_eigenpairs(step):
                pairs.add(step, params)
            moved = rule.update(params, gradient, state, step)
            state |= {"params": moved, "update": moved - params, "update_before": state["update"]}
            progress.update()
            if step % 100 == 0:
                progress.set_postfix(loss=f"{value:.4g}", refresh=False)
    pairs.flush()
    params = state["params"]
    if not params.isfinite().all():
        return params, settings.n_steps
    writer.append(settings.n_steps, params, optimizer_state=_saved(rule, state))
    return params, None


def _recorded_kernel(record: str | os.PathLike) -> str | None:
    """The kernel that trained the run to resume, if there is one: only with it does it go on to the same end."""
    if not Path(record).exists():
        return None
    with open_run(record) as run:
        return run.checkpoints.attrs.get("kernel")


def _saved(rule, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vectors of the optimiser that are saved with a checkpoint: as they were after the last update."""
    return {name: state[name] for name in rule.saved_names}


def _loss_and_gradient(objective, params, step: int, sampler, training) -> tuple[float, torch.Tensor]:
    """F(θ, t) over all samples, and the gradient over those that the update uses."""
    if sampler is None:
        value, gradient = objective.value_and_gradient(params, step)
        return float(value), gradient
    inputs, targets = training
    batch = torch.as_tensor(sampler(step))
    return float(objective.loss(params, step)), objective.on(inputs[batch], targets[batch]).gradient(params, step)


def _sampler(settings: TrainingSettings, sampler, n_samples: int):
    """The function step → indices of the mini-batch; None for all samples."""
    if sampler is not None and settings.batch_size is not None:
        raise ValueError("give either batch_size or a sampler")
    if settings.batch_size is not None:
        sampler = UniformSampler(n_samples, settings.batch_size, seed=settings.seed)
    if sampler is None and settings.optimizer == "sgd":
        raise ValueError('optimizer "sgd" draws mini-batches: give batch_size or a sampler, or use "gd"')
    if sampler is not None and settings.optimizer == "gd":
        raise ValueError('optimizer "gd" uses all samples at each step; with mini-batches it is "sgd"')
    if getattr(sampler, "n_samples", n_samples) != n_samples:
        raise ValueError(
            f"the sampler is of {sampler.n_samples} samples, the data of {n_samples}; make it for these data"
        )
    return sampler


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """NaN where a or b is zero or not known."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else math.nan


def _history(loss) -> dict[str, dict[str, int]]:
    scalars: dict[str, dict[str, int]] = {name: {} for name in SCALARS}
    has_weights = hasattr(loss, "class_weights")
    return scalars | ({"class_weight": {"class": len(loss.class_weights(0))}} if has_weights else {})


def _class_weights(loss, n_steps: int) -> np.ndarray | None:
    """Γ (step, class) at every step of the run."""
    if not hasattr(loss, "class_weights"):
        return None
    return np.asarray(loss.class_weights(torch.arange(n_steps)), dtype=float)


def _attrs(settings: TrainingSettings, loss, sampler, kernel: str) -> dict:
    """What analyses read: the optimiser, the oscillation, and what bit-identical repetition depends on."""
    oscillating = loss if getattr(loss, "period", None) is not None else getattr(sampler, "schedule", None)
    attrs = settings.optimizer_attrs()
    for name in ("period", "amplitude"):
        if getattr(oscillating, name, None) is not None:
            attrs[name] = getattr(oscillating, name)
    return attrs | {"kernel": kernel, "n_threads": torch.get_num_threads()}


def _named(sampler) -> dict:
    return {} if sampler is None else {"sampler": _config(sampler)}


def _config(thing) -> dict:
    """How to build a model or a loss again; for those of others only what they are called."""
    return thing.config() if hasattr(thing, "config") else {"name": type(thing).__name__}
