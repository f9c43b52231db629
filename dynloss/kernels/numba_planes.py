"""Compiled rows of a plane: along β each hidden unit of each sample switches at most once.

So the contribution of a unit to an output is a quadratic in β on one side of its breakpoint and zero on the other. The
quadratics that hold at an origin in the grid are summed; then, going outwards from there, what a breakpoint adds or
takes away is added in the first grid cell beyond it. A sum holds only what switched between the origin and its point,
so that rounding errors are those of values at that distance, however wide the grid is.

Everything is computed in float64. All loops stand in one file, as numba's cache of compiled functions notices changes
of that file only. For cross entropy all outputs are relative to the last one, as in `numba_loops`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dynloss.kernels.numba_loops import CROSS_ENTROPY, SQUARED_ERROR_BY_SAMPLE

PAIRS_AT_ONCE = 2**14  # of a sample and a hidden unit: their values fit into the cache
MOST = 600.0  # logarithm of the largest product whose logarithm is taken at once
TAYLOR = tuple(1 / math.factorial(j) for j in range(11, -1, -1))

FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered and fused
WITHIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # compiles faster
compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
inner = njit(fastmath=FAST, **WITHIN)
exactly = njit(fastmath={"contract"}, **WITHIN)  # nothing is reordered


@compiled
def plane_terms(hidden, output, bias, inputs, targets, form, alpha, offset, origin, spacing, terms):
    """P times the class losses, (class, alpha, beta), in `terms`, which must be zero.

    hidden (3, i, h), output (3, c, h) and bias (3, c) are those at the origin and of both directions, inputs (P, i) the
    extended ones, and `offset` (beta,) are distances from ``offset[origin]`` = 0 on a grid of even `spacing`. Samples
    are sorted by `targets`, so that few logarithms are taken.
    """
    n_samples, width, n_points = len(inputs), hidden.shape[2], len(offset)
    at_once = max(1, PAIRS_AT_ONCE // width)
    before = np.empty((at_once, 3, width))
    weights, shift = np.empty_like(output[0]), np.empty_like(bias[0])
    unit_rows, cells = np.empty((4, width)), np.empty((2, width), np.int64)
    jumps = np.zeros((len(shift), n_points, 4))
    outputs, rows = np.empty((len(shift), n_points)), np.empty((4, n_points))
    for first in range(0, n_samples, at_once):
        n_here = min(at_once, n_samples - first)
        for n in range(n_here):
            for k in range(3):
                for h in range(width):
                    before[n, k, h] = 0
                for i in range(hidden.shape[1]):
                    for h in range(width):
                        before[n, k, h] += inputs[first + n, i] * hidden[k, i, h]
        for a in range(len(alpha)):
            for c in range(len(shift)):
                shift[c] = bias[0, c] + alpha[a] * bias[1, c]
                for h in range(width):
                    weights[c, h] = output[0, c, h] + alpha[a] * output[1, c, h]
            room = 0.0
            rows[0] = 1
            for n in range(n_here):
                target = targets[first + n]
                _outputs(before[n], alpha[a], weights, output[2], shift, bias[2], offset, origin, spacing,
                         unit_rows, cells, jumps, outputs)  # fmt: skip
                if form == CROSS_ENTROPY:
                    room += math.log(len(shift) + 1.0)
                    _cross_entropy(outputs, target, rows, terms[target, a])
                    ends = n + 1 == n_here or targets[first + n + 1] != target
                    if ends or room > MOST:
                        for j in range(n_points):
                            terms[target, a, j] += math.log(rows[0, j])
                            rows[0, j] = 1
                        room = 0.0
                else:
                    for c in range(len(outputs)):
                        hit = 1.0 if c == target else 0.0
                        total = terms[target if form == SQUARED_ERROR_BY_SAMPLE else c, a]
                        for j in range(n_points):
                            total[j] += (outputs[c, j] - hit) ** 2


@inner
def _outputs(before, alpha, weights, weights_b, shift, shift_b, offset, origin, spacing, units, cells, jumps, out):
    """Outputs (c, beta) of one sample along one row; `before` (3, h) are X̃ W̃, `jumps` is zero before and after."""
    width, n_points = before.shape[1], len(offset)
    value, place, active, rising = units[0], units[1], units[2], units[3]
    slope = before[2]
    low, high = -1.0, float(n_points)  # cells beyond the grid
    for h in range(width):
        v, s = before[0, h] + alpha * before[1, h], slope[h]
        on = v > 0 or (v == 0 and s > 0)
        value[h] = -v if on else v  # a unit that is on at the origin is taken away beyond its breakpoint
        active[h] = v if on else 0.0
        rising[h] = s if on else 0.0
        at = -v / (s * spacing)  # in grid cells; NaN where the unit is zero all along
        at = origin + (math.floor(at) + 1 if at > 0 else math.ceil(at) - 1)
        at = at if at > low else low
        place[h] = at if at < high else high
    n_crossing = 0
    for h in range(width):
        cells[0, n_crossing], cells[1, n_crossing] = h, int(place[h])
        n_crossing += (place[h] > low) & (place[h] < high)
    for q in range(n_crossing):
        h, j = cells[0, q], cells[1, q]
        v, s = value[h], slope[h] - 2 * rising[h]
        for c in range(len(out)):
            u, u_b = weights[c, h], weights_b[c, h]
            jumps[c, j, 0] += v * u
            jumps[c, j, 1] += v * u_b + s * u
            jumps[c, j, 2] += s * u_b
    for c in range(len(out)):
        p0, p1, p2 = shift[c], shift_b[c], 0.0
        for h in range(width):
            u, u_b = weights[c, h], weights_b[c, h]
            p0 += active[h] * u
            p1 += active[h] * u_b + rising[h] * u
            p2 += rising[h] * u_b
        out[c, origin] = p0
        _sum_up(jumps[c], offset, out[c], origin + 1, n_points, 1, p0, p1, p2)
        _sum_up(jumps[c], offset, out[c], origin - 1, -1, -1, p0, p1, p2)


@inner
def _sum_up(jumps, offset, out, start, stop, stride, p0, p1, p2):
    for j in range(start, stop, stride):
        p0 += jumps[j, 0]
        p1 += jumps[j, 1]
        p2 += jumps[j, 2]
        jumps[j, 0] = jumps[j, 1] = jumps[j, 2] = 0
        d = offset[j]
        out[j] = p0 + d * (p1 + d * p2)


@exactly
def _cross_entropy(outputs, target, rows, total):
    """One sample: Σ_c exp(o_c − highest) is multiplied to rows[0], and highest − o_target added to `total` (beta,).

    exp(x) = 2^k e^r with k = round(x / ln 2), |r| ≤ ln 2 / 2 and the `TAYLOR` polynomial, error below 1e-14: loops
    without calls are several times as fast as the exponential of the C library.
    """
    product, highest, summed, shifted = rows[0], rows[1], rows[2], rows[3]
    power = shifted.view(np.int64)
    rounding = 1.5 * 2.0**52  # the last bits of x + rounding are those of round(x), unless reordered
    n_outputs, n_points = outputs.shape
    for j in range(n_points):
        highest[j] = 0
    for c in range(n_outputs):
        for j in range(n_points):
            highest[j] = outputs[c, j] if outputs[c, j] > highest[j] else highest[j]
    for j in range(n_points):
        own = outputs[target, j] if target < n_outputs else 0.0
        total[j] += highest[j] - own
        summed[j] = 0
    for c in range(n_outputs + 1):  # the last output, less itself, is zero
        for j in range(n_points):
            x = (outputs[c, j] if c < n_outputs else 0.0) - highest[j]
            x = -708.0 if x < -708.0 else x
            shifted[j] = x * 1.4426950408889634 + rounding
        for j in range(n_points):
            x = (outputs[c, j] if c < n_outputs else 0.0) - highest[j]
            x = -708.0 if x < -708.0 else x
            k = shifted[j] - rounding
            r = x - k * 6.93147180369123816490e-01 - k * 1.90821492927058770002e-10
            p = 0.0
            for coefficient in TAYLOR:
                p = p * r + coefficient
            power[j] = (power[j] + 1023) << 52
            summed[j] += p * shifted[j]
    for j in range(n_points):
        product[j] *= summed[j]
