"""Class losses of the one-hidden-layer network over a plane θ + α d_0 + β d_1 in closed form.

Before the ReLU, the hidden layer is affine in (α, β): X̃ W̃_0 + α X̃ W̃_1 + β X̃ W̃_2, with three products that are
computed once; so are the output weights and biases. Each point of the grid then costs one sum, the ReLU and one thin
matrix product; and on the CPU, where a row has many points, even less by `torch_breakpoints`.
"""

from __future__ import annotations

import torch

from dynloss.kernels.torch_breakpoints import Row
from dynloss.losses import CrossEntropy

AT_ONCE = {"cpu": 2**18}
"""Hidden activations computed together: what one processor's cache nearly holds; elsewhere `AT_ONCE_ELSEWHERE`."""
AT_ONCE_ELSEWHERE = 2**24
POINTS_AT_ONCE = 64  # whose outputs are kept

MANY_POINTS = 16
"""In a row of the grid: with more, breakpoints are quicker on the CPU."""

Layers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""W̃ (3, h, i), U (3, c, h) and output biases (3, c) of the centre and of the two directions."""


def is_moderate(center: torch.Tensor, directions: torch.Tensor, grid: tuple[torch.Tensor, ...], inputs) -> bool:
    """Whether all is finite, and so far from overflow that affine sums are finite where those of the network are."""
    scale = center.abs().max().double()
    for direction, coordinates in zip(directions, grid, strict=True):
        scale = scale + direction.abs().max().double() * coordinates.abs().max().double()
    # A squared error is of fourth order in the parameters.
    return bool(scale * inputs.abs().max().double().clamp(min=1) < torch.finfo(center.dtype).max ** 0.2)


def plane_terms(
    layers: Layers, inputs: torch.Tensor, one_hot: torch.Tensor, loss, alpha: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """Class losses (class, alpha, beta) from x̃ (i, P) and targets as one-hot columns (c, P)."""
    hidden, output, bias = layers
    if isinstance(loss, CrossEntropy):  # outputs less the last one give the same probabilities from one product fewer
        output, bias = output[:, :-1] - output[:, -1:], bias[:, :-1] - bias[:, -1:]
    if inputs.device.type == "cpu" and len(beta) > MANY_POINTS and (beta.diff() > 0).all():
        return _terms_by_rows((hidden, output, bias), inputs, one_hot, loss, alpha, beta)
    n_outputs = output.shape[1]
    (width, n_samples), (n_a, n_b) = (hidden.shape[1], inputs.shape[1]), (len(alpha), len(beta))
    at_once = AT_ONCE.get(inputs.device.type, AT_ONCE_ELSEWHERE)
    samples_at_once = max(1, min(n_samples, at_once // (4 * width)))
    few_points = max(1, min(n_b, at_once // (width * samples_at_once)))
    room = inputs.new_empty(few_points, width, samples_at_once)
    totals = inputs.new_zeros(n_a, n_b, len(one_hot))
    for x, y in zip(inputs.split(samples_at_once, 1), one_hot.split(samples_at_once, 1), strict=True):
        at_center, by_alpha, by_beta = hidden @ x  # (h, P) each
        for a in range(n_a):
            start = torch.addcmul(at_center, alpha[a], by_alpha)
            for b, total in zip(beta.split(POINTS_AT_ONCE), totals[a].split(POINTS_AT_ONCE), strict=True):
                b = b[:, None, None]
                weights = torch.addcmul(output[0] + alpha[a] * output[1], b, output[2])  # (b, c, h)
                outputs = inputs.new_zeros(len(b), len(y), x.shape[1])
                computed = outputs[:, :n_outputs]
                several = (tensor.split(few_points) for tensor in (b, weights, computed))
                for b_few, weights_few, outputs_few in zip(*several, strict=True):
                    active = room[: len(b_few), :, : x.shape[1]]
                    torch.addcmul(start, b_few, by_beta, out=active).relu_()
                    torch.bmm(weights_few, active, out=outputs_few)
                computed += torch.addcmul((bias[0] + alpha[a] * bias[1])[:, None], b, bias[2, :, None])
                total += _terms(outputs, y, loss)
    return totals.permute(2, 0, 1) / n_samples


def _terms_by_rows(layers: Layers, inputs, one_hot, loss, alpha, beta) -> torch.Tensor:
    """The same by breakpoints, in float64, as the sums over active units are differences of larger ones."""
    hidden, output, bias = (tensor.double() for tensor in layers)
    x, y, a, b = (tensor.double() for tensor in (inputs, one_hot, alpha, beta))
    row = Row((hidden @ x, output), b, torch.finfo(inputs.dtype).eps)
    outputs = x.new_zeros(len(b), len(y), x.shape[1])
    totals = x.new_empty(len(a), len(b), len(y))
    for i in range(len(a)):
        shift = torch.addcmul(bias[0] + a[i] * bias[1], b[:, None], bias[2])
        torch.add(row.outputs(a[i]), shift[..., None], out=outputs[:, : output.shape[1]])
        totals[i] = _terms(outputs, y, loss)
    return (totals.permute(2, 0, 1) / x.shape[1]).to(inputs.dtype)


def _terms(outputs: torch.Tensor, one_hot: torch.Tensor, loss) -> torch.Tensor:
    """P times the class losses, (b, c), from outputs (b, c, P)."""
    if isinstance(loss, CrossEntropy):
        return -(torch.log_softmax(outputs, 1) * one_hot).sum(-1)
    squares = (outputs - one_hot) ** 2
    return squares.sum(1) @ one_hot.T if loss.weighting == "sample" else squares.sum(-1)
