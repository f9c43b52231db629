"""The losses of a network with one hidden ReLU layer in closed form, batched over checkpoints.

With inputs x̃ = (x, 1), W̃ = (W | b), output weights U and the activation mask M_nh = 1 where (W̃ x̃_n)_h > 0, the
outputs are o_nc = Σ_hi M_nh U_ch W̃_hi x̃_ni + b_c almost everywhere. So the gradient and each Hessian-vector product
need the mask and one or two thin matrix products with it, in which the index pair ci is one column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from dynloss.kernels.torch_planes import is_moderate, plane_terms
from dynloss.losses import CrossEntropy, one_hot
from landscape import Objective
from landscape.objective import as_steps
from landscape.products import refuse_unfit_vectors

ACTIVATION_BYTES = 8 * 2**20
"""Hidden activations that are worked on at once: enough to be worth the calls, few enough to stay in a cache."""


class NetworkObjective(Objective):
    """`landscape.Objective` for `dynloss.mlp` and the losses of this package: the same values, without a graph.

    Parameters
    ----------
    model : dynloss.models.MLP
        All of its parameters trainable.
    loss_fn : dynloss.CrossEntropy or dynloss.SquaredError
        Or their dynamical forms.
    inputs, targets : torch.Tensor
        (P, n_inputs) and (P,); one batch.
    """

    kernel = "closed form, torch"

    def __init__(self, model, loss_fn, inputs: torch.Tensor, targets: torch.Tensor, **options):
        super().__init__(model, loss_fn, inputs, targets, **options)
        if self.weight_decay:
            raise ValueError("closed forms hold no weight decay; use landscape.Objective, which takes any loss")
        self._keep()

    def on(self, inputs: torch.Tensor, targets: torch.Tensor) -> NetworkObjective:
        """The same loss of the same model over other samples."""
        other = super().on(inputs, targets)
        other._keep()
        return other

    def _keep(self) -> None:
        """Keep what every product needs of the samples."""
        ((inputs, targets),) = self.batches
        self._inputs = _extended(inputs)
        one_hot = torch.nn.functional.one_hot(targets, self.loss_fn.n_classes)
        self._one_hot = one_hot.to(inputs).T.contiguous()  # (c, P)

    def outputs(self, params: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs on `inputs`, (P, class) for params (n,), (E, P, class) for (E, n)."""
        if params.ndim == 1:
            return self.outputs(params[None], inputs)[0]
        hidden, output, bias = self._split(params)
        active = torch.relu(hidden @ _extended(inputs))
        return torch.baddbmm(bias[..., None], output, active).mT

    def value_and_gradient(self, params, step) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (E,) and gradients (E, n) for params (E, n); a scalar and (n,) for params (n,)."""
        return self._value_and_gradient(self.as_params(params), step)

    def linearize(self, params, step) -> Callable[[torch.Tensor], torch.Tensor]:
        """The Hessian at `params` as a product: vectors (E, n) or (E, k, n), for params (n,) also (n,) → same shape."""
        return self._product_at(params, step, with_mixed=True)

    def gauss_newton(self, params, step) -> Callable[[torch.Tensor], torch.Tensor]:
        """The Gauss–Newton matrix JᵀSJ at `params` as a product of vectors, as `linearize` gives that of the Hessian.

        J = ∂o/∂θ holds the derivatives of the outputs, S = ∂²F/∂o∂o those of the loss by them: this is the Hessian of
        the loss of the network linearised at θ, positive semidefinite for these losses.
        """
        return self._product_at(params, step, with_mixed=False)

    def _product_at(self, params, step, with_mixed: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        params = self.as_params(params)
        multiply = self._linearized(params, step, with_mixed)

        def product(vectors: torch.Tensor) -> torch.Tensor:
            refuse_unfit_vectors(vectors, params)
            return multiply(vectors)

        return product

    def _value_and_gradient(self, params: torch.Tensor, step) -> tuple[torch.Tensor, torch.Tensor]:
        rows = params.reshape(-1, self.n_params)
        activations = self.model.hidden.out_features * self._inputs.shape[1] * rows.element_size()
        at_once = max(1, ACTIVATION_BYTES // activations) if rows.device.type == "cpu" else len(rows)
        steps = as_steps(step, len(rows)).numpy()
        found = [self._few(rows[i : i + at_once], steps[i : i + at_once]) for i in range(0, max(1, len(rows)), at_once)]
        losses, gradients = map(torch.cat, zip(*found, strict=True))
        return (losses, gradients) if params.ndim == 2 else (losses[0], gradients[0])

    def _few(self, params: torch.Tensor, steps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and gradients of rows that are worked on together."""
        at = self._expand(params, steps)
        gradient = self._join(
            (at.output[:, :, None] * at.mixed).sum(1).mT,
            (at.hidden_t[:, None] * at.mixed).sum(2),
            at.slope.sum(2),
        )
        return at.losses, gradient

    @torch.no_grad()
    def plane_losses(self, center, directions, alpha, beta, step: int) -> torch.Tensor:
        """Class losses (class, alpha, beta) at center + α d_0 + β d_1, for center (n,) and directions (2, n).

        NaN, inf and values next to overflow are left to the loop over the network itself.
        """
        center, directions = self.as_params(center), self.as_params(directions)
        grid = alpha, beta = tuple(torch.as_tensor(a).to(center) for a in (alpha, beta))
        if not (len(alpha) and len(beta) and is_moderate(center, directions, grid, self.batches[0][0])):
            return super().plane_losses(center, directions, alpha, beta, step)
        if len(alpha) > len(beta):  # what a row of β shares is computed once
            return self._plane_terms(center, directions.flip(0), beta, alpha).mT
        return self._plane_terms(center, directions, alpha, beta)

    def _plane_terms(self, center, directions, alpha, beta) -> torch.Tensor:
        ((inputs, targets),) = self.batches
        layers = self._split(torch.cat([center[None], directions]))
        classes = one_hot(targets, layers[-1]).T.contiguous()
        return plane_terms(layers, _extended(inputs), classes, self.loss_fn, alpha, beta)

    def _linearized(self, params: torch.Tensor, step, with_mixed: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product, of vectors that fit."""
        at = self._expand(params, step)
        n_rows, n_classes, n_inputs, width = at.mixed.shape
        hidden, output = at.hidden_t[:, None, None], at.output[:, None, :, None]  # (E, 1, 1, i, h), (E, 1, c, 1, h)
        mixed = at.mixed[:, None] if with_mixed else torch.zeros_like(at.mixed[:, None])

        def multiply(vectors: torch.Tensor) -> torch.Tensor:
            v_hidden, v_output, v_bias = self._split(vectors.reshape(n_rows, -1, self.n_params))
            v_hidden, v_output = v_hidden.mT[:, :, None], v_output[:, :, :, None]
            pulled = (output * v_hidden + hidden * v_output).reshape(n_rows, -1, width) @ at.mask
            pulled = pulled.reshape(n_rows, -1, n_classes, n_inputs, pulled.shape[-1])
            change = (pulled * self._inputs).sum(3) + v_bias[..., None]  # of the outputs, (E, k, c, P)
            bent = at.bend(change)
            spread = bent[:, :, :, None] * self._inputs
            pushed = spread.reshape(n_rows, -1, spread.shape[-1]) @ at.mask.mT
            pushed = pushed.reshape(n_rows, -1, n_classes, n_inputs, width)
            return self._join(
                (output * pushed + v_output * mixed).sum(2).mT,
                (hidden * pushed + v_hidden * mixed).sum(3),
                bent.sum(3),
            ).reshape(vectors.shape)

        return multiply

    def _split(self, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """W̃ (…, h, i) with the bias last, U (…, c, h) and the output bias (…, c) of params (…, n)."""
        tensors = self.layout.unflatten(params)
        hidden = torch.cat([tensors["hidden.weight"], tensors["hidden.bias"][..., None]], dim=-1)
        return hidden, tensors["output.weight"], tensors["output.bias"]

    def _join(self, hidden: torch.Tensor, output: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Flat vectors (…, n) of tensors as `_split` gives them."""
        return torch.cat([hidden[..., :-1].flatten(-2), hidden[..., -1], output.flatten(-2), bias], dim=-1)

    def _expand(self, params: torch.Tensor, step) -> _State:
        """What gradients and Hessian products at `params`, (E, n) or (n,), share."""
        params = params.detach().reshape(-1, self.n_params)
        hidden, output, bias = self._split(params)
        active = (hidden @ self._inputs).relu_()
        outputs = torch.baddbmm(bias[..., None], output, active)
        mask = active.gt_(0)  # in place: each pass over an array of this size counts
        class_weights = self.class_weights(as_steps(step, len(params))) / self._one_hot.shape[1]
        relative = isinstance(self.loss_fn, CrossEntropy)
        if relative:
            weights = (class_weights @ self._one_hot)[:, None]
            losses, slope, bend = _cross_entropy(outputs, self._one_hot, weights)
        else:
            by_sample = self.loss_fn.weighting == "sample"
            weights = (class_weights @ self._one_hot)[:, None] if by_sample else class_weights[..., None]
            losses, slope, bend = _squared_error(outputs, self._one_hot, weights)
        free = slope[:, :-1] if relative else slope
        mixed = (free[:, :, None] * self._inputs).flatten(1, 2) @ mask.mT
        mixed = mixed.unflatten(1, (free.shape[1], -1))
        if relative:  # softmax does not change when all outputs grow alike: the slopes of a sample sum to zero
            mixed = torch.cat([mixed, -mixed.sum(1, keepdim=True)], 1)
        return _State(hidden.mT.contiguous(), output, mask, losses, slope, bend, mixed)


class _State(NamedTuple):
    """Samples and hidden units lie innermost: thin products run twice as fast that way."""

    hidden_t: torch.Tensor  # (E, i, h), with the bias last
    output: torch.Tensor  # (E, c, h)
    mask: torch.Tensor  # (E, h, P), 0 or 1
    losses: torch.Tensor  # (E,)
    slope: torch.Tensor  # (E, c, P), ∂F/∂o
    bend: Callable[[torch.Tensor], torch.Tensor]  # ∂²F/∂o∂o on changes of the outputs (E, k, c, P)
    mixed: torch.Tensor  # (E, c, i, h), Σ_n M_hn slope_cn x̃_in


def _cross_entropy(outputs: torch.Tensor, one_hot: torch.Tensor, weights: torch.Tensor):
    """Losses (E,), their slope and `bend`, from outputs (E, c, P) and weights (E, 1, P) that hold 1/P."""
    log_p = torch.log_softmax(outputs, dim=1)
    p = log_p.exp()

    def bend(change: torch.Tensor) -> torch.Tensor:
        q = p[:, None]
        return weights[:, None] * q * (change - (q * change).sum(2, keepdim=True))

    return -(weights * one_hot * log_p).sum((1, 2)), weights * (p - one_hot), bend


def _squared_error(outputs: torch.Tensor, one_hot: torch.Tensor, weights: torch.Tensor):
    """As `_cross_entropy`; weights (E, 1, P) of the samples or (E, c, 1) of the outputs."""
    difference = outputs - one_hot

    def bend(change: torch.Tensor) -> torch.Tensor:
        return 2 * weights[:, None] * change

    return (weights * difference**2).sum((1, 2)), 2 * weights * difference, bend


def _extended(inputs: torch.Tensor) -> torch.Tensor:
    """x̃ = (x, 1) of inputs (P, i), with the samples last: (i + 1, P)."""
    return torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1).T.contiguous()
