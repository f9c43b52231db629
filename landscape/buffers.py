"""Buffers that belong to a checkpoint, such as the statistics of batch norms: each row is evaluated with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import xarray as xr

from landscape.objective import Objective, as_steps
from landscape.params import ParamLayout
from landscape.products import refuse_unfit_vectors

KEPT = 8
"""Steps whose buffers are kept in memory."""


def with_buffers(objective, checkpoints: xr.Dataset):
    """`objective` with the ``buffers`` (step, buffer) of `checkpoints` for the rows of each step.

    The buffers of a single row hold at every step.

    Raises
    ------
    ValueError
        If the model has no buffers of these names and shapes.
    """
    objective = objective.plain if isinstance(objective, ObjectiveWithBuffers) else objective
    layout = ParamLayout.from_json(checkpoints.attrs["buffer_layout"])
    own = dict(objective.model.named_buffers())
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in own or tuple(own[name].shape) != shape:
            there = f"has it with shape {tuple(own[name].shape)}" if name in own else "has no such buffer"
            raise ValueError(
                f"the checkpoints hold the buffer {name} {list(shape)}, but the objective's model {there}; build the "
                'model that was saved, or leave them out: checkpoints.drop_vars("buffers")'
            )
    return ObjectiveWithBuffers(objective, checkpoints.buffers, layout)


class ObjectiveWithBuffers(Objective):
    """An objective whose model has, at step t, the buffers that were saved at step t.

    Rows of different steps are evaluated one step after the other. It has all that `landscape.Objective` has; the model
    is shared with `plain`, the objective that it was made of.
    """

    def __init__(self, plain, buffers: xr.DataArray, layout: ParamLayout):
        self.__dict__ |= plain.__dict__
        self.plain, self._saved, self._buffer_layout = plain, buffers.transpose("step", "buffer"), layout
        self._of_steps: dict[int, Objective] = {}

    @property
    def batch_norm(self) -> str:
        """Which statistics batch norms use; empty without any."""
        own = any(name.endswith("running_mean") for name in self._buffer_layout.names)
        return "running statistics of each checkpoint" if own else super().batch_norm

    def at(self, step) -> Objective:
        """The objective with the buffers of a single step."""
        steps = self._saved.step.values
        row = 0 if len(steps) == 1 else self._row_of(int(step))
        if row not in self._of_steps:
            if len(self._of_steps) >= KEPT:
                self._of_steps.pop(next(iter(self._of_steps)))
            values = torch.from_numpy(np.array(self._saved[row].values)).to(self.device, self.dtype)
            self._of_steps[row] = self.plain.holding(self._buffer_layout.unflatten(values))
        one = self._of_steps[row]
        one.check, one.vmaps = self.check, self.vmaps  # what was found for one step holds for all
        return one

    def _row_of(self, step: int) -> int:
        steps = self._saved.step.values
        found = np.flatnonzero(steps == step)
        if not len(found):
            near = ", ".join(map(str, sorted(steps.tolist(), key=lambda s: abs(s - step))[:2]))
            raise ValueError(f"no buffers were saved at step {step}, the nearest are {near}; save every step asked for")
        return int(found[0])

    def _each_step(self, params, step) -> Iterator[tuple[np.ndarray, Objective, torch.Tensor, np.ndarray]]:
        """Rows, their objective, params and steps, for each step among those of params (E, n)."""
        steps = as_steps(step, len(params)).numpy()
        for step in dict.fromkeys(steps.tolist()):
            rows = np.flatnonzero(steps == step)
            yield rows, self.at(step), params[rows], steps[rows]

    def _gathered(self, params, step, evaluate: Callable) -> torch.Tensor:
        """What `evaluate` answers for the rows of each step, in the order of the rows."""
        params = self.as_params(params).reshape(-1, self.n_params)
        found = None
        for rows, one, some, steps in self._each_step(params, step):
            values = evaluate(one, some, steps)
            found = values.new_empty(len(params), *values.shape[1:]) if found is None else found
            found[rows] = values
        return found

    def losses(self, params, step) -> torch.Tensor:
        """Losses (E,); see `landscape.Objective.losses`."""
        return self._gathered(params, step, lambda one, some, steps: one.losses(some, steps))

    def terms(self, params, step=0) -> torch.Tensor:
        """Class losses (E, class); see `landscape.Objective.terms`."""
        return self._gathered(params, step, lambda one, some, steps: one.terms(some, steps))

    def accuracy(self, params, step=None) -> torch.Tensor:
        """Share of right answers, (E,); see `landscape.Objective.accuracy`. `step` says which buffers."""
        return self._gathered(params, self._named(step), lambda one, some, steps: one.accuracy(some))

    def outputs(self, params: torch.Tensor, inputs, step=None) -> torch.Tensor:
        """Outputs of the model; see `landscape.Objective.outputs`. `step` says which buffers, one for all rows."""
        return self.at(self._named(step)).outputs(params, inputs)

    def _named(self, step):
        if step is None and len(self._saved.step) > 1:
            raise ValueError("the buffers of the model differ from step to step; say which: step=…")
        return self._saved.step.values[0] if step is None else step

    def value_and_gradient(self, params, step) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and gradients; see `landscape.Objective.value_and_gradient`."""
        params = self.as_params(params)
        if params.ndim == 1:
            return self.at(step).value_and_gradient(params, step)
        losses, gradients = params.new_empty(len(params)), torch.empty_like(params)
        for rows, one, some, steps in self._each_step(params, step):
            losses[rows], gradients[rows] = one.value_and_gradient(some, steps)
        return losses, gradients

    def _curvature(self, matrix: str, params, step) -> Callable[[torch.Tensor], torch.Tensor]:
        params = self.as_params(params)
        stacked = params.reshape(-1, self.n_params)
        products = []
        for rows, one, some, steps in self._each_step(stacked, step):
            products.append((rows, one._curvature(matrix, some, steps)))
            self.check, self.vmaps = one.check, one.vmaps

        def multiply(vectors: torch.Tensor) -> torch.Tensor:
            refuse_unfit_vectors(vectors, params)
            columns = vectors.reshape(len(stacked), -1, self.n_params)
            found = torch.empty_like(columns)
            for rows, product in products:
                found[rows] = product(columns[rows])
            return found.reshape(vectors.shape)

        return multiply

    def plane_losses(self, center, directions, alpha, beta, step: int) -> torch.Tensor:
        """Class losses (class, alpha, beta); see `landscape.Objective.plane_losses`."""
        return self.at(step).plane_losses(center, directions, alpha, beta, step)

    def on(self, inputs: torch.Tensor, targets: torch.Tensor) -> Objective:
        """The same loss of the same model over other samples."""
        return ObjectiveWithBuffers(self.plain.on(inputs, targets), self._saved, self._buffer_layout)

    def reweighted(self, class_weights) -> Objective:
        """See `landscape.Objective.reweighted`; as rows of weights are no steps, only for the buffers of one row."""
        if len(self._saved.step) > 1:
            raise ValueError("class weights replace the steps by which buffers are told apart; select one checkpoint")
        return ObjectiveWithBuffers(self.plain.reweighted(class_weights), self._saved, self._buffer_layout)
