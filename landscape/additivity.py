"""Whether the loss over several batches is the mean of theirs, and of how many numbers each is the mean."""

from __future__ import annotations

import copy
from itertools import islice

import torch

from landscape.model_copy import duplicate
from landscape.purity import cuda_devices
from landscape.samples import IGNORED, Batches, n_counted, take, together


def settle_count(objective, params: torch.Tensor) -> None:
    """Find out what the loss of `objective` is a mean over, if it was not told, and see that batches add up.

    Of token-level losses, the first token may not be counted since nothing comes before it: then the loss stays the
    same when it is ignored. `params` (n,) is where losses are compared. Nothing is evaluated for a single batch.

    Raises
    ------
    ValueError
        If the loss of two half batches together is not the weighted mean of theirs.
    """
    with torch.random.fork_rng(devices=cuda_devices(objective)):  # DataLoaders draw from it even without shuffling
        batches = list(islice(iter(objective.batches), 2))
        if len(batches) < 2:
            return
        probe = copy.copy(objective)
        probe.model = duplicate(objective.model)  # as some models remember past evaluations
        if objective.count is None and not hasattr(objective.loss_fn, "n_counted"):
            probe.count = objective.count = n_counted_after_first if _skips_first(probe, params, batches[0]) else None
        refuse_unless_additive(probe, params, batches)


def refuse_unless_additive(objective, params: torch.Tensor, batches: list) -> None:
    """ValueError if the loss of two half batches together is not the weighted mean of theirs."""
    halves = [tuple(take(part, slice(0, -(-len(batch[1]) // 2))) for part in batch) for batch in batches]
    try:
        both = tuple(together(first, second) for first, second in zip(*halves, strict=True))
        losses = [_loss(objective, params, batch) for batch in (*halves, both)]
    except Exception:  # batches of different shapes; or what cannot be evaluated, which is said where it is asked for
        return
    counts = [objective._counted(targets) for _, targets in halves]
    if not (all(loss.isfinite() for loss in losses) and all(counts)):
        return
    expected = (counts[0] * losses[0] + counts[1] * losses[1]) / sum(counts)
    rtol = 1e-9 if objective.dtype == torch.float64 else 1e-3
    if not torch.isclose(losses[2], expected, rtol=rtol, atol=rtol * 1e-3):
        raise ValueError(
            f"the loss over two batches together is {losses[2]:.6g}, not {expected:.6g}, the mean of theirs weighted "
            f'by {counts[0]} and {counts[1]} counted targets; let it be a mean (reduction="mean"), or say over how '
            "many numbers: count=lambda targets: …"
        )


def n_counted_after_first(targets: torch.Tensor) -> int:
    """`n_counted` of targets (P, token, …) without the first token, which has none before it to be told from."""
    return n_counted(targets[:, 1:])


def _skips_first(objective, params, batch) -> bool:
    inputs, targets = batch
    if targets.ndim < 2 or targets.is_floating_point() or targets.shape[1] < 2:
        return False
    without = targets.clone()
    without[:, 0] = IGNORED
    try:
        found, other = (_loss(objective, params, (_inputs_for(objective, inputs, t), t)) for t in (targets, without))
    except Exception:
        return False
    return bool(torch.isclose(found, other, rtol=1e-6, atol=0))


def _inputs_for(objective, inputs, targets):
    batches = objective.batches
    return batches.with_targets(inputs, targets) if isinstance(batches, Batches) else inputs


def _loss(objective, params, batch) -> torch.Tensor:
    inputs, targets = (objective.as_inputs(part) for part in batch)
    with torch.no_grad():
        return objective._batch_losses(params[None], torch.zeros(1, dtype=torch.int64), inputs, targets)[0]
