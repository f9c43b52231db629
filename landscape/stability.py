"""The largest sharpness at which an optimiser still descends a quadratic without oscillating outwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def stability_threshold(attrs: Mapping, *, preconditioned: bool = False, step: int | None = None) -> float:
    """Stability threshold on the sharpness for the optimiser that `attrs` names; NaN where it has none.

    Gradient descent 2/η; heavy-ball momentum β (dampening 0) 2(1 + β)/η (Cohen et al. 2021, arXiv 2103.00065). The
    adaptive optimisers have one on the *preconditioned* sharpness only, that of P^(−1/2) H P^(−1/2) with
    P = diag(√ν + ε): RMSProp 2/η, Adam (2 + 2β1)/((1 − β1)η) with bias-corrected ν̂, times 1 − β1^t at its t-th update
    (Cohen et al. 2022, arXiv 2207.14484).

    Parameters
    ----------
    attrs : mapping
        ``optimizer`` ("gd", "sgd", "momentum", "rmsprop" or "adam"), ``learning_rate``, and ``momentum`` or ``beta1``
        where the optimiser has one, as in the attrs of a run's checkpoints.
    preconditioned : bool
        Whether the sharpness is the preconditioned one. For gradient descent and momentum that is the same.
    step : int, optional
        Updates made before, for Adam's bias correction; without it, the limit of many.

    Returns
    -------
    float
        In the units of an eigenvalue of the (preconditioned) Hessian.

    Examples
    --------
    >>> stability_threshold({"optimizer": "gd", "learning_rate": 0.5})
    4.0
    >>> stability_threshold({"optimizer": "momentum", "learning_rate": 0.5, "momentum": 0.9})
    7.6
    >>> stability_threshold({"optimizer": "adam", "learning_rate": 0.5, "beta1": 0.5}, preconditioned=True)
    12.0
    """
    optimizer, learning_rate = attrs.get("optimizer"), attrs.get("learning_rate")
    if learning_rate is None:
        return math.nan
    rate = float(learning_rate)
    if optimizer in ("gd", "sgd", "momentum"):
        return 2 * (1 + float(attrs.get("momentum") or 0.0)) / rate
    if optimizer == "rmsprop" and preconditioned:
        return 2 / rate
    if optimizer == "adam" and preconditioned:
        beta1 = 0.9 if attrs.get("beta1") is None else float(attrs["beta1"])
        corrected = 1.0 if step is None else 1 - beta1 ** (step + 1)
        return (2 + 2 * beta1) / ((1 - beta1) * rate) * corrected
    return math.nan


def descent_settings(
    attrs: Mapping, learning_rate: float | None, caller: str, optimizers: Sequence[str] = ("gd",)
) -> dict[str, float | str]:
    """What `attrs` say of the optimiser (gradient descent where they name none), and η: `learning_rate` if given.

    Raises
    ------
    ValueError
        If it is none of the `optimizers` that `caller` knows, or no learning rate is known.
    """
    optimizer = attrs.get("optimizer", "gd")
    if optimizer not in optimizers:
        known = " or ".join(optimizers)
        raise ValueError(f"{caller} knows {known} only, and this run was trained by {optimizer!r}")
    rate = attrs.get("learning_rate") if learning_rate is None else learning_rate
    if rate is None:
        raise ValueError("the checkpoints' attrs name no learning_rate; give learning_rate=")
    return dict(attrs) | {"optimizer": optimizer, "learning_rate": float(rate)}
