"""The tensor in what a model answers: its outputs, or the loss that it computed itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def outputs_in(answer) -> torch.Tensor:
    """A tensor as it is, or the ``logits`` of an answer that holds more.

    Raises
    ------
    ValueError
        If there is no such tensor.
    """
    found = answer if isinstance(answer, torch.Tensor) else _entry(answer, "logits")
    if not isinstance(found, torch.Tensor):
        kind = type(answer).__name__
        raise ValueError(f"the model must answer with a tensor, got {kind}; wrap it in a module that picks one")
    return found


def loss_in(answer) -> torch.Tensor:
    """The scalar ``loss`` of an answer.

    Raises
    ------
    ValueError
        If there is none.
    """
    loss = _entry(answer, "loss")
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise ValueError(
            f"the model computes no loss of its own: its answer, {type(answer).__name__}, has no scalar loss; give a "
            "loss_fn, or batches with what the model needs for its loss"
        )
    return loss


def own_loss(outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    """The loss of a model that computed it itself: its outputs are that loss."""
    return outputs


def _entry(answer, name: str):
    return answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
