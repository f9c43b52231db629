"""Whether the gradient and the Hessian product of a function agree with finite differences, kinks of ReLU allowed.

Real defects of a double backward are errors of several percent in every direction and at every point, whereas a kink
between two points spoils a finite difference there and nowhere else. So each comparison is made over several lengths
and on both sides, the whole again at other points, and one agreement is enough. Points are moved at random, off the
points where a function is not smooth by construction (zero biases on blank images). Norms are taken tensor by tensor,
so that a defect in a small layer does not drown in large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

LENGTHS = (1e-6, 1e-7, 1e-8)  # of the moves, relative to max(1, ‖θ‖); float64 gradients have about 1e-15 of noise
SCATTER = 1e-2  # of the points, relative to the root mean square of each tensor
PRODUCT_TOLERANCE = 1e-5
SLOPE_TOLERANCE = 1e-2
SMALL_PART = 1e-4  # tensors that hold less of a product than this are judged by the whole
MARGIN = 10  # standard deviations, or multiples of the rounding noise seen


class Function(NamedTuple):
    """A scalar function of a vector θ (n,) that is made of tensors of `sizes`, summing up to n."""

    value_and_gradient: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    linearize: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
    sizes: Sequence[int]


def defect(tries: Iterable[Function], point: torch.Tensor, generator: torch.Generator) -> str | None:
    """What is wrong with the Hessian product of a function near `point` (n,), as words; "" where nothing is.

    `tries` holds the function once for each try: later ones over fewer samples, and so with fewer kinks, if need be.
    None where it is finite at no point tried.
    """
    found = None
    for function in tries:
        here = _defect_at(function, scattered(point, function.sizes, generator), generator)
        if here == "":
            return here
        found = found if here is None else here
    return found


def _defect_at(function: Function, point: torch.Tensor, generator: torch.Generator) -> str | None:
    sizes = function.sizes
    value, gradient = function.value_and_gradient(point)
    product = function.linearize(point)
    v, u = unit_direction(point, sizes, generator), unit_direction(point, sizes, generator)
    Hv, Hu = product(v), product(u)
    if not all(tensor.isfinite().all() for tensor in (value, gradient, Hv, Hu)):
        return None
    nudged_value, nudged_gradient = function.value_and_gradient(nudged(point, v))
    noise = norms(nudged_gradient - gradient, sizes) + torch.finfo(point.dtype).eps * norms(gradient, sizes)
    error = _product_error(function, point, gradient, v, Hv, noise)
    if error > PRODUCT_TOLERANCE:
        return f"differ from finite differences of gradients by {100 * error:.3g} %"
    if asymmetry(function, point, (v, u), (Hv, Hu)) > 1:
        return "are not symmetric"
    noise = abs(nudged_value - value) + torch.finfo(point.dtype).eps * abs(value)
    error = _slope_error(function, point, gradient, noise, generator)
    if error > SLOPE_TOLERANCE:
        return f"belong to a gradient that differs from finite differences of the loss by {100 * error:.3g} %"
    return ""


def _product_error(function: Function, point, gradient, v, Hv, noise) -> float:
    """Least relative error of Hv against differences of gradients, of that tensor for which it is largest."""
    least, floor = torch.inf, torch.finfo(point.dtype).tiny
    for move in _moves(point):
        ahead, behind = (function.value_and_gradient(point + sign * move * v)[1] for sign in (1, -1))
        for difference in ((ahead - behind) / (2 * move), (ahead - gradient) / move, (gradient - behind) / move):
            excess = (norms(Hv - difference, function.sizes) - MARGIN * noise / move).clamp(min=0)
            scale = torch.maximum(norms(Hv, function.sizes), norms(difference, function.sizes))
            least = min(least, float((excess / (scale + SMALL_PART * scale.norm() + floor)).max()))
        if least <= PRODUCT_TOLERANCE:
            break
    return least


def _slope_error(function: Function, point, gradient, noise, generator) -> float:
    """Least relative error of the slope along the gradient, each of its tensors scaled to the same norm."""
    sizes, random = function.sizes, unit_direction(point, function.sizes, generator)
    pairs = zip(gradient.split(sizes), random.split(sizes), strict=True)
    along = torch.cat([part / part.norm() if part.norm() > 0 else other for part, other in pairs])
    along /= along.norm()
    slope, least = gradient @ along, torch.inf
    for move in _moves(point):
        ahead, behind = (function.value_and_gradient(point + sign * move * along)[0] for sign in (1, -1))
        excess = (abs((ahead - behind) / (2 * move) - slope) - MARGIN * noise / move).clamp(min=0)
        least = min(least, float(excess / (slope + torch.finfo(point.dtype).tiny)))
        if least <= SLOPE_TOLERANCE:
            break
    return least


def asymmetry(function: Function, point, vectors, products) -> float:
    """|⟨u, Hv⟩ − ⟨v, Hu⟩| over what rounding may make of it in the type of `point`; above 1 H is not symmetric.

    `products` Hv, Hu are those of the independent random `vectors` v, u. An error e of Hv shows in ⟨u, e⟩ as that of
    one random entry; it may have √ε of each tensor of Hv, or what a nudge by rounding makes of it.
    """
    (v, u), (Hv, Hu) = vectors, products
    difference = abs(u.double() @ Hv.double() - v.double() @ Hu.double())
    shares = [torch.finfo(point.dtype).eps ** 0.5 * norms(product, function.sizes) for product in products]
    ratio = difference / _random_part((u, v), shares, function.sizes)
    if ratio > 1:  # rare, so that this product is spared as a rule
        noise = MARGIN * norms(function.linearize(nudged(point, v))(v) - Hv, function.sizes)
        ratio = difference / _random_part((u, v), [share + noise for share in shares], function.sizes)
    return float(ratio)


def is_asymmetric(function: Function, point: torch.Tensor, n_tries: int, generator: torch.Generator) -> bool:
    """Whether the Hessian product is asymmetric beyond rounding at `point` (n,) and at others around it."""
    for near in (point, *(scattered(point, function.sizes, generator) for _ in range(n_tries - 1))):
        vectors = [unit_direction(near, function.sizes, generator) for _ in range(2)]
        product = function.linearize(near)
        if not asymmetry(function, near, vectors, [product(vector) for vector in vectors]) > 1:
            return False
    return True


def _random_part(vectors, errors, sizes) -> torch.Tensor:
    """What random vectors may hold of errors whose norms, tensor by tensor, are given: `MARGIN` standard deviations."""
    counts = torch.tensor(sizes, device=errors[0].device)
    variances = [(norms(vector, sizes) * error) ** 2 / counts for vector, error in zip(vectors, errors, strict=True)]
    return MARGIN * sum(variances).sum().double().sqrt() + torch.finfo(torch.float64).tiny


def _moves(point: torch.Tensor) -> list[float]:
    return [length * max(1.0, float(point.norm())) for length in LENGTHS]


def nudged(point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """`point` moved by little more than rounding moves it."""
    return point + 64 * torch.finfo(point.dtype).eps * max(1.0, float(point.norm())) * direction


def scattered(point: torch.Tensor, sizes: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """A random point near `point`: tensors move in proportion to their root mean square, zero ones to that of all."""
    whole = float(point.norm()) / len(point) ** 0.5 or 1.0
    scales = [float(part.norm()) / len(part) ** 0.5 or whole for part in point.split(sizes)]
    moves = [scale * part for scale, part in zip(scales, _normal(point, generator).split(sizes), strict=True)]
    return point + SCATTER * torch.cat(moves)


def unit_direction(point: torch.Tensor, sizes: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """A random unit vector (n,) whose tensors have equal norms."""
    parts = _normal(point, generator).split(sizes)
    return torch.cat([part / part.norm() for part in parts]) / len(sizes) ** 0.5


def norms(vector: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Norm of each tensor of `vector`, shape (tensor,)."""
    return torch.stack([part.norm() for part in vector.split(sizes)])


def _normal(point: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
