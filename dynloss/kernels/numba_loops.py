"""Compiled loops of the closed forms; `numba_kernels` calls them, and the formulas are those of `torch_kernels`.

Samples or hidden units lie innermost, padded to a multiple of `PADDING`, so that the compiler vectorises the loops.
Each row of params is computed on its own, in one order of operations. All loops stand in one file, as numba's cache
of compiled functions notices changes of that file only.

Cross entropy depends only on the differences o_c − o_C from the last output, so that for it o, U and the output bias
are these differences, of which the last is zero and is left out of the products: `n_outputs` is C − 1. The slope of
the last output is minus the sum of the others.

Arrays of one row of params: `layers` (i + c, h) holds W̃ and below it U; `mixed` (c·i, h) is Q_ch,i = Σ_n M_nh G_nc x̃_ni
with G = ∂F/∂o; `curvature` (2, class, P) holds a and p, with which ∂²F/∂o∂o takes r to a_c (r_c − Σ_j p_j r_j). Their
rows c·i are filled up to a multiple of three with zeros.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

PADDING = 8
AT_ONCE = 2**18  # numbers in an array of what is multiplied together; more columns follow each other
CROSS_ENTROPY, SQUARED_ERROR_BY_SAMPLE, SQUARED_ERROR_BY_COMPONENT = range(3)

# Sums may be reordered and fused; NaN and inf stay what they are.
TAYLOR = tuple(1 / math.factorial(j) for j in range(13, -1, -1))
FAST = {"reassoc", "contract", "arcp", "nsz"}
WITHIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # compiles faster
compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
inner = njit(fastmath=FAST, **WITHIN)
exactly = njit(fastmath={"contract"}, **WITHIN)  # nothing is reordered
rounding_twice = njit(fastmath=False, **WITHIN)  # nor fused, as where torch multiplies and subtracts; not inherited


@compiled
def outputs(params, inputs, relative, layers, out):
    """Outputs of each row of params (E, n) on extended inputs (i, P) in out (E, class, P)."""
    n_classes = out.shape[1]
    active = np.empty((4, inputs.shape[1]), params.dtype)
    for e in range(len(params)):
        _split(params[e], len(inputs), n_classes, relative, layers[0])
        _forward(params[e], inputs, n_classes, relative, layers[0], active, out[e])


@compiled
def expand(params, inputs, targets, weights, form, rates, losses, gradients, layers, mixed, curvature, mask, mask_t):
    """Losses (E,) at params (E, n); gradients (E, n) if not empty; and what `products` needs.

    Class weights are (T, E, class), with one T unless there are rates (E,): then params are moved by gradient descent,
    an update under each of T, as long as all losses are finite; the number of updates is returned. One function for
    both, as only the same machine code is sure to round alike.

    The first axis of layers, mixed, curvature and the masks is E, or 1 to use one row over and over; mask (E, h, P) and
    mask_t (E, P, h), int8, may be empty. Padded units of layers must be zero.
    """
    n_inputs, n_samples = inputs.shape
    n_classes = weights.shape[2]
    relative = 1 if form == CROSS_ENTROPY else 0
    active = np.empty((4, n_samples), params.dtype)
    slope = np.zeros((n_classes, n_samples), params.dtype)
    spread = np.zeros((mixed.shape[1], n_samples), params.dtype)
    nothing = np.zeros(layers.shape[1:], params.dtype)
    for t in range(len(weights)):
        for e in range(len(params)):
            r = e if len(layers) > 1 else 0
            _split(params[e], n_inputs, n_classes, relative, layers[r])
            _forward(params[e], inputs, n_classes, relative, layers[r], active, slope)
            losses[e] = _derivatives(slope, targets, weights[t, e], form, curvature[r])
            if len(gradients) or len(mask):
                _spread(slope, inputs, n_classes - relative, spread)
                if n_inputs <= 3 and len(spread) >= 6 and not len(mask):
                    _dots_of_few_inputs(layers[r], inputs, spread, mixed[r])
                else:
                    for h in range(0, layers.shape[2], 4):
                        for q in range(4):
                            _hidden_unit(layers[r], h + q, inputs, True, active[q])
                            if len(mask):
                                for n in range(n_samples):
                                    mask[r, h + q, n] = np.int8(active[q, n])
                        _dots(active, spread, h, mixed[r])
            if len(gradients):
                _join(layers[r], mixed[r], nothing, mixed[r], slope, n_inputs, relative, gradients[e])
            if len(mask):
                for n in range(n_samples):
                    for h in range(mask.shape[1]):
                        mask_t[r, n, h] = mask[r, h, n]
        if len(rates):
            for e in range(len(params)):
                if not np.isfinite(losses[e]):
                    return t
            _move(params, rates, gradients)
    return len(weights)


@compiled
def products(vectors, inputs, relative, layers, mixed, curvature, mask, mask_t, out):
    """Hessian products with vectors (E, k, n), from what `expand` wrote, in out (E, k, n)."""
    n_inputs, n_samples = inputs.shape
    n_columns = vectors.shape[1]
    n_classes = curvature.shape[2]
    n_outputs, width = n_classes - relative, layers.shape[2]
    n_pairs = n_outputs * n_inputs
    at_once = max(1, min(n_columns, AT_ONCE // (n_pairs * max(width, n_samples))))
    n_dots = (at_once * n_pairs + 2) // 3 * 3
    v_layers = np.zeros((at_once, n_inputs + n_outputs, width), vectors.dtype)
    weights = np.zeros((n_dots, width), vectors.dtype)
    pulled = np.empty((n_dots, n_samples), vectors.dtype)
    bent = np.empty((at_once, n_outputs, n_samples), vectors.dtype)
    spread = np.zeros((n_dots, n_samples), vectors.dtype)
    pushed = np.empty((n_dots, width), vectors.dtype)
    n_blocks = -(-n_columns // at_once)
    for block in range(len(vectors) * n_blocks):
        e, start = block // n_blocks, block % n_blocks * at_once
        n = min(at_once, n_columns - start)
        for k in range(n):
            _split(vectors[e, start + k], n_inputs, n_classes, relative, v_layers[k])
            for c in range(n_outputs):
                for i in range(n_inputs):
                    row = (k * n_outputs + c) * n_inputs + i
                    for h in range(width):
                        weights[row, h] = (
                            layers[e, n_inputs + c, h] * v_layers[k, i, h]
                            + layers[e, i, h] * v_layers[k, n_inputs + c, h]
                        )
        _masked_dots(mask_t[e], weights, pulled)
        for k in range(n):
            first, end = k * n_pairs, (k + 1) * n_pairs
            _bend(pulled[first:end], inputs, vectors[e, start + k], n_classes, relative, curvature[e], bent[k])
            _spread(bent[k], inputs, n_outputs, spread[first:end])
        _masked_dots(mask[e], spread, pushed)
        for k in range(n):
            rows = pushed[k * n_pairs : (k + 1) * n_pairs]
            _join(layers[e], rows, v_layers[k], mixed[e], bent[k], n_inputs, relative, out[e, start + k])


@rounding_twice
def _move(params, rates, gradients):
    for e in range(len(params)):
        for i in range(params.shape[1]):
            params[e, i] -= rates[e] * gradients[e, i]


@inner
def _split(flat, n_inputs, n_classes, relative, layers):
    """W̃ and U of a flat vector (n,), in `layers`."""
    width = (len(flat) - n_classes) // (n_inputs + n_classes)
    bias, output = width * (n_inputs - 1), width * n_inputs
    for h in range(width):
        for i in range(n_inputs - 1):
            layers[i, h] = flat[h * (n_inputs - 1) + i]
        layers[n_inputs - 1, h] = flat[bias + h]
    last = output + (n_classes - 1) * width
    for c in range(n_classes - relative):
        if relative:
            for h in range(width):
                layers[n_inputs + c, h] = flat[output + c * width + h] - flat[last + h]
        else:
            for h in range(width):
                layers[n_inputs + c, h] = flat[output + c * width + h]


@inner
def _output_bias(flat, c, n_classes, relative):
    own = flat[len(flat) - n_classes + c]
    return own - flat[len(flat) - 1] if relative else own


@inner
def _hidden_unit(layers, h, inputs, as_mask, out):
    """Of hidden unit h for all samples: max(0, W̃ x̃), NaN where W̃ x̃ is, or its mask."""
    n_inputs, n_samples = inputs.shape
    zero, one = out.dtype.type(0), out.dtype.type(1)
    start = layers[n_inputs - 1, h] if n_inputs % 2 else zero  # the bias, unless it is one of a pair
    several = n_inputs > 3
    if several:
        for n in range(n_samples):
            out[n] = start
    for i in range(2, n_inputs - 1, 2):
        w0, w1 = layers[i, h], layers[i + 1, h]
        for n in range(n_samples):
            out[n] += w0 * inputs[i, n] + w1 * inputs[i + 1, n]
    w0, w1 = layers[0, h], layers[1, h]
    for n in range(n_samples):
        before = (out[n] if several else start) + w0 * inputs[0, n] + w1 * inputs[1, n]
        if as_mask:
            out[n] = one if before > zero else zero
        else:
            out[n] = zero if before <= zero else before


@inner
def _forward(flat, inputs, n_classes, relative, layers, active, out):
    """Outputs (class, P); the last row is left alone if `relative`. active (4, P) is room for four hidden units."""
    n_inputs, n_samples = inputs.shape
    n_outputs = n_classes - relative
    for c in range(n_outputs):
        bias = _output_bias(flat, c, n_classes, relative)
        for n in range(n_samples):
            out[c, n] = bias
    if n_inputs <= 3:
        for c in range(0, n_outputs, 2):
            _add_outputs_of_few_inputs(layers, inputs, c, n_outputs, out)
        return
    for h in range(0, layers.shape[1], 4):
        for q in range(4):
            _hidden_unit(layers, h + q, inputs, False, active[q])
        for c in range(n_outputs):
            row = n_inputs + c
            u0, u1, u2, u3 = layers[row, h], layers[row, h + 1], layers[row, h + 2], layers[row, h + 3]
            for n in range(n_samples):
                out[c, n] += u0 * active[0, n] + u1 * active[1, n] + u2 * active[2, n] + u3 * active[3, n]


@inner
def _four(layers, row, h):
    return layers[row, h], layers[row, h + 1], layers[row, h + 2], layers[row, h + 3]


@inner
def _relu(before, zero):
    return zero if before <= zero else before  # NaN stays NaN


@inner
def _add_outputs_of_few_inputs(layers, inputs, c, n_outputs, out):
    """Add to outputs c and c + 1, if there are as many, with hidden units in registers; for one or two inputs.

    `out` is all that the loop over samples writes: with more, the compiler would have to see that too many arrays do
    not overlap, and would not vectorise it.
    """
    n_inputs, n_samples = inputs.shape
    zero, row = out.dtype.type(0), n_inputs + c
    for h in range(0, layers.shape[1], 4):
        w0, w1, w2, w3 = _four(layers, 0, h)
        v0, v1, v2, v3 = _four(layers, 1, h)
        b0, b1, b2, b3 = _four(layers, 2, h) if n_inputs == 3 else (zero, zero, zero, zero)  # for one input, it is v
        u0, u1, u2, u3 = _four(layers, row, h)
        if c + 1 == n_outputs:
            for n in range(n_samples):
                x0, x1 = inputs[0, n], inputs[1, n]
                a0, a1 = _relu(b0 + w0 * x0 + v0 * x1, zero), _relu(b1 + w1 * x0 + v1 * x1, zero)
                a2, a3 = _relu(b2 + w2 * x0 + v2 * x1, zero), _relu(b3 + w3 * x0 + v3 * x1, zero)
                out[c, n] += u0 * a0 + u1 * a1 + u2 * a2 + u3 * a3
        else:
            t0, t1, t2, t3 = _four(layers, row + 1, h)
            for n in range(n_samples):
                x0, x1 = inputs[0, n], inputs[1, n]
                a0, a1 = _relu(b0 + w0 * x0 + v0 * x1, zero), _relu(b1 + w1 * x0 + v1 * x1, zero)
                a2, a3 = _relu(b2 + w2 * x0 + v2 * x1, zero), _relu(b3 + w3 * x0 + v3 * x1, zero)
                out[c, n] += u0 * a0 + u1 * a1 + u2 * a2 + u3 * a3
                out[c + 1, n] += t0 * a0 + t1 * a1 + t2 * a2 + t3 * a3


@inner
def _dots_of_few_inputs(layers, inputs, columns, out):
    """out[j, h] = Σ_n M_nh columns[j, n], with the mask in registers, two units and six j at a time; one or two inputs.

    The last three j of an odd number of threes are computed with the three before them once more.
    """
    n_inputs, n_samples = inputs.shape
    zero = columns.dtype.type(0)
    for h in range(0, layers.shape[1], 2):
        w0, w1, v0, v1 = layers[0, h], layers[0, h + 1], layers[1, h], layers[1, h + 1]
        b0, b1 = (layers[2, h], layers[2, h + 1]) if n_inputs == 3 else (zero, zero)
        for first in range(0, len(columns), 6):
            j = min(first, len(columns) - 6)
            s00 = s01 = s02 = s03 = s04 = s05 = s10 = s11 = s12 = s13 = s14 = s15 = zero
            for n in range(n_samples):
                x0, x1 = inputs[0, n], inputs[1, n]
                on0, on1 = b0 + w0 * x0 + v0 * x1 > zero, b1 + w1 * x0 + v1 * x1 > zero
                y0, y1, y2 = columns[j, n], columns[j + 1, n], columns[j + 2, n]
                y3, y4, y5 = columns[j + 3, n], columns[j + 4, n], columns[j + 5, n]
                s00 += y0 if on0 else zero
                s01 += y1 if on0 else zero
                s02 += y2 if on0 else zero
                s03 += y3 if on0 else zero
                s04 += y4 if on0 else zero
                s05 += y5 if on0 else zero
                s10 += y0 if on1 else zero
                s11 += y1 if on1 else zero
                s12 += y2 if on1 else zero
                s13 += y3 if on1 else zero
                s14 += y4 if on1 else zero
                s15 += y5 if on1 else zero
            out[j, h], out[j + 1, h], out[j + 2, h] = s00, s01, s02
            out[j + 3, h], out[j + 4, h], out[j + 5, h] = s03, s04, s05
            out[j, h + 1], out[j + 1, h + 1], out[j + 2, h + 1] = s10, s11, s12
            out[j + 3, h + 1], out[j + 4, h + 1], out[j + 5, h + 1] = s13, s14, s15


@inner
def _derivatives(slope, targets, weights, form, curvature):
    """The loss; `slope`, outputs (class, P) before, becomes ∂F/∂o, and `curvature` is written."""
    n_classes, padded = slope.shape
    loss, one = slope.dtype.type(0), slope.dtype.type(1)
    share = one / slope.dtype.type(len(targets))
    if form != CROSS_ENTROPY:
        for n in range(padded):
            sample = n < len(targets)
            if sample:
                slope[targets[n], n] -= 1
            for c in range(n_classes):
                weight = share * weights[targets[n] if form == SQUARED_ERROR_BY_SAMPLE else c] if sample else 0
                difference = slope[c, n]
                curvature[0, c, n] = 2 * weight
                curvature[1, c, n] = 0
                slope[c, n] = 2 * weight * difference
                loss += weight * difference**2
        return loss
    rows = np.zeros((3, padded), slope.dtype)
    weight, highest, total = rows[0], rows[1], rows[2]
    for n in range(len(targets)):
        weight[n] = share * weights[targets[n]]
    for n in range(padded):
        slope[n_classes - 1, n] = 0  # the last output, less itself
    for c in range(n_classes - 1):
        for n in range(padded):
            highest[n] = slope[c, n] if slope[c, n] > highest[n] else highest[n]
    _exp_of_difference(slope, highest, curvature)
    for c in range(n_classes):
        for n in range(padded):
            total[n] += curvature[1, c, n]
    for n in range(len(targets)):
        loss += weight[n] * (highest[n] - slope[targets[n], n])
    loss += share * _weighted_logs(total, targets, weights)
    for n in range(padded):
        total[n] = one / total[n]
    for c in range(n_classes - 1):
        for n in range(padded):
            p = curvature[1, c, n] * total[n]
            curvature[1, c, n] = p
            slope[c, n] = curvature[0, c, n] = weight[n] * p
    for n in range(len(targets)):
        slope[targets[n], n] -= weight[n]
    return loss


@inner
def _weighted_logs(total, targets, weights):
    """Σ_n weights[y_n] log total_n, for 1 ≤ total ≤ class: one logarithm for as many factors as do not overflow.

    Four products a class, so that a factor does not wait for the one before it.
    """
    n_classes = len(weights)
    product, summed = np.ones((4, n_classes)), 0.0
    at_once = 4 * max(1, int(700 / np.log(n_classes)))
    for first in range(0, len(targets), at_once):
        for n in range(first, min(first + at_once, len(targets))):
            product[n % 4, targets[n]] *= total[n]
        for q in range(4):
            for c in range(n_classes):
                summed += weights[c] * np.log(product[q, c])
                product[q, c] = 1.0
    return summed


@exactly
def _exp_of_difference(x, highest, curvature):
    """exp(x − highest) ≤ 1 in curvature[1], (class, P), to a unit in the last place; 0 below e^−708.

    2^k e^r with k = round(x / ln 2), |r| ≤ ln 2 / 2 and the `TAYLOR` polynomial of e^r: loops without calls are several
    times as fast as the exponential of the C library.
    """
    shift = 1.5 * 2.0**52  # the last bits of x + shift are those of round(x), unless reordered
    n_samples = x.shape[1]
    shifted, power = np.empty(n_samples), np.empty(n_samples, np.int64)
    bits, powers = shifted.view(np.int64), power.view(np.float64)
    for c in range(len(x)):
        for n in range(n_samples):
            d = np.float64(x[c, n]) - np.float64(highest[n])
            d = -708.0 if d < -708.0 else d
            shifted[n] = d * 1.4426950408889634 + shift
        for n in range(n_samples):
            power[n] = (bits[n] + 1023) << 52
        for n in range(n_samples):
            d = np.float64(x[c, n]) - np.float64(highest[n])
            k = shifted[n] - shift
            r = d - k * 6.93147180369123816490e-01 - k * 1.90821492927058770002e-10
            p = 0.0
            for coefficient in TAYLOR:
                p = p * r + coefficient
            curvature[1, c, n] = 0.0 if d <= -708.0 else p * powers[n]


@inner
def _spread(values, inputs, n_outputs, out):
    """The first n_outputs of values (c, P) times inputs (i, P), in out (c·i, P)."""
    n_inputs, n_samples = inputs.shape
    for c in range(n_outputs):
        for i in range(n_inputs):
            for n in range(n_samples):
                out[c * n_inputs + i, n] = values[c, n] * inputs[i, n]


@inner
def _masked_dots(mask, columns, out):
    """Products out (j, r) of the rows of mask (r, m), int8, with columns (j, m); r in fours, j in threes."""
    block = np.empty((4, mask.shape[1]), columns.dtype)
    for r in range(0, len(mask), 4):
        for q in range(4):
            for m in range(mask.shape[1]):
                block[q, m] = mask[r + q, m]
        _dots(block, columns, r, out)


@inner
def _dots(block, columns, r, out):
    """out[j, r + q] = Σ_m block[q, m] columns[j, m] for q < 4, three j at a time: twelve sums stay in registers."""
    zero = columns.dtype.type(0)
    for j in range(0, len(columns), 3):
        s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = s30 = s31 = s32 = zero
        for m in range(block.shape[1]):
            x0, x1, x2, x3 = block[0, m], block[1, m], block[2, m], block[3, m]
            y0, y1, y2 = columns[j, m], columns[j + 1, m], columns[j + 2, m]
            s00 += x0 * y0
            s01 += x0 * y1
            s02 += x0 * y2
            s10 += x1 * y0
            s11 += x1 * y1
            s12 += x1 * y2
            s20 += x2 * y0
            s21 += x2 * y1
            s22 += x2 * y2
            s30 += x3 * y0
            s31 += x3 * y1
            s32 += x3 * y2
        out[j, r], out[j + 1, r], out[j + 2, r] = s00, s01, s02
        out[j, r + 1], out[j + 1, r + 1], out[j + 2, r + 1] = s10, s11, s12
        out[j, r + 2], out[j + 1, r + 2], out[j + 2, r + 2] = s20, s21, s22
        out[j, r + 3], out[j + 1, r + 3], out[j + 2, r + 3] = s30, s31, s32


@inner
def _bend(pulled, inputs, vector, n_classes, relative, curvature, out):
    """∂²F/∂o∂o on the changes of the outputs, Σ_i x̃_i pulled_ci plus those of the bias, in out (c, P)."""
    n_inputs, n_samples = inputs.shape
    mean = np.zeros(n_samples, out.dtype)
    for c in range(len(out)):
        bias = _output_bias(vector, c, n_classes, relative)
        for n in range(n_samples):
            out[c, n] = bias
        for i in range(n_inputs):
            row = c * n_inputs + i
            for n in range(n_samples):
                out[c, n] += pulled[row, n] * inputs[i, n]
        for n in range(n_samples):
            mean[n] += curvature[1, c, n] * out[c, n]
    for c in range(len(out)):
        for n in range(n_samples):
            out[c, n] = curvature[0, c, n] * (out[c, n] - mean[n])


@inner
def _join(layers, pushed, v_layers, mixed, bent, n_inputs, relative, out):
    """The flat vector of U T + V2 Q (i, h), W̃ T + V1 Q (c, h) and Σ_n bent, with T `pushed`."""
    n_outputs = len(layers) - n_inputs
    n_classes = n_outputs + relative
    width = (len(out) - n_classes) // (n_inputs + n_classes)
    total = np.empty(layers.shape[1], out.dtype)
    for i in range(n_inputs):
        for h in range(len(total)):
            total[h] = 0
        for c in range(n_outputs):
            j, u = c * n_inputs + i, n_inputs + c
            for h in range(len(total)):
                total[h] += layers[u, h] * pushed[j, h] + v_layers[u, h] * mixed[j, h]
        stride, start = (n_inputs - 1, i) if i < n_inputs - 1 else (1, width * i)
        for h in range(width):
            out[start + h * stride] = total[h]
    last, bias = width * (n_inputs + n_classes - 1), len(out) - n_classes
    if relative:
        for h in range(width):
            out[last + h] = 0
        out[len(out) - 1] = 0
    for c in range(n_outputs):
        for h in range(len(total)):
            total[h] = 0
        for i in range(n_inputs):
            j = c * n_inputs + i
            for h in range(len(total)):
                total[h] += layers[i, h] * pushed[j, h] + v_layers[i, h] * mixed[j, h]
        summed = out.dtype.type(0)
        for n in range(bent.shape[1]):
            summed += bent[c, n]
        out[bias + c] = summed
        start = width * (n_inputs + c)
        for h in range(width):
            out[start + h] = total[h]
        if relative:
            out[len(out) - 1] -= summed
            for h in range(width):
                out[last + h] -= total[h]
