"""Top eigenpairs of many symmetric operators at once, by Lanczos with full reorthogonalisation and residual control.

What each operator does next is written as a generator for that operator alone; the work on long vectors, products and
reorthogonalisation, is done for all of a `Batch` together, so that it costs few calls. A single-vector Krylov space
sees a repeated eigenvalue only once: `landscape.certificate` says how missing copies are found.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from landscape.basis import Basis, Batch
from landscape.certificate import Probe, counts_hold

PROBE_STEPS = 32  # of the first probe that gives up; each further one may take twice as many
FIRST_CHECK = 8  # Ritz pairs of interest need about that many products; each check costs an eigh
SCALE_FLOOR = 1e-3  # residuals are relative to max(|θ_i|, this · max_j |θ_j|)


@dataclass(frozen=True)
class Settings:
    """What is asked of `top_ritz_pairs`; `accuracy` and `failure` are those of the certificate."""

    k: int
    tol: float
    certify: bool
    accuracy: float  # ε: λ_i lies within [θ_i, θ_i + ε·σ_i]
    failure: float  # probability that a certificate is wrong
    max_products: int


@dataclass(frozen=True)
class RitzPairs:
    """The k largest Ritz pairs of one operator, largest first."""

    values: np.ndarray  # (k,)
    vectors: torch.Tensor  # (k, n)
    errors: np.ndarray  # (k,), ‖Av − θv‖
    residuals: np.ndarray  # (k,), the same relative to the scale of θ
    gaps: np.ndarray  # (k,), to the next smaller Ritz value; NaN where there is none
    converged: np.ndarray  # (k,), bool
    certified: bool
    n_products: int


def top_ritz_pairs(
    linearize: Callable[[list[int]], Callable], like: torch.Tensor, rngs: list, settings: Settings
) -> list[RitzPairs]:
    """The k algebraically largest eigenpairs of each of E operators, with their true residuals, converged or not.

    Parameters
    ----------
    linearize : callable
        ``linearize(rows)`` gives the product (len(rows), n) → (len(rows), n) of the operators of these rows. It is
        asked again, for those still running, whenever half of them have finished: a product for few is cheaper than
        one for all.
    like : torch.Tensor
        Vectors have its last dim n, its type and device.
    rngs : list of numpy.random.Generator
        One an operator; what it finds does not depend on the others.
    settings : Settings
        What is asked; pairs of operators whose products are not finite are NaN.
    """
    batch = Batch(len(rngs), like, min(like.shape[-1], settings.max_products))
    bases = [Basis(batch, row, rng) for row, rng in enumerate(rngs)]
    searches = {row: _search(basis, settings) for row, basis in enumerate(bases)}
    results: list = [None] * len(rngs)
    vectors = torch.stack([next(search) for search in searches.values()])
    while searches:
        members = list(searches)
        batch.keep([bases[member].row for member in members])
        for row, member in enumerate(members):
            bases[member].row = row
        product = linearize(members)
        while 2 * len(searches) > len(members):
            vectors, norms = batch.extend(vectors, product(vectors))
            for row, member in enumerate(members):
                if member not in searches:
                    continue
                try:
                    restart = searches[member].send(float(norms[row]))
                    if restart is not None:
                        vectors[row] = restart
                except StopIteration as stop:
                    results[member] = stop.value
                    del searches[member]
        vectors = vectors[[row for row, member in enumerate(members) if member in searches]]
    return results


Search = Generator[torch.Tensor | None, float, RitzPairs]
"""Yields the unit vector to go on with, None for what lay outside of the last product; receives the norm of that."""


def _search(basis: Basis, settings: Settings) -> Search:
    """The steps of one operator, from a random start to its pairs."""
    failure, n_probe_steps = settings.failure, PROBE_STEPS
    while True:
        pairs, values = yield from _converge(basis, settings)
        if pairs is None:
            return _nothing(basis, settings.k)
        good = settings.certify and bool(pairs.converged.all())
        if not good or not basis.room:
            return _finished(pairs, good and basis.size == basis.n, basis.size)
        failure /= 2  # so that the failures of all probes add up to less than what was asked
        if (yield from _probe(basis, values, settings, failure, n_probe_steps)):
            return _finished(pairs, True, basis.size)
        n_probe_steps *= 2


def _converge(basis: Basis, settings: Settings):
    """Extend the basis until the k Ritz pairs have small residuals or no room is left.

    Returns the pairs and all Ritz values; None where a product was not finite.
    """
    k, norm = settings.k, np.inf
    krylov = basis.size == 0  # whether each vector came out of the product before it
    vector = basis.random_vector() if krylov else None
    while True:
        exhausted = norm <= basis.noise() if basis.size else False
        if basis.size >= k and (exhausted or not krylov or not basis.room or basis.size >= FIRST_CHECK):
            values, y = _ritz(basis.T)
            # In a Krylov space norm · |last coefficient| is the residual: the true one is spared while it is too large.
            if not krylov or not basis.room or (norm * abs(y[-1, :k]) <= settings.tol * scales(values, k)).all():
                pairs, block = _pairs(basis, values, y[:, :k], settings)
                if pairs.converged.all() or not basis.room:
                    return pairs, values
                if not krylov:
                    # What a product left outside is one direction among several there: go on along the worst residual.
                    vector = basis.outside(basis.outside(block[pairs.residuals.argmax()]))
        if exhausted and vector is None:  # an invariant subspace: what lies outside is found only from outside
            vector, krylov = basis.random_vector(), False
        norm = yield vector
        vector = None
        if not np.isfinite(norm):
            return None, None


def scales(values: np.ndarray, k: int) -> np.ndarray:
    """σ_i = max(|θ_i|, 1e-3 · max_j |θ_j|), to which residuals are relative; 1 for a zero operator."""
    largest = max(abs(values[0]), abs(values[-1]))
    return np.maximum(np.abs(values[:k]), SCALE_FLOOR * largest) if largest > 0 else np.ones(k)


def _probe(basis: Basis, values: np.ndarray, settings: Settings, failure: float, n_steps: int):
    """Whether the k pairs are certified but for a probability `failure`; the probe's vectors stay in the basis."""
    k, m, noise = settings.k, basis.size, basis.noise()
    accuracies = settings.accuracy * scales(values, k)
    probe = Probe(values, k, accuracies[-1], noise)
    limit, tried, gram = failure / np.sqrt(2 * basis.n / np.pi), np.inf, None
    vector = basis.random_vector()
    while basis.room and probe.n_steps < n_steps:
        norm = yield vector
        vector = None
        if not np.isfinite(norm):
            return False
        ended = norm <= noise
        probe.step(basis.T[-1, -1], 0.0 if ended else norm)
        if probe.copy_missing:
            return False
        mu = probe.bound(limit)
        if mu is not None and mu < tried:
            # What is certified are the pairs of the basis before the probe, whose residuals were found small.
            gram = basis.gram(m) if gram is None else gram
            if counts_hold(basis.T[:m, :m], gram, mu, values[:k] + accuracies):
                return True
            tried = mu
        if ended:
            return False
    return False


