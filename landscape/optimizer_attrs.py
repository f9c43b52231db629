"""What a torch optimiser is, in the words of a run's attrs, and the second moments that it keeps."""

from __future__ import annotations

from typing import Any

import torch

from landscape.params import ParamLayout

SECOND_MOMENT = {"adam": "exp_avg_sq", "adamw": "exp_avg_sq", "rmsprop": "square_avg"}
"""Where torch keeps ν, by the name of the optimiser."""


def optimizer_attrs(optimizer: torch.optim.Optimizer, *, constant_rate: bool = True) -> dict[str, Any]:
    """Attrs of a run that `optimizer` trains, as `stability_threshold` and preconditioned curvature read them.

    A name that has a stability threshold is given only where the update is the one that the threshold was derived for:
    "sgd", "momentum" (heavy ball), "rmsprop" (plain) and "adam", which AdamW without weight decay is too. Any other is
    called by its class, such as "adamw", or "sgd with nesterov". Weight decay that is not decoupled adds itself to each
    eigenvalue that the threshold limits.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The optimiser; a wrapper that holds it as ``.optimizer`` is seen through.
    constant_rate : bool
        Whether its learning rate stays what it is; attrs name no learning rate where it does not.

    Returns
    -------
    dict
        ``optimizer``; ``learning_rate``, ``momentum``, ``beta1``, ``beta2``, ``alpha``, ``epsilon`` and
        ``weight_decay`` where it has them, alike in all groups of parameters.

    Raises
    ------
    ValueError
        If it evaluates the loss several times a step, as L-BFGS.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer_attrs(torch.optim.SGD([weight], lr=0.5, momentum=0.9))
    {'optimizer': 'momentum', 'learning_rate': 0.5, 'momentum': 0.9}
    """
    optimizer = unwrapped(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("L-BFGS evaluates the loss several times a step; record such a loop with landscape.RunWriter")
    found = {"optimizer": _name(optimizer)}
    if constant_rate and (rate := _alike(optimizer, "lr")) is not None:
        found["learning_rate"] = float(rate)
    betas = _alike(optimizer, "betas")
    if betas is not None:
        found |= {"beta1": float(betas[0]), "beta2": float(betas[1])}
    for name, key in {
        "momentum": "momentum",
        "alpha": "alpha",
        "epsilon": "eps",
        "weight_decay": "weight_decay",
    }.items():
        value = _alike(optimizer, key)
        if value is not None and (value or name in ("alpha", "epsilon")):
            found[name] = float(value)
    return found


def second_moment(optimizer: torch.optim.Optimizer, model: torch.nn.Module, layout: ParamLayout) -> torch.Tensor:
    """ν of Adam or RMSProp as a flat vector (n,), zeros before the first update; not bias-corrected.

    Raises
    ------
    ValueError
        If the optimiser keeps none.
    """
    optimizer = unwrapped(optimizer)
    key = SECOND_MOMENT.get(_name(optimizer))
    if key is None:
        raise ValueError(f"{_name(optimizer)} keeps no second moment; leave out second_moment=True")
    params = dict(model.named_parameters())
    kept = [optimizer.state.get(params[name], {}).get(key) for name in layout.names]
    return layout.flatten(
        [torch.zeros_like(params[n]).detach() if v is None else v for n, v in zip(layout.names, kept, strict=True)]
    )


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, where training loops put it into one of their own."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _name(optimizer: torch.optim.Optimizer) -> str:
    kind = type(optimizer)
    flags = [flag for flag in ("nesterov", "amsgrad", "centered", "maximize", "dampening") if _any(optimizer, flag)]
    if flags:
        return f"{kind.__name__.lower()} with {', '.join(flags)}"
    if kind is torch.optim.SGD:
        return "momentum" if _any(optimizer, "momentum") else "sgd"
    if kind is torch.optim.RMSprop:
        return "rmsprop with momentum" if _any(optimizer, "momentum") else "rmsprop"
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or _any(optimizer, "decoupled_weight_decay")
        return "adamw" if decoupled and _any(optimizer, "weight_decay") else "adam"
    return kind.__name__.lower()


def _any(optimizer: torch.optim.Optimizer, key: str) -> bool:
    return any(group.get(key) for group in optimizer.param_groups)


def _alike(optimizer: torch.optim.Optimizer, key: str):
    """The setting `key` where all groups of parameters have the same; else None."""
    values = [group.get(key) for group in optimizer.param_groups]
    return values[0] if all(value == values[0] for value in values) else None
