"""An objective's values at many points: how to ask for them quickly where no gradients are needed."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from itertools import pairwise

import torch
from torch import nn

POINTS_AT_ONCE = 32
ACTIVATION_BYTES = 2**22  # of the largest layer: where more do not fit into a cache, fewer points at once cost less
NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


def for_values(objective, point: torch.Tensor, step: int) -> tuple:
    """A copy of `objective` for values only, and how many points it is to evaluate at once.

    On a CPU the copy lays out images with the channels last, folds batch norms in evaluation mode into the convolutions
    before them, and applies the ReLUs after them in place, where an `nn.Sequential` shows what follows what; and it
    takes so few images at once that their layers fit into a cache. Its loss at `point` (n,) is compared with that of
    `objective`, which is returned itself where the two do not agree.
    """
    with _OutputSizes(objective.model) as sizes:
        expected = objective.loss(point, step)
    activations = ACTIVATION_BYTES // expected.element_size()
    at_once = min(max(activations // sizes.largest, 1), POINTS_AT_ONCE)
    if objective.device.type != "cpu" or not any(type(module) in NORMS for module in objective.model.modules()):
        return objective, at_once
    same = copy.copy(objective)
    same.model = _folded(copy.deepcopy(objective.model))
    same.as_inputs = lambda tensor: _channels_last(objective.as_inputs(tensor))
    images = max(1, activations // sizes.of_a_sample)
    same.model.forward = partial(_in_pieces, same.model.forward, images)
    try:
        found = same.loss(point, step)
    except Exception:  # models may view images as if they were laid out in the usual way
        return objective, at_once
    agrees = torch.isclose(found, expected, rtol=torch.finfo(expected.dtype).eps ** 0.5, atol=0)
    return (same if agrees else objective), at_once


def _in_pieces(forward, n_at_once: int, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of so many inputs at once."""
    pieces = [forward(piece) for piece in inputs.split(n_at_once)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _folded(model: nn.Module) -> nn.Module:
    """`model`, changed: its parameters keep their names, so that a functional call finds them."""
    places = Counter(map(id, (module for _, module in model.named_modules(remove_duplicate=False))))
    for parent in [module for module in model.modules() if type(module) is nn.Sequential]:
        layers = [layer for layer in parent.children() if type(layer) is not nn.Identity]
        for before, after in pairwise(layers):
            if places[id(before)] > 1 or places[id(after)] > 1 or _is_hooked(before) or _is_hooked(after):
                continue
            if type(after) is nn.ReLU and type(before) in (*NORMS, *NORMS.values()):
                after.inplace = True
            fixed = type(after) is NORMS.get(type(before)) and not after.training
            if fixed and after.running_mean is not None and after.affine:
                before.forward = _NormalisedConvolution(before, after)
                after.forward = _unchanged
    return model


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


class _NormalisedConvolution:
    """A convolution with the batch norm behind it folded into its weights, once for all pieces of the inputs."""

    def __init__(self, convolution: nn.Module, norm: nn.Module):
        self.convolution, self.norm = convolution, norm
        self.folded: tuple[torch.Tensor, ...] = (None,) * 4

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        convolution, norm = self.convolution, self.norm
        of_weight, of_scale, weight, shift = self.folded
        if of_weight is not convolution.weight or of_scale is not norm.weight:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * scale
            if convolution.bias is not None:
                shift = shift + convolution.bias * scale
            weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.ndim - 1))
            self.folded = convolution.weight, norm.weight, weight, shift
        return convolution._conv_forward(x, weight, shift)


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


class _OutputSizes:
    """While open, the largest output of any module of `model`, in numbers, is kept, as is that of one sample."""

    def __init__(self, model: nn.Module):
        self.model, self.largest, self.of_a_sample = model, 1, 1

    def __enter__(self):
        self.handles = [module.register_forward_hook(self._look) for module in self.model.modules()]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _look(self, module, inputs, output):
        if isinstance(output, torch.Tensor):
            self.largest = max(self.largest, output.numel())
            self.of_a_sample = max(self.of_a_sample, output.numel() // max(1, len(output) if output.ndim else 1))
