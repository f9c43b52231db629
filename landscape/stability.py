"""The largest sharpness at which an optimiser still descends a quadratic without oscillating outwards."""

from __future__ import annotations

import math
from collections.abc import Mapping


def stability_threshold(attrs: Mapping) -> float:
    """Stability threshold on the sharpness λ_1 for the optimiser that `attrs` names; NaN where they name none.

    Gradient descent 2/η; heavy-ball momentum β (dampening 0) 2(1 + β)/η (Cohen et al. 2021, arXiv 2103.00065).

    Parameters
    ----------
    attrs : mapping
        ``optimizer`` ("gd", "sgd" or "momentum"), ``learning_rate``, and ``momentum`` where there is one, as in the
        attrs of a run's checkpoints.

    Returns
    -------
    float
        In the units of an eigenvalue of the Hessian.

    Examples
    --------
    >>> stability_threshold({"optimizer": "gd", "learning_rate": 0.5})
    4.0
    >>> stability_threshold({"optimizer": "momentum", "learning_rate": 0.5, "momentum": 0.9})
    7.6
    """
    optimizer, learning_rate = attrs.get("optimizer"), attrs.get("learning_rate")
    if optimizer not in ("gd", "sgd", "momentum") or learning_rate is None:
        return math.nan
    return 2 * (1 + float(attrs.get("momentum") or 0.0)) / float(learning_rate)
