"""The objective F(θ, t) of a recorded run, from the run file alone."""

from __future__ import annotations

import torch

from dynloss.kernels import fastest_objective, kernels_for
from dynloss.losses import LOSSES, loss_from_config
from dynloss.models import MLP
from landscape import Objective, ParamLayout, Run

PRODUCER = "dynloss"


def objective(
    run: Run,
    *,
    model: torch.nn.Module | None = None,
    loss=None,
    dataset: str = "training",
    kernel: str | None = None,
) -> Objective:
    """The loss that a run descended, as a function of flat parameters and the step.

    Model, loss and data come from the run file; no code that it names is imported or run.

    Parameters
    ----------
    run : landscape.Run
        An open run that `dynloss.train` recorded.
    model : torch.nn.Module, optional
        Needed if the run trained a model other than `dynloss.mlp`; its own parameters are not used.
    loss : callable, optional
        Needed if the run descended a loss that is not of this package.
    dataset : {"training", "validation"}
        Samples over which the loss is averaged.
    kernel : str, optional
        How to compute it; by default by the kernel that trained the run, so that its steps are repeated bit for bit,
        and where that is not installed by the fastest. See ``kernel`` of the result.

    Returns
    -------
    landscape.Objective
        Its steps are those of the run.

    Raises
    ------
    ValueError
        If another program recorded the run, it lacks that data set, `model` is not the run's, or `kernel` does not
        serve here.
    """
    if run.producer != PRODUCER:
        raise ValueError(
            f"{run.path} was recorded by {run.producer or 'an unnamed program'}, not by dynloss; build "
            "landscape.Objective(model, loss_fn, inputs, targets) for it"
        )
    if dataset not in run.data:
        raise ValueError(f"{run.path} holds no data set {dataset!r}; it holds {', '.join(run.data) or 'none'}")
    samples = run.data[dataset]
    inputs, targets = (torch.from_numpy(samples[name].values) for name in ("inputs", "targets"))
    model = _model(run) if model is None else model
    loss = _loss(run) if loss is None else loss
    difference = run.layout.difference(ParamLayout.of(model))
    if difference:
        raise ValueError(f"this model is not that of {run.path}: {difference}; give the model that was trained")
    recorded = run.checkpoints.attrs.get("kernel")
    if kernel is None and recorded in kernels_for(model, loss):
        kernel = recorded
    return fastest_objective(model, loss, inputs, targets, kernel=kernel)


def _model(run: Run) -> torch.nn.Module:
    config = dict(run.config.get("model", {}))
    if config.pop("name", None) != "mlp":
        raise ValueError(f"{run.path} trained a model of its own; give it: dynloss.objective(run, model=…)")
    return MLP(**config, dtype=getattr(torch, str(run.checkpoints.params.dtype)))


def _loss(run: Run):
    config = run.config.get("loss", {})
    if config.get("name") not in LOSSES:
        raise ValueError(f"{run.path} descended a loss of its own; give it: dynloss.objective(run, loss=…)")
    return loss_from_config(config)
