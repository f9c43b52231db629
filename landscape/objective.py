"""The loss of a model as a function F(θ, t) of its flat parameters: values, gradients and Hessian products."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext

import numpy as np
import torch
from torch.func import functional_call, vmap

from landscape.additivity import settle_count
from landscape.answers import loss_in, outputs_in, own_loss
from landscape.double import Double
from landscape.evaluation import for_values
from landscape.model_copy import (
    batch_norm_statistics,
    is_recurrent,
    parameter_places,
    private_copy,
    refuse_batch_statistics,
    refuse_unfit,
    twice_differentiable,
)
from landscape.params import ParamLayout
from landscape.product_ways import Way
from landscape.products import CurvatureProduct
from landscape.reweighting import weighted_by_rows
from landscape.samples import Inputs, batches_of, each, n_counted
from landscape.self_check import self_check

POINTS_PER_BATCH = 32


class Objective:
    """Loss of `model` over a data set as a function of flat parameters θ and the step t; the model is never changed.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode if it holds dropout or batch norm. Its parameters that require gradients make up θ.
    loss_fn : callable or None
        ``loss_fn(outputs, targets, step)``, a mean over the samples given; its class losses ``terms(outputs,
        targets)`` and weights ``class_weights(step)`` are used where it has them. None: the ``loss`` that the model
        computes itself when it is called with a whole batch, as those of Hugging Face do; then in float64 throughout,
        if `dtype` is, where the model would go down to float32.
    inputs : torch.Tensor, mapping of str to torch.Tensor, or iterable of batches
        The data set (P, …), or several tensors by the names of the model's arguments; or batches in a fixed order that
        can be iterated again and again, such as a DataLoader without shuffling: pairs (inputs, targets), or mappings of
        which one entry is the targets. Of answers that hold more, ``logits`` are the outputs.
    targets : torch.Tensor or str, optional
        Targets (P, …); or, of batches that are mappings, the name of that entry ("labels" by default).
    batch_size : int, optional
        Evaluate so many samples at a time: memory is that of one batch, and the result that of all samples together.
    count : callable, optional
        Of how many numbers the loss over a batch is the mean, as a function of its targets: the weight of the batch. By
        default ``loss_fn.n_counted(targets)`` where it has that, else of all targets but integer ones that are -100,
        and without the first token where ignoring it does not change the loss. Seen to be right for two batches.
    weight_decay : float
        Adds ½ weight_decay ‖θ‖² to the loss, as ``torch.optim.SGD(weight_decay=…)`` adds its gradient; stated in the
        attrs of every result. By default nothing: the loss is that of the data alone.
    device, dtype : optional
        Where and in which type to compute; those of the model by default.
    product : str
        How Hessian and Gauss–Newton products are computed: "auto", the quickest way in a short race, or "kept graph"
        (double backward), "lean graph" (the same, with layers whose second derivatives are cheap), "linearize" or
        "jvp" (forward mode over a gradient, traced once or not), all rows at once or, as in "kept graph by 4", a few.
    check : bool
        When Hessian products are first asked for, see that they are right, once; see `landscape.self_check`.

    Raises
    ------
    ValueError
        For a model in training mode where that changes what it computes, one that cannot be evaluated as a function of
        its parameters, or without trainable ones; NaN in the inputs, unequal numbers of inputs and targets, batches
        that can be iterated only once, or whose losses do not add up to that of all; an unknown `product`; from
        `linearize` and `hvp`, for products that are not right.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> objective = Objective(model, lambda outputs, targets, step: ((outputs - targets) ** 2).mean(), inputs, targets)
    >>> theta = torch.tensor([1.0, 1.0])
    >>> objective.loss(theta, step=0), objective.gradient(theta, step=0)
    (tensor(2.5000), tensor([1., 4.]))
    >>> objective.hvp(theta, torch.tensor([1.0, 1.0]), step=0)
    tensor([1., 4.])
    """

    kernel = "autograd"
    """How gradients are computed; a run is repeated bit for bit only with the kernel that trained it."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Callable | None,
        inputs: torch.Tensor | Mapping[str, torch.Tensor] | Iterable,
        targets: torch.Tensor | str | None = None,
        *,
        batch_size: int | None = None,
        count: Callable[[torch.Tensor], int] | None = None,
        weight_decay: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        product: str = "auto",
        check: bool = True,
    ):
        refuse_unfit(model)
        self.layout = ParamLayout.of(model)
        first = next(p for p in model.parameters() if p.requires_grad)
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype or first.dtype
        self.loss_fn, self.weight_decay = own_loss if loss_fn is None else loss_fn, float(weight_decay)
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        # A copy, so that moving it, or a forward pass that writes to buffers, leaves the user's model alone.
        self.model = private_copy(model, self.device, self.dtype)
        self.count, self._total = count, None  # what `_weighted_batches` counted, and in which batches
        self.batches = batches_of(inputs, targets, batch_size, self.as_inputs, whole=loss_fn is None)
        self.product = product if product == "auto" else str(Way.parse(product))
        self.product_ways = {}  # what was found best: a landscape.product_trial.Situation → words for `product`
        refuse_batch_statistics(model, self.batches)
        self.check = check
        self._places = parameter_places(model)
        self._buffers: dict[str, torch.Tensor] = {}  # in place of the model's own
        self._recurrent = is_recurrent(model)
        self._for_values = None  # batches, and what `for_values` answered for them
        self.vmaps = True  # whether vmap takes the model; rows are evaluated one by one where it does not
        if check:
            settle_count(self, self.as_params(self.layout.flatten_model(model)))

    def as_inputs(self, inputs: Inputs) -> Inputs:
        """Inputs or targets on this objective's device, and of its type unless of an integer one."""
        return each(lambda part: part.to(self.device, self.dtype if part.is_floating_point() else part.dtype), inputs)

    def _counted(self, targets: torch.Tensor) -> int:
        """Of how many numbers the loss over these targets is the mean."""
        count = self.count or getattr(self.loss_fn, "n_counted", n_counted)
        return int(count(targets))

    def _weighted_batches(self) -> Iterator[tuple[Inputs, torch.Tensor, float]]:
        if self._total is None or self._total[0] is not self.batches:
            self._total = self.batches, sum(self._counted(targets) for _, targets in self.batches)
        total = self._total[1]
        if total == 0:
            raise ValueError("the batches of this objective hold no samples, or only targets that are ignored")
        for inputs, targets in self.batches:
            if n := self._counted(targets):
                yield self.as_inputs(inputs), self.as_inputs(targets), n / total

    def on(self, inputs: torch.Tensor, targets: torch.Tensor) -> Objective:
        """The same loss of the same model over other samples, as one batch; shares the model with this one."""
        other = copy.copy(self)
        other.batches = batches_of(inputs, targets, None, self.as_inputs)
        return other

    def holding(self, buffers: dict[str, torch.Tensor]) -> Objective:
        """The same loss with other buffers, by name, in place of the model's; shares the model with this one."""
        other = copy.copy(self)
        other._buffers, other._for_values = buffers, None
        return other

    def at(self, step: int) -> Objective:
        """The objective with the buffers of `step`: this one, unless they were saved with checkpoints."""
        return self

    def reweighted(self, class_weights) -> Objective:
        """The same class losses under given weights: at step s, Γ is row s of `class_weights` (row, class).

        So the landscape at any amplitude, phase or mixture of classes is one objective, with the row as its "step".
        The loss must have ``terms``. The model is shared with this objective, and closed forms stay closed forms.
        """
        other = copy.copy(self)
        other.loss_fn = weighted_by_rows(self.loss_fn, class_weights)
        return other

    @property
    def n_params(self) -> int:
        """Length n of θ."""
        return self.layout.n_params

    @property
    def batch_norm(self) -> str:
        """Which statistics the batch norms of the model use; empty where it has none."""
        return batch_norm_statistics(self.model)

    @property
    def has_terms(self) -> bool:
        """Whether the loss is a weighted sum of class terms."""
        return not self.weight_decay and hasattr(self.loss_fn, "terms") and hasattr(self.loss_fn, "class_weights")

    def class_weights(self, step) -> torch.Tensor:
        """Γ at `step`, shape (class,) or (E, class); needs a loss with class weights."""
        return self.loss_fn.class_weights(step).to(self.device, self.dtype)

    def as_params(self, params) -> torch.Tensor:
        """`params`, (n,) or (E, n), as a tensor of this objective's type and device."""
        if isinstance(params, np.ndarray):
            params = torch.from_numpy(np.ascontiguousarray(params))
        params = torch.as_tensor(params).to(self.device, self.dtype)
        if params.ndim not in (1, 2) or params.shape[-1] != self.n_params:
            raise ValueError(
                f"params must have shape ({self.n_params},) or (E, {self.n_params}), got {tuple(params.shape)}"
            )
        return params

    @property
    def has_own_loss(self) -> bool:
        """Whether the model computes its loss itself."""
        return self.loss_fn is own_loss

    def answer(self, answered) -> torch.Tensor:
        """The tensor in what the model answered: its outputs, or its own loss."""
        return loss_in(answered) if self.has_own_loss else outputs_in(answered)

    def outputs(self, params: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Outputs of the model on `inputs`, (P, …) for params (n,), (E, P, …) for (E, n)."""
        if params.ndim == 1:
            return self._forward(params, inputs)
        if self.vmaps and len(params) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", "There is a performance drop")  # a loop inside vmap gains nothing
                    return vmap(self._forward, in_dims=(0, None), randomness="error")(params, inputs)
            except Exception as error:
                if "randomness error mode" in str(error):
                    raise ValueError(
                        "the model draws random numbers, so that the loss is not a function of the parameters alone; "
                        "call model.eval() first, or make it deterministic"
                    ) from error
        outputs = torch.stack([self._forward(row, inputs) for row in params])
        self.vmaps = self.vmaps and len(params) == 1
        return outputs

    def _forward(self, params, inputs):
        double = Double() if self.has_own_loss and self.dtype == torch.float64 else nullcontext()
        with twice_differentiable(self._recurrent), double:
            values = self.layout.unflatten(params)
            placed = {place: values[name] for place, name in self._places.items()} | self._buffers
            given = ((), inputs) if isinstance(inputs, dict) else ((inputs,), None)
            return self.answer(functional_call(self.model, placed, *given, tie_weights=False))

    def _batch_losses(self, params, steps, inputs, targets):
        return self._losses_of(self.outputs(params, inputs), targets, steps, self._weights_of(steps))

    def _weights_of(self, steps):
        """Class weights (E, class) where losses are computed from terms, so that all rows are computed at once."""
        return self.class_weights(steps) if self.has_terms and len(steps) > 1 else None

    def _losses_of(self, outputs, targets, steps, weights):
        if weights is not None:
            return (weights * vmap(self.loss_fn.terms, in_dims=(0, None))(outputs, targets)).sum(-1)
        return torch.stack([self.loss_fn(o, targets, s) for o, s in zip(outputs, steps.tolist(), strict=True)])

    def losses(self, params, step) -> torch.Tensor:
        """Losses F(θ_e, t_e), shape (E,), for params (E, n) and `step` an int or (E,)."""
        params = self.as_params(params).reshape(-1, self.n_params)
        steps = as_steps(step, len(params))
        with torch.no_grad():
            of_data = sum(weight * self._batch_losses(params, steps, x, y) for x, y, weight in self._weighted_batches())
            return of_data + self._decay(params)

    def _decay(self, params: torch.Tensor) -> torch.Tensor | float:
        """What weight decay adds to the losses of params (E, n)."""
        return 0.5 * self.weight_decay * (params**2).sum(1) if self.weight_decay else 0.0

    def loss(self, params, step: int = 0) -> torch.Tensor:
        """The loss F(θ, t), a scalar, for params (n,)."""
        return self.losses(self.as_params(params)[None], step)[0]

    def terms(self, params, step: int = 0) -> torch.Tensor:
        """Class losses F_i(θ_e), shape (E, class), for params (E, n); the loss must have ``terms``."""
        if not hasattr(self.loss_fn, "terms"):
            raise ValueError("this loss has no class terms; give a loss with a method terms(outputs, targets)")
        params = self.as_params(params).reshape(-1, self.n_params)
        terms = vmap(self.loss_fn.terms, in_dims=(0, None))
        with torch.no_grad():
            return sum(weight * terms(self.outputs(params, x), y) for x, y, weight in self._weighted_batches())

    def accuracy(self, params) -> torch.Tensor:
        """Share of the samples whose largest output is that of their target, (E,), for params (E, n) or (n,).

        Raises
        ------
        ValueError
            If the targets are not classes: one integer a sample.
        """
        if self.has_own_loss:
            raise ValueError("accuracy needs the outputs of the model, but it computes its own loss; give a loss_fn")
        params = self.as_params(params).reshape(-1, self.n_params)
        total = 0.0
        with torch.no_grad():
            for x, y, weight in self._weighted_batches():
                if y.is_floating_point() or y.ndim != 1:
                    raise ValueError(
                        f"accuracy needs one class a sample, got targets {y.dtype} of shape {tuple(y.shape)}"
                    )
                right = self.outputs(params, x).max(-1).indices == y  # argmax takes ten times as long
                total = total + weight * right.to(self.dtype).mean(-1)
        return total

    def value_and_gradient(self, params, step) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (E,) and gradients (E, n) for params (E, n); a scalar and (n,) for params (n,)."""
        params = self.as_params(params)
        stacked = params.detach().reshape(-1, self.n_params).requires_grad_()
        steps = as_steps(step, len(stacked))
        losses, gradient = self._decay(stacked.detach()), self.weight_decay * stacked.detach()
        for x, y, weight in self._weighted_batches():
            batch = self._batch_losses(stacked, steps, x, y)
            gradient += weight * torch.autograd.grad(batch.sum(), stacked, materialize_grads=True)[0]
            losses = losses + weight * batch.detach()
        return (losses, gradient) if params.ndim == 2 else (losses[0], gradient[0])

    def gradient(self, params, step) -> torch.Tensor:
        """Gradients ∇F(θ_e, t_e), of the shape of `params`."""
        return self.value_and_gradient(params, step)[1]

    def linearize(self, params, step) -> Callable[[torch.Tensor], torch.Tensor]:
        """The Hessian at `params` as a product: vectors (E, n) or (E, k, n), for params (n,) also (n,), → same shape.

        With one batch of samples, what can be computed beforehand is, and further products cost about two gradients
        each. With several it is computed anew for each batch, and memory stays that of one batch. The quickest way is
        found by a short race when a situation first arises, and stands in `product_ways`; so results may differ in
        their last bits from one process to another, unless `product` names a way.
        """
        return self._curvature("hessian", params, step)

    def gauss_newton(self, params, step) -> Callable[[torch.Tensor], torch.Tensor]:
        """The Gauss–Newton matrix G = Jᵀ (∂²F/∂o∂o) J at `params` as a product; see `linearize` for the shapes.

        J is the Jacobian of the model's outputs o with respect to θ (Schraudolph 2002). G is the Hessian without the
        curvature of the model itself: positive semidefinite where the loss is convex in o, the Hessian for a model
        linear in θ. The model must answer with one floating-point tensor.
        """
        if self.has_own_loss:
            raise ValueError(
                "gauss_newton tells model and loss apart, but this model computes its own loss; give a loss_fn"
            )
        return self._curvature("gauss_newton", params, step)

    def _curvature(self, matrix: str, params, step):
        params = self.as_params(params)
        if self.check:
            self.check = not self_check(self, params, step)
        steps = as_steps(step, params.numel() // self.n_params)
        return CurvatureProduct(self, matrix, params, steps)

    def hvp(self, params, vectors: torch.Tensor, step) -> torch.Tensor:
        """Hessian-vector products H(θ_e, t_e) v, of the shape of `vectors`; see `linearize`."""
        return self.linearize(params, step)(self.as_vectors(vectors))

    def as_vectors(self, vectors) -> torch.Tensor:
        """`vectors` as a tensor of this objective's type and device."""
        return torch.as_tensor(vectors).to(self.device, self.dtype)

    def plane_losses(self, center, directions, alpha, beta, step: int) -> torch.Tensor:
        """Class losses (class, alpha, beta) at center + α d_0 + β d_1; one "class", the loss, if it has no terms.

        `center` (n,), `directions` (2, n), `alpha` and `beta` one-dimensional. Closed forms override this loop.
        """
        center, directions = self.as_params(center), self.as_params(directions)
        alpha, beta = (torch.as_tensor(a).to(center) for a in (alpha, beta))
        grid = torch.cartesian_prod(alpha, beta).reshape(-1, 2)
        if self._for_values is None or self._for_values[0] is not self.batches:
            self._for_values = self.batches, *for_values(self, center, step)
        _, same, at_once = self._for_values
        values = [
            same.terms(points, step) if self.has_terms else same.losses(points, step)[:, None]
            for points in (center + coordinates @ directions for coordinates in grid.split(at_once))
        ]
        return torch.cat(values).T.reshape(-1, len(alpha), len(beta))


def as_steps(step, n: int) -> torch.Tensor:
    """`step`, an int or (n,), as an int64 tensor (n,)."""
    steps = torch.as_tensor(np.array(step))  # a copy, as xarray's coordinates are read-only
    if steps.shape not in ((), (n,)):
        raise ValueError(f"step must be an int or have shape ({n},), one for each row, got {tuple(steps.shape)}")
    return steps.expand(n) if steps.ndim == 0 else steps
