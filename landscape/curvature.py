"""Which symmetric matrix describes the curvature: Hessian or Gauss–Newton, whole or in part, preconditioned or not."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
import xarray as xr

from landscape.checkpoints import batches, matched

BATCH_BYTES = 2**21
"""A batch of checkpoints works on so much memory at a time: about what stays in a core's cache."""

VECTORS_EACH = 24
"""Vectors that an iterative method holds for each checkpoint, as the certified eigenpairs of two modes do."""


class Curvature:
    """The matrix at each row of `checkpoints`, as a product with vectors of its n coordinates.

    Parameters
    ----------
    objective : landscape.Objective
        The loss F(θ, t).
    checkpoints : xarray.Dataset
        ``params`` (step, param), or one row of it; ``second_moment`` (step, param) too if preconditioned.
    matrix : {"hessian", "gauss_newton"}
        ∇²F, or Jᵀ(∂²F/∂o∂o)J with the Jacobian J of the outputs o: positive semidefinite where the loss is convex in o.
    parameters : str or sequence of str, optional
        Restrict the matrix to the tensors whose names match one of these patterns, as ``"layer1.*"``.
    preconditioned : bool
        P^(−1/2) A P^(−1/2) with the P = diag(√ν̂ + ε) by which Adam or RMSProp divides its update at that step (Cohen
        et al. 2022, arXiv 2207.14484). ν includes the gradient of the step itself, taken over all samples.

    Raises
    ------
    ValueError
        For checkpoints of another model, an unknown matrix, patterns that match nothing, or checkpoints without the
        state of an adaptive optimiser.
    """

    def __init__(self, objective, checkpoints: xr.Dataset, matrix="hessian", parameters=None, preconditioned=False):
        self.objective, self.checkpoints = objective, checkpoints = matched(objective, checkpoints)
        if matrix not in ("hessian", "gauss_newton"):
            raise ValueError(f'matrix must be "hessian" or "gauss_newton", got {matrix!r}')
        self._linearize = objective.linearize if matrix == "hessian" else objective.gauss_newton
        self.chosen = None if parameters is None else _chosen(objective.layout, parameters)
        self.n = objective.n_params if self.chosen is None else len(self.chosen)
        self.preconditioned = preconditioned
        if preconditioned:
            _check_preconditioner(self.checkpoints)
        self.attrs = {"matrix": matrix, "preconditioned": preconditioned}
        if parameters is not None:
            self.attrs["parameters"] = parameters if isinstance(parameters, str) else list(parameters)

    def batch_rows(self) -> int:
        """Checkpoints that share a product, so many that what is worked on stays in cache."""
        itemsize = torch.finfo(self.objective.dtype).bits // 8
        room = BATCH_BYTES if self.objective.device.type == "cpu" else 64 * BATCH_BYTES
        return int(np.clip(room // (VECTORS_EACH * self.n * itemsize), 1, 64))

    def batches(self, size: int | None, label: str, start: int = 0) -> Iterator[CurvatureBatch]:
        """The matrices of `size` rows at a time, from row `start` on, with a progress bar `label` on a terminal."""
        remaining = self.checkpoints.isel(step=slice(start, None))
        for steps, params in batches(remaining, self.objective, size or self.batch_rows(), label):
            scale = None
            if self.preconditioned:
                moments = self.checkpoints.second_moment.isel(step=slice(start, start + len(steps))).values
                scale = self._scale(params, steps, self.objective.as_params(moments))
            yield CurvatureBatch(self, steps, params, scale)
            start += len(steps)

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (…, n) of the matrix as vectors (…, param), zero elsewhere."""
        if self.chosen is None:
            return vectors
        full = np.zeros((*vectors.shape[:-1], self.objective.n_params), vectors.dtype)
        full[..., self.chosen.cpu().numpy()] = vectors
        return full

    def extract(self, vectors: np.ndarray) -> np.ndarray:
        """The entries (…, n) of vectors (…, param) that the matrix acts on."""
        return vectors if self.chosen is None else vectors[..., self.chosen.cpu().numpy()]

    def _scale(self, params: torch.Tensor, steps: np.ndarray, moments: torch.Tensor) -> torch.Tensor:
        """P^(−1/2) (E, param); a row of moments is ν before the update at its step, which the gradient enters."""
        attrs = self.checkpoints.attrs
        adam = attrs["optimizer"] == "adam"
        decay = float(attrs["beta2" if adam else "alpha"])
        moments = decay * moments + (1 - decay) * self.objective.gradient(params, steps) ** 2
        if adam:
            moments = moments / (1 - decay ** torch.as_tensor(steps + 1).to(moments))[:, None]
        return (moments.sqrt() + float(attrs["epsilon"])).rsqrt()


@dataclass(frozen=True)
class CurvatureBatch:
    """The matrices of a few checkpoints."""

    curvature: Curvature
    steps: np.ndarray  # (E,)
    params: torch.Tensor  # (E, param)
    scale: torch.Tensor | None  # (E, param), P^(−1/2)

    @property
    def like(self) -> torch.Tensor:
        """A tensor (E, n) of the type and device of the vectors."""
        return self.params if self.curvature.chosen is None else self.params[:, : self.curvature.n]

    def linearize(self, rows: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product of these rows' matrices: (len(rows), n) or (len(rows), k, n) → the same shape."""
        rows = list(rows)
        product = self.curvature._linearize(self.params[rows], self.steps[rows])
        chosen, scale = self.curvature.chosen, None if self.scale is None else self.scale[rows]
        if chosen is None and scale is None:
            return product

        def restricted(vectors: torch.Tensor) -> torch.Tensor:
            full, factor = vectors, None if scale is None else scale.reshape(len(rows), *[1] * (vectors.ndim - 2), -1)
            if chosen is not None:
                full = vectors.new_zeros((*vectors.shape[:-1], self.params.shape[-1]))
                full[..., chosen] = vectors
            full = product(full if factor is None else factor * full)
            full = full if factor is None else factor * full
            return full if chosen is None else full[..., chosen]

        return restricted


def _chosen(layout, parameters: str | Sequence[str]) -> torch.Tensor:
    """Positions in θ of the tensors whose names match; every pattern must match one."""
    patterns = [parameters] if isinstance(parameters, str) else list(parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layout.names):
            near = difflib.get_close_matches(pattern, layout.names, n=3, cutoff=0.3) or list(layout.names[:3])
            raise ValueError(f"no parameter matches {pattern!r}; names are like {', '.join(near)}")
    spans = zip(layout.names, layout.offsets, layout.sizes, strict=True)
    parts = [torch.arange(at, at + n) for name, at, n in spans if any(fnmatchcase(name, p) for p in patterns)]
    chosen = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    if not len(chosen):
        raise ValueError("parameters names no tensor; give a pattern such as 'layer1.*', or leave it out")
    return chosen


def _check_preconditioner(checkpoints: xr.Dataset) -> None:
    attrs: Mapping = checkpoints.attrs
    needed = {"adam": ("beta2", "epsilon"), "rmsprop": ("alpha", "epsilon")}.get(attrs.get("optimizer"))
    if needed is None:
        raise ValueError(
            f"optimizer {attrs.get('optimizer')!r} has no preconditioner; preconditioned curvature needs checkpoints "
            "of adam or rmsprop"
        )
    missing = [name for name in needed if name not in attrs]
    if missing or "second_moment" not in checkpoints:
        lacking = ", ".join([*missing, *(["second_moment"] if "second_moment" not in checkpoints else [])])
        raise ValueError(
            f"the checkpoints lack {lacking}; save the optimiser's second moment beside θ (RunWriter, optimizer_state=)"
        )
