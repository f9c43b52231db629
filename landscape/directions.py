"""Directions in the space of parameters along which the loss is sliced, each a Dataset that says what its axes are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from landscape.params import ParamLayout

NORMALISATIONS = ("filter", "layer", "none")

BLOCK_BYTES = 2**26
"""Bytes of a trajectory in memory at a time."""

LARGEST_GRAM = 8192
"""States or parameters, whichever are fewer, for which the matrix of all inner products is held: half a gigabyte."""


def eigenvector_directions(eigs: xr.Dataset, modes: Sequence[int] = (0, 1)) -> xr.Dataset:
    """Eigenvectors of one step as directions.

    Parameters
    ----------
    eigs : xarray.Dataset
        One step of what `top_eigenpairs` returns, e.g. ``eigs.sel(step=9050)``.
    modes : sequence of int
        Modes to take, 0 being the largest eigenvalue.

    Returns
    -------
    xarray.Dataset
        ``direction`` (axis, param), ``length`` (axis) and ``eigenvalue`` (axis), with the names ``axis_name`` (axis);
        attrs as of every function of this module: ``kind``; ``unit`` and ``orthogonal``, 1 where all lengths are 1 and
        all cosines 0 to 1e-6; ``largest_overlap``, the largest |cosine| of two of them.

    Raises
    ------
    ValueError
        If `eigs` holds several steps, or not these modes.
    """
    if "step" in eigs.dims:
        raise ValueError("directions are those of one step, e.g. eigs.sel(step=9050); this has a dim step")
    missing = [mode for mode in modes if mode not in eigs.mode.values]
    if missing:
        raise ValueError(f"eigs holds modes {eigs.mode.values.tolist()}, not {missing}")
    pairs = eigs.sel(mode=list(modes))
    vectors = pairs.eigenvector.transpose("mode", "param").values
    names = [f"v{mode + 1}" for mode in modes]
    extra = {"eigenvalue": ("axis", pairs.eigenvalue.values)}
    return _directions(vectors, names, {"kind": "eigenvector", "step": int(eigs.step)}, **extra)


def random_directions(
    checkpoint: xr.Dataset,
    n_axes: int = 2,
    *,
    normalisation: str = "filter",
    with_biases: bool = False,
    seed: int = 0,
    layout: ParamLayout | None = None,
) -> xr.Dataset:
    """Gaussian directions, scaled as the parameters are (Li et al. 2018, arXiv 1712.09913).

    With normalisation "filter", each filter (what leads to one output of a linear or convolutional layer: a slice along
    the first axis of a tensor) has the norm of the same filter of θ; with "layer", each tensor has that of the same
    tensor. So a step of ``length`` changes every filter, or tensor, by its own size.

    Parameters
    ----------
    checkpoint : xarray.Dataset
        One row of checkpoints: ``params`` (param).
    n_axes : int
        Number of directions.
    normalisation : str
        "filter", "layer" or "none".
    with_biases : bool
        Whether tensors of fewer than two axes move too: biases, and the parameters of norm layers.
    seed : int
        Of the random numbers.
    layout : ParamLayout, optional
        Of the tensors in θ; that of the checkpoint's attrs by default.

    Returns
    -------
    xarray.Dataset
        ``direction`` (axis, param), neither of unit length nor made orthogonal, and ``length`` (axis); see
        `eigenvector_directions` for the attrs, which also hold ``normalisation``, ``with_biases`` and ``seed``.

    Raises
    ------
    ValueError
        If the checkpoint has several rows, there is no layout, or no parameter would move.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")
    if n_axes < 1:
        raise ValueError(f"n_axes must be at least 1, got {n_axes}")
    params = _one_row(checkpoint)
    if layout is None:
        if "layout" not in checkpoint.attrs:
            raise ValueError("the checkpoint's attrs hold no layout of its tensors; give layout=objective.layout")
        layout = ParamLayout.from_json(checkpoint.attrs["layout"])
    if layout.n_params != len(params):
        raise ValueError(f"the layout has {layout.n_params} parameters, the checkpoint {len(params)}")
    directions = np.random.default_rng(seed).standard_normal((n_axes, len(params)))
    for start, shape, size in zip(layout.offsets, layout.shapes, layout.sizes, strict=True):
        part = slice(start, start + size)
        if len(shape) < 2 and not with_biases:
            directions[:, part] = 0
        elif normalisation != "none":
            n_groups = shape[0] if normalisation == "filter" and shape else 1
            drawn, own = directions[:, part].reshape(n_axes, n_groups, -1), params[part].reshape(n_groups, -1)
            norms = np.linalg.norm(drawn, axis=-1, keepdims=True)
            drawn *= np.linalg.norm(own, axis=-1)[:, None] / np.where(norms > 0, norms, 1)
    if not directions.any():
        raise ValueError(
            "no parameter would move: all tensors have one axis (with_biases=True moves them), or are zero"
        )
    attrs = {"kind": "random", "normalisation": normalisation, "with_biases": int(with_biases), "seed": seed}
    return _directions(directions, [f"d{i + 1}" for i in range(n_axes)], attrs)


