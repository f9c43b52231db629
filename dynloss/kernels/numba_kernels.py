"""The closed forms of `torch_kernels` as compiled loops, on the CPU in float64 or float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dynloss.kernels import numba_loops as loops
from dynloss.kernels import numba_planes as planes
from dynloss.kernels.class_weights import ClassWeights
from dynloss.kernels.torch_kernels import NetworkObjective
from dynloss.losses import CrossEntropy
from landscape.objective import as_steps


class CompiledNetworkObjective(NetworkObjective):
    """`NetworkObjective` by loops that numba compiles when they are first used, and keeps on disk.

    It runs in one thread, and each row of params gives the same bits whatever the other rows are. The loops trust
    every index, so that all shapes are checked here.

    Raises
    ------
    ValueError
        Also where inputs, targets, loss and model do not fit together.
    """

    kernel = "closed form, numba"

    def _keep(self) -> None:
        ((inputs, targets),) = self.batches
        self._n_classes = self.model.output.out_features
        if self.loss_fn.n_classes != self._n_classes:
            raise ValueError(f"the loss is of {self.loss_fn.n_classes} classes, the model of {self._n_classes}")
        self._inputs = self._extended(inputs)
        self._targets = targets.numpy().astype(np.int64)
        if targets.shape != inputs.shape[:1] or self._targets.min() < 0 or self._targets.max() >= self._n_classes:
            raise ValueError(f"targets must be {len(inputs)} classes 0 … {self._n_classes - 1}, one a sample")
        if isinstance(self.loss_fn, CrossEntropy):
            self._form, self._relative = loops.CROSS_ENTROPY, 1
        else:
            by_sample = self.loss_fn.weighting == "sample"
            self._form = loops.SQUARED_ERROR_BY_SAMPLE if by_sample else loops.SQUARED_ERROR_BY_COMPONENT
            self._relative = 0
        self._weights = getattr(self, "_weights", None) or ClassWeights(self.loss_fn, self._inputs.dtype)
        (n_inputs, n_samples), width = self._inputs.shape, _padded(self.model.hidden.out_features)
        n_outputs = self._n_classes - self._relative
        n_pairs = n_inputs * n_outputs
        self._shapes = {
            "layers": (n_inputs + n_outputs, width),
            "mixed": (-(-n_pairs // 3) * 3, width),
            "curvature": (2, self._n_classes, n_samples),
            "mask": (width, n_samples),
            "mask_t": (n_samples, width),
        }

    def reweighted(self, class_weights) -> CompiledNetworkObjective:
        """The same class losses under given weights; see `landscape.Objective.reweighted`."""
        other = super().reweighted(class_weights)
        other._weights = ClassWeights(other.loss_fn, self._inputs.dtype)
        return other

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs on `inputs`, (P, class) for params (n,), (E, P, class) for (E, n)."""
        if params.requires_grad or inputs.requires_grad:
            return super().outputs(params, inputs)
        rows, extended = self._rows(self.as_params(params)), self._extended(inputs)
        out = np.empty((len(rows), self._n_classes, extended.shape[1]), rows.dtype)
        layers = np.zeros((1, len(extended) + self._n_classes, self._shapes["layers"][1]), rows.dtype)
        loops.outputs(rows, extended, 0, layers, out)
        outputs = torch.from_numpy(out)[..., : len(inputs)].mT
        return outputs if params.ndim == 2 else outputs[0]

    def losses(self, params, step) -> torch.Tensor:
        """Losses F(θ_e, t_e), shape (E,), for params (E, n) and `step` an int or (E,)."""
        rows = self._rows(self.as_params(params))
        return torch.from_numpy(self._expand(rows, step, rows[:0], self._state(1, 0)))

    def descend(self, params: torch.Tensor, rates: torch.Tensor, steps: np.ndarray) -> tuple[torch.Tensor, int]:
        """Params (E, n) after gradient descent with `rates` (E,), and the number of updates made, at most T.

        Update t is made under the class weights of `steps` (T, E). It ends before the first update at which a loss is
        not finite. To the last bit as gradients by `value_and_gradient` and updates by torch.
        """
        rows = _array(params).copy()
        weights = _array(self.class_weights(steps.ravel())).reshape(*steps.shape, self._n_classes)
        losses, gradients = np.empty(len(rows), rows.dtype), np.empty_like(rows)
        made = loops.expand(
            rows, self._inputs, self._targets, weights, self._form, _array(rates), losses, gradients, *self._state(1, 0)
        )
        return torch.from_numpy(rows), int(made)

    def _value_and_gradient(self, params: torch.Tensor, step) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._rows(params)
        gradient = np.empty_like(rows)
        losses = self._expand(rows, step, gradient, self._state(1, 0))
        shape = params.shape
        return torch.from_numpy(losses.reshape(shape[:-1])), torch.from_numpy(gradient.reshape(shape))

    def _linearized(self, params: torch.Tensor, step, with_mixed: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        rows = self._rows(params)
        state = self._state(len(rows), len(rows))
        self._expand(rows, step, rows[:0], state)
        if not with_mixed:
            _, mixed, *_ = state
            mixed[:] = 0

        def multiply(vectors: torch.Tensor) -> torch.Tensor:
            columns = _array(vectors).astype(rows.dtype, copy=False).reshape(len(rows), -1, rows.shape[1])
            products = np.empty_like(columns)
            loops.products(columns, self._inputs, self._relative, *state, products)
            return torch.from_numpy(products.reshape(vectors.shape))

        return multiply

    def _plane_terms(self, center, directions, alpha, beta) -> torch.Tensor:
        offset = _array(beta).astype(float)
        origin = np.abs(offset).argmin()
        spacing = (offset[-1] - offset[0]) / (len(offset) - 1) if len(offset) > 1 else 1.0
        even = offset[0] + spacing * np.arange(len(offset))
        if not (spacing > 0 and np.abs(even - offset).max() <= 4 * torch.finfo(self.dtype).eps * np.abs(offset).max()):
            return super()._plane_terms(center, directions, alpha, beta)
        rows = torch.cat([center[None], directions]).double()
        rows[0] += beta[origin].double() * rows[2]
        hidden, output, bias = self._split(rows)
        if self._relative:
            output, bias = output[:, :-1] - output[:, -1:], bias[:, :-1] - bias[:, -1:]
        order = np.argsort(self._targets, kind="stable")
        terms = np.zeros((self._n_classes, len(alpha), len(offset)))
        planes.plane_terms(
            _array(hidden.mT), _array(output), _array(bias), self._inputs.T[order].astype(float), self._targets[order],
            self._form, _array(alpha).astype(float), offset - offset[origin], origin, spacing, terms,
        )  # fmt: skip
        return torch.from_numpy(terms / len(order)).to(self.dtype)

    def _extended(self, inputs: torch.Tensor) -> np.ndarray:
        """x̃ = (x, 1) of inputs (P, i), with the samples last and padded with zeros: (i + 1, P)."""
        inputs, n_inputs = inputs.to(self.dtype).numpy(), self.model.hidden.in_features
        if inputs.ndim != 2 or inputs.shape[1] != n_inputs:
            raise ValueError(f"inputs must have shape (P, {n_inputs}), got {inputs.shape}")
        out = np.zeros((n_inputs + 1, _padded(len(inputs))), inputs.dtype)
        out[:-1, : len(inputs)] = inputs.T
        out[-1, : len(inputs)] = 1
        return out

    def _rows(self, params: torch.Tensor) -> np.ndarray:
        return _array(params).reshape(-1, self.n_params)

    def _expand(self, rows: np.ndarray, step, gradients: np.ndarray, state: tuple[np.ndarray, ...]) -> np.ndarray:
        """Losses (E,); `gradients` and `state` are filled."""
        losses = np.empty(len(rows), rows.dtype)
        if isinstance(step, (int, np.integer)):
            weights = self._weights.at(int(step))
            weights = weights if len(rows) == 1 else np.repeat(weights, len(rows), 0)
        else:
            weights = _array(self.class_weights(as_steps(step, len(rows))))
        if weights.shape != (len(rows), self._n_classes):
            raise ValueError(f"the loss gives class weights of shape {weights.shape} for {self._n_classes} classes")
        still = rows[:0, 0]  # no rates: params stay where they are
        loops.expand(rows, self._inputs, self._targets, weights[None], self._form, still, losses, gradients, *state)
        return losses

    def _state(self, n_rows: int, n_masks: int) -> tuple[np.ndarray, ...]:
        """Room for layers, mixed, curvature and the two masks of `numba_loops.expand`."""
        shapes, dtype = self._shapes, self._inputs.dtype
        return (
            np.zeros((n_rows, *shapes["layers"]), dtype),
            np.empty((n_rows, *shapes["mixed"]), dtype),
            np.empty((n_rows, *shapes["curvature"]), dtype),
            np.empty((n_masks, *shapes["mask"]), np.int8),
            np.empty((n_masks, *shapes["mask_t"]), np.int8),
        )


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, a copy where its rows do not follow each other."""
    return tensor.detach().contiguous().numpy()


def _padded(length: int) -> int:
    return -(-length // loops.PADDING) * loops.PADDING
