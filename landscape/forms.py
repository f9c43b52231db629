"""Layers of torch in forms whose second derivatives are cheap: same values, fewer and better laid out operations.

Differentiated twice, torch's own layers do more than they must: the double backward of a batch norm in evaluation
mode takes many elementwise operations, that of a ReLU adds a tensor of zeros, that of a convolution calls for
convolutions with kernels as large as the image, and linear layers batched over checkpoints transpose their largest
tensors. A Hessian product built from the forms below takes 10 to 25 % less time. Only what is listed in `Forms` is
replaced, and only where it is the same function; everything else is torch's own.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Forms(TorchFunctionMode):
    """While active, linear layers, convolutions, batch norms in evaluation mode and ReLUs are computed in these forms.

    Parameters
    ----------
    batched : bool
        Whether the model is evaluated by `torch.vmap` over stacked parameters. Linear layers profit only then,
        convolutions only otherwise.
    """

    def __init__(self, *, batched: bool):
        super().__init__()
        layers = {functional.linear: linear} if batched else {_CONVOLUTIONS[n]: convolution for n in _CONVOLUTIONS}
        self.forms = {functional.batch_norm: batch_norm, functional.relu: relu, torch.relu: relu} | layers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.forms:
            result = self.forms[func](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def relu(input, inplace=False):
    """max(x, 0) as x times a constant mask; NaN stays NaN, but −inf becomes NaN too."""
    return NotImplemented if inplace else input * (input > 0).to(input.dtype)


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):  # the signature of torch.nn.functional.batch_norm
    """Batch norm with fixed statistics: torch's values, differentiated as the affine map that it is."""
    if training or running_mean is None or running_var is None or weight is None or bias is None:
        return NotImplemented
    return _FixedBatchNorm.apply(input, running_mean, running_var, weight, bias, eps)


class _FixedBatchNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mean, variance, weight, bias, eps):
        # torch's own, to the last bit: in float32 other rounding switches some ReLUs further on.
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        x, mean, variance, weight = ctx.saved_tensors
        per_channel, others = (-1,) + (1,) * (x.ndim - 2), [0, *range(2, x.ndim)]
        scale, bias_grad = torch.rsqrt(variance + ctx.eps), grad.sum(others)
        weight_grad = ((grad * x).sum(others) - mean * bias_grad) * scale
        return grad * (weight * scale).view(per_channel), None, None, weight_grad, bias_grad, None


class _Bilinear(torch.autograd.Function):
    """A derivative of a trilinear form T(g, x, w) with respect to one argument, differentiable any number of times.

    A bilinear layer y(x, w) and its two gradients all are such derivatives, of T = ⟨g, y(x, w)⟩, and so are the
    derivatives of these: whatever the order, only the three maps of `form` are ever evaluated. ``form(0, x, w)`` is y,
    ``form(1, g, w)`` the gradient with respect to x and ``form(2, g, x)`` that with respect to w.
    """

    @staticmethod
    def forward(ctx, form, which, first, second):  # a separate setup_context would make each call much slower
        ctx.form, ctx.which = form, which
        ctx.save_for_backward(first, second)
        return form(which, first, second)

    @staticmethod
    def backward(ctx, cotangent):
        arguments = list(ctx.saved_tensors)
        arguments.insert(ctx.which, cotangent)  # now (g, x, w)
        gradients = [
            _Bilinear.apply(ctx.form, i, *(a for j, a in enumerate(arguments) if j != i)) if needed else None
            for i, needed in zip((i for i in range(3) if i != ctx.which), ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *gradients


def _stacked_linear(which, first, second):
    """The maps of y_e = x_e w_eᵀ for stacks (E, …): every result contiguous, whatever the order of the derivative."""
    if which == 0:
        return torch.bmm(first, second.mT)
    if which == 1:
        return torch.bmm(first, second)
    # gᵀ x: the product is much quicker with the smaller side as its rows.
    return torch.bmm(first.mT, second) if first.shape[-1] <= second.shape[-1] else torch.bmm(second.mT, first).mT


def linear(input, weight, bias=None):
    """A linear layer whose weights `torch.vmap` may batch."""
    if not input.is_floating_point():
        return NotImplemented
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias):
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.has_bias = inputs[2] is not None

    @staticmethod
    def backward(ctx, grad):  # where the layer is not batched
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return grad @ weight, rows.mT @ x.reshape(-1, x.shape[-1]), rows.sum(0) if ctx.has_bias else None

    @staticmethod
    def vmap(info, in_dims, x, weight, bias):
        x, weight, bias = (
            None if a is None else a.expand(info.batch_size, *a.shape) if d is None else a.movedim(d, 0)
            for a, d in zip((x, weight, bias), in_dims, strict=True)
        )
        y = _Bilinear.apply(_stacked_linear, 0, x.reshape(len(x), -1, x.shape[-1]), weight)
        y = y if bias is None else y + bias.unsqueeze(1)
        return y.reshape(*x.shape[:-1], -1), 0


def convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """A convolution of a batch, in one to three dimensions."""
    n = weight.ndim - 2
    if input.ndim != weight.ndim or isinstance(padding, str) or not input.is_floating_point():
        return NotImplemented
    stride, padding, dilation = ([o] * n if isinstance(o, int) else list(o) for o in (stride, padding, dilation))
    form = _Convolution(input.shape, weight.shape, (stride, padding, dilation, False, [0] * n, groups))
    y = _Bilinear.apply(form, 0, input, weight)
    return y if bias is None else y + bias.reshape(-1, *[1] * n)


class _Convolution:
    """The maps of a convolution of these shapes and options; torch's kernels for its gradients serve for all orders."""

    def __init__(self, input_shape, weight_shape, options):
        self.shapes, self.options = (input_shape, weight_shape), options

    def __call__(self, which, first, second):
        if which == 0:
            return torch.ops.aten.convolution(first, second, None, *self.options)
        unread = first.new_empty(1).expand(self.shapes[which - 1])  # only its shape matters
        arguments = (unread, second) if which == 1 else (second, unread)
        wanted = [which == 1, which == 2, False]
        return torch.ops.aten.convolution_backward(first, *arguments, None, *self.options, wanted)[which - 1]