def pca_directions(checkpoints: xr.Dataset, n_axes: int = 2, *, center: str = "mean") -> xr.Dataset:
    """Principal axes of a trajectory: the orthonormal directions along which its states scatter most.

    Parameters
    ----------
    checkpoints : xarray.Dataset
        ``params`` (step, param), at least `n_axes` + 1 rows.
    n_axes : int
        Number of directions.
    center : str
        About what the scatter is: "mean", as in principal component analysis, or "last", the last state, as Li et al.
        (2018) do.

    Returns
    -------
    xarray.Dataset
        ``direction`` (axis, param), orthonormal, the first the longest; ``explained_variance`` (axis), its share of the
        scatter Σ_t ‖θ_t − center‖²; ``center`` (param), where `plane_slice` puts the plane. The entry of each direction
        that is largest in magnitude is positive.

    Raises
    ------
    ValueError
        If there are too few rows, the states do not span `n_axes` dimensions, or hold NaN or inf.
    """
    if center not in ("mean", "last"):
        raise ValueError(f'center must be "mean" or "last", got {center!r}')
    states = checkpoints.params.transpose("step", "param") if "step" in checkpoints.dims else None
    if n_axes < 1 or states is None or states.sizes["step"] < n_axes + 1:
        raise ValueError(f"pca_directions with n_axes={n_axes} needs at least {max(1, n_axes) + 1} checkpoints")
    middle = states[-1].values.astype(float) if center == "last" else _mean(states)
    if not np.isfinite(middle).all():
        raise ValueError("checkpoints hold NaN or inf; leave those rows out, e.g. with isel(step=…)")
    variances, vectors = _principal_axes(states, middle, n_axes)
    total = variances.sum()
    if not variances[n_axes - 1] > 1e-12 * total:
        raise ValueError(f"the states scatter along fewer than {n_axes} directions; ask for fewer n_axes")
    vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1))
    extra = {"explained_variance": ("axis", variances[:n_axes] / total), "center": ("param", middle)}
    names = [f"PC {i + 1}" for i in range(n_axes)]
    return _directions(vectors, names, {"kind": "pca", "pca_center": center}, **extra)


