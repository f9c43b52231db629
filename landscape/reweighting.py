"""A loss F = Σ_i Γ_i(t) F_i with its class weights Γ replaced by the rows of a table."""

from __future__ import annotations

import copy

import numpy as np
import torch


def weighted_by_rows(loss_fn, class_weights):
    """A copy of `loss_fn` whose class weights at step s are row s of `class_weights`.

    It is of a subclass of its type, so that closed forms know it, and is the weighted sum of its terms whatever the
    loss itself does when called.

    Parameters
    ----------
    loss_fn : object
        A loss with ``terms(outputs, targets)`` → (class,).
    class_weights : array_like
        Γ, shape (row, class), finite.

    Raises
    ------
    ValueError
        If the loss has no terms, or the weights are no such table; from the new loss, for a step that is no row
        and for another number of classes.
    """
    if not hasattr(loss_fn, "terms"):
        raise ValueError("only a loss with class terms can be reweighted: give it a method terms(outputs, targets)")
    table = np.asarray(class_weights, dtype=np.float64).copy()
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"class weights must be finite, of shape (row, class), got shape {table.shape}")
    weighted, kind = copy.copy(loss_fn), type(loss_fn)
    # Closed forms ask by isinstance which loss it is.
    weighted.__class__ = type(kind.__name__, (kind,), {"class_weights": _row_of_table, "__call__": _weighted_sum})
    weighted._weight_table = table
    return weighted


def _row_of_table(self, step) -> torch.Tensor:
    """Γ at `step`, an int or an array (…): (class,) or (…, class)."""
    rows, table = np.asarray(step), self._weight_table
    if rows.min() < 0 or rows.max() >= len(table):
        raise ValueError(f"the class weights have rows 0 … {len(table) - 1}, got step {step}")
    return torch.from_numpy(table[rows])


def _weighted_sum(self, outputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
    """The loss under row `step`, a scalar."""
    terms, weights = self.terms(outputs, targets), self.class_weights(step)
    if terms.shape != weights.shape:
        raise ValueError(f"the loss has {len(terms)} class terms, the table of class weights {len(weights)} columns")
    return weights.to(terms) @ terms