def _pairs(
    basis: Basis, values: np.ndarray, coefficients: np.ndarray, settings: Settings
) -> tuple[RitzPairs, torch.Tensor]:
    """Ritz pairs and their true residual vectors (k, n), from all Ritz values and coefficients (m, k)."""
    k, y = settings.k, basis.like(coefficients.T)
    vectors = y @ basis.vectors
    block = y @ basis.products - basis.like(values[:k, None]) * vectors
    errors = torch.linalg.vector_norm(block, dim=-1).double().cpu().numpy()
    residuals = errors / scales(values, k)
    gaps = values[:k] - np.append(values, np.nan)[1 : k + 1]
    pairs = RitzPairs(values[:k], vectors, errors, residuals, gaps, residuals <= settings.tol, False, basis.size)
    return pairs, block


def _ritz(T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values, largest first, and the coefficients of their vectors as columns."""
    values, coefficients = np.linalg.eigh(T)
    return values[::-1], coefficients[:, ::-1]


def _finished(pairs: RitzPairs, certified: bool, n_products: int) -> RitzPairs:
    vectors = pairs.vectors / torch.linalg.vector_norm(pairs.vectors, dim=-1, keepdim=True)
    return replace(pairs, vectors=vectors, certified=certified, n_products=n_products)


def _nothing(basis: Basis, k: int) -> RitzPairs:
    nan = np.full(k, np.nan)
    vectors = basis.vectors.new_full((k, basis.n), torch.nan)
    return RitzPairs(nan, vectors, nan, nan, nan, np.zeros(k, bool), False, basis.size)