def interpolation_directions(checkpoints: xr.Dataset) -> xr.Dataset:
    """The line through two checkpoints, or the plane through three.

    Parameters
    ----------
    checkpoints : xarray.Dataset
        ``params`` (step, param), two or three rows, of one run or of several.

    Returns
    -------
    xarray.Dataset
        ``direction`` (axis, param), orthonormal, the first from the first checkpoint to the second; ``center`` (param),
        the mean of the checkpoints, where `line_slice` and `plane_slice` put the origin; ``point`` (point, axis), the
        coordinates of the checkpoints; ``distance`` (axis), from the first checkpoint to each of the others.

    Raises
    ------
    ValueError
        If there are not two or three rows, or they lie on one point or, of three, on one line.
    """
    n_points = checkpoints.sizes.get("step", 1)
    if n_points not in (2, 3):
        raise ValueError(f"interpolation_directions needs two or three checkpoints, got {n_points}")
    states = checkpoints.params.transpose("step", "param").values.astype(float)
    sides = states[1:] - states[0]
    distances = np.linalg.norm(sides, axis=1)
    vectors, triangle = np.linalg.qr(sides.T)
    heights = np.abs(np.diag(triangle))
    if not (heights > 1e-12 * max(distances.max(), np.finfo(float).tiny)).all():
        raise ValueError("these checkpoints lie on one point, or three of them on one line")
    vectors = (vectors * np.sign(np.diag(triangle))).T
    middle = states.mean(axis=0)
    extra = {
        "center": ("param", middle),
        "point": (("point", "axis"), (states - middle) @ vectors.T),
        "distance": ("axis", distances),
    }
    names = ["the line 1 to 2", "its normal to 3"][: n_points - 1]
    return _directions(vectors, names, {"kind": "interpolation"}, **extra)


def _directions(vectors: np.ndarray, names: Sequence[str], attrs: dict, **extra) -> xr.Dataset:
    """The Dataset, with what can be said of all directions."""
    vectors = np.asarray(vectors, dtype=float)
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors @ vectors.T / np.outer(lengths, lengths)
    overlap = float(np.abs(cosines - np.diag(np.diag(cosines))).max())
    attrs |= {"unit": int(np.abs(lengths - 1).max() < 1e-6), "orthogonal": int(overlap < 1e-6)}
    return xr.Dataset(
        {"direction": (("axis", "param"), vectors), "length": ("axis", lengths), **extra},
        {"axis_name": ("axis", np.array(names))},
        attrs | {"largest_overlap": overlap},
    )


def _one_row(checkpoint: xr.Dataset) -> np.ndarray:
    if "step" in checkpoint.dims:
        raise ValueError("directions belong to one checkpoint, e.g. checkpoints.sel(step=9050); this has a dim step")
    return checkpoint.params.values.astype(float)


def _mean(states: xr.DataArray) -> np.ndarray:
    size = max(1, BLOCK_BYTES // (8 * states.sizes["param"]))
    total = sum(states[start : start + size].values.sum(0, dtype=float) for start in range(0, len(states), size))
    return total / len(states)


def _principal_axes(states: xr.DataArray, middle: np.ndarray, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """All variances, the largest first, and the first `n_axes` unit vectors (axis, param)."""
    n_states, n_params = states.shape
    if min(n_states, n_params) > LARGEST_GRAM:
        raise ValueError(
            f"{n_states} states of {n_params} parameters are too many; take every k-th, isel(step=slice(None, None, k))"
        )
    by_state = n_states < n_params
    width = max(1, BLOCK_BYTES // (8 * (n_states if by_state else n_params)))
    if by_state:  # the columns a block at a time: states[:, part]
        parts = [slice(start, start + width) for start in range(0, n_params, width)]

        def moved(part):
            return states[:, part].values.astype(float) - middle[part]

        variances, weights = _eigh(sum(block @ block.T for block in map(moved, parts)))
        vectors = np.concatenate([weights[:, :n_axes].T @ moved(part) for part in parts], axis=1)
        # The states' own combinations; QR leaves their directions and mends what rounding took of the right angles.
        vectors, triangle = np.linalg.qr(vectors.T)
        return variances, (vectors * np.where(np.diag(triangle) < 0, -1, 1)).T
    rows = (states[start : start + width].values.astype(float) - middle for start in range(0, n_states, width))
    variances, vectors = _eigh(sum(block.T @ block for block in rows))
    return variances, vectors[:, :n_axes].T


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(gram).all():
        raise ValueError("checkpoints hold NaN or inf; leave those rows out, e.g. with isel(step=…)")
    variances, vectors = np.linalg.eigh(gram)
    return np.maximum(variances[::-1], 0), vectors[:, ::-1]
