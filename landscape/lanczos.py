"""Top eigenpairs of symmetric operators by Lanczos with full reorthogonalisation, residual control and a certificate.

The algorithm is written for one operator, as a generator that yields a vector and receives its product; `run_together`
drives many such generators in step, so that one batched product serves all of them.

The certificate (multiplicities included). With an orthonormal basis V, T = VᵀAV, R = AV − VT, and μ ≥ the largest
eigenvalue of A on the complement of V, the number of eigenvalues of A above τ > μ is at most that of
T + RᵀR/(τ − μ) (Schur complement and inertia). The bound μ comes from a *probe*: Lanczos on the complement from a
fresh Gaussian vector r. An eigenvector u of the complement with an eigenvalue ≥ μ, above the probe's Ritz values, obeys
|⟨r, u⟩|/‖r‖ ≤ κ(μ) = (Σ_j π_j(μ)²)^(−1/2) with the probe's orthonormal polynomials π_j, which for a random direction
in n dimensions has probability at most √(2n/π)·κ(μ). Without the probe a repeated eigenvalue is seen only once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch

PROBE_STEPS = 32  # of the first probe that gives up; each further one may take twice as many
FIRST_CHECK = 6  # Ritz pairs of interest need more products than that; each check costs an eigh
STEPS_BETWEEN_PROBES = 4
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
    residuals: np.ndarray  # (k,), relative
    gaps: np.ndarray  # (k,), to the next smaller Ritz value; NaN where there is none
    converged: np.ndarray  # (k,), bool
    certified: bool
    n_products: int


class Basis:
    """Orthonormal vectors q_j, their products A q_j, and T_ij = ⟨q_i, A q_j⟩."""

    def __init__(self, like: torch.Tensor, capacity: int, rng: np.random.Generator):
        self.n, self.like, self.rng = like.shape[-1], like, rng
        self.size = self.n_products = 0
        self.T = np.zeros((capacity, capacity))
        self.vectors = like.new_empty((min(capacity, 32), self.n))
        self.products = torch.empty_like(self.vectors)

    @property
    def full(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size == self.n

    @property
    def room(self) -> int:
        """How many vectors may still join."""
        return len(self.T) - self.size

    def random_vector(self) -> torch.Tensor:
        """A unit vector of uniform direction in the complement of the basis."""
        draw = torch.from_numpy(self.rng.standard_normal(self.n)).to(self.like)
        vector, _, norm = self.orthogonalise(draw / draw.norm())
        # The complement of an almost full basis leaves little of the draw: once more restores orthogonality.
        return self.orthogonalise(vector / norm)[0]

    def orthogonalise(self, vector: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, float]:
        """The part of `vector` outside the span, its coefficients inside, and the norm of the part outside."""
        Q = self.vectors[: self.size]
        coefficients = Q @ vector
        vector = vector - coefficients @ Q
        second = Q @ vector  # one pass loses orthogonality where most of the vector lies inside; two do not
        vector = vector - second @ Q
        return vector, (coefficients + second).double().cpu().numpy(), float(vector.norm())

    def extend(self, vector: torch.Tensor) -> Generator[torch.Tensor, torch.Tensor, tuple[torch.Tensor, float]]:
        """Add a unit `vector` and its product; returns what of the product lies outside the span, and its norm."""
        vector = vector / vector.norm()
        product = yield vector
        self.n_products += 1
        m = self.size
        if m == len(self.vectors):
            grow = self.like.new_empty((min(m, len(self.T) - m), self.n))
            self.vectors, self.products = torch.cat([self.vectors, grow]), torch.cat([self.products, grow])
        self.vectors[m], self.products[m] = vector, product
        self.size = m + 1
        remainder, column, norm = self.orthogonalise(product)
        self.T[: m + 1, m] = self.T[m, : m + 1] = column
        return remainder, norm

    def ritz(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values, largest first, and the coefficients (m, k) of the first k Ritz vectors."""
        values, coefficients = np.linalg.eigh(self.T[: self.size, : self.size])
        return values[::-1], coefficients[:, ::-1][:, :k]

    def lift(self, coefficients: np.ndarray) -> torch.Tensor:
        """Vectors (k, n) from their coefficients (m, k)."""
        return self._like(coefficients.T) @ self.vectors[: self.size]

    def residual_norms(self, values: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """True residuals ‖A V y_i − θ_i V y_i‖ of k Ritz pairs."""
        y = self._like(coefficients.T)
        k = coefficients.shape[1]
        residuals = y @ self.products[: self.size] - self._like(values[:k, None]) * (y @ self.vectors[: self.size])
        return residuals.norm(dim=-1).double().cpu().numpy()

    def residual_block(self) -> torch.Tensor:
        """R = AV − VT as rows (m, n)."""
        m = self.size
        return self.products[:m] - self._like(self.T[:m, :m]) @ self.vectors[:m]

    @property
    def scale(self) -> float:
        """A lower bound of the norm of A, as seen so far."""
        return float(np.abs(self.T[: self.size, : self.size]).max())

    def noise(self, scale: float) -> float:
        """Norm below which what is left of a product is rounding."""
        return 8 * self.n**0.5 * torch.finfo(self.like.dtype).eps * scale

    def _like(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self.like)


def scales(values: np.ndarray, k: int) -> np.ndarray:
    """σ_i = max(|θ_i|, 1e-3 · max_j |θ_j|), to which residuals are relative; 1 for a zero operator."""
    largest = np.abs(values).max()
    return np.maximum(np.abs(values[:k]), SCALE_FLOOR * largest) if largest > 0 else np.ones(k)


def top_ritz_pairs(like: torch.Tensor, settings: Settings, rng: np.random.Generator):
    """Generator of the k algebraically largest eigenpairs: yields unit vectors (n,), receives their products.

    It returns `RitzPairs`: all k, with their true residuals, converged or not. Non-finite products give NaN.
    """
    basis = Basis(like, min(like.shape[-1], settings.max_products), rng)
    certified, failure, vector = False, settings.failure, basis.random_vector()
    n_probe_steps = PROBE_STEPS
    while True:
        finite = yield from _converge(basis, vector, settings)
        if not finite:
            return _nothing(like, settings.k, basis.n_products)
        if settings.certify and basis.room:
            failure /= 2  # so that the failures of all probes add up to less than what was asked
            certified = yield from _probe(basis, settings, failure, n_probe_steps)
            n_probe_steps *= 2
        if certified or not settings.certify or not basis.room:
            return _result(basis, settings, certified or basis.full)
        # The probe's vectors have joined the basis; go on where most of A's action on it is still outside.
        outside = basis.residual_block()
        # A residual is outside only up to rounding of the products, much where the residual is small.
        vector, _, norm = basis.orthogonalise(outside[outside.norm(dim=-1).argmax()])
        if not norm > basis.noise(basis.scale):
            vector = basis.random_vector()


def _converge(basis: Basis, vector: torch.Tensor, settings: Settings):
    """Extend the basis from `vector` until the k Ritz pairs have small residuals or no room is left.

    Returns whether all products were finite.
    """
    first_check = max(FIRST_CHECK, settings.k, basis.size + STEPS_BETWEEN_PROBES)
    while basis.room:
        remainder, norm = yield from basis.extend(vector)
        if not np.isfinite(norm):
            return False
        exhausted = norm <= basis.noise(basis.scale)
        if basis.size >= settings.k and (exhausted or basis.size >= first_check):
            values, y = basis.ritz(settings.k)
            if (basis.residual_norms(values, y) <= settings.tol * scales(values, settings.k)).all():
                return True
        # An invariant subspace: what lies outside is found only from outside.
        vector = basis.random_vector() if exhausted and basis.room else remainder
    return True


def _probe(basis: Basis, settings: Settings, failure: float, n_steps: int):
    """Whether the k pairs are certified but for a probability `failure`; the probe's vectors stay in the basis."""
    k, m = settings.k, basis.size
    values, _ = basis.ritz(k)
    sigma = scales(values, k)
    T, outside = basis.T[:m, :m].copy(), basis.residual_block().double()
    gram = (outside @ outside.T).cpu().numpy()
    noise, width = basis.noise(basis.scale), settings.accuracy * sigma[k - 1]
    limit = failure / np.sqrt(2 * basis.n / np.pi)
    betas: list[float] = []
    vector = basis.random_vector()
    while basis.room and len(betas) < n_steps:
        vector, norm = yield from basis.extend(vector)
        betas.append(norm if norm > noise else 0.0)
        block = basis.T[m : basis.size, m : basis.size]
        top = np.linalg.eigvalsh(block)[-1]
        if not top < values[k - 1] + width:
            return False  # a copy is missing among the k
        for mu in _bounds(top, values[k - 1], width, noise):
            if _overlap_bound(block, betas, mu) <= limit and _counts_hold(T, gram, values, sigma, mu, settings):
                # The pairs certified are those of V alone, whose residuals were found small.
                basis.size = m
                return True
        if betas[-1] == 0.0:
            return False
    return False


def _bounds(top: float, theta: float, width: float, noise: float) -> list[float]:
    """Candidates μ for the top of the complement's spectrum, smallest first, up to and inside (θ_k, θ_k + ε σ_k)."""
    below = [top + f * (theta - top) for f in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)] if theta > top else []
    inside = [theta + f * width for f in (0.0, 0.25, 0.5, 0.75)]
    return [mu for mu in below + inside if mu > top + noise]


def _overlap_bound(block: np.ndarray, betas: list[float], mu: float) -> float:
    """κ(μ) = (Σ_j π_j(μ)²)^(−1/2) for μ above the probe's Ritz values; its `block` has off-diagonals `betas`."""
    if betas[-1] == 0.0:
        return 0.0
    previous, current, total, beta = 0.0, 1.0, 1.0, 0.0
    for alpha, following in zip(np.diag(block), betas, strict=True):
        previous, current, beta = current, ((mu - alpha) * current - beta * previous) / following, following
        total += current**2
        if total > 1e100:  # a bound already, and tiny enough; further terms might overflow
            break
    return total**-0.5


def _counts_hold(T, gram, values, sigma, mu: float, settings: Settings) -> bool:
    """Whether A has at most i − 1 eigenvalues above τ_i = θ_i + ε σ_i for each i ≤ k, if μ bounds its complement."""
    for i in range(settings.k):
        tau = values[i] + settings.accuracy * sigma[i]
        if not tau > mu:
            return False
        if np.sum(np.linalg.eigvalsh(T + gram / (tau - mu)) > tau) > i:
            return False
    return True


def _result(basis: Basis, settings: Settings, certified: bool) -> RitzPairs:
    values, y = basis.ritz(settings.k)
    k = settings.k
    residuals = basis.residual_norms(values, y) / scales(values, k)
    following = np.append(values, np.nan)[1 : k + 1]
    converged = residuals <= settings.tol
    vectors = basis.lift(y)
    vectors /= vectors.norm(dim=-1, keepdim=True)
    return RitzPairs(
        values[:k].copy(),
        vectors,
        residuals,
        values[:k] - following,
        converged,
        certified and bool(converged.all()),
        basis.n_products,
    )


def _nothing(like: torch.Tensor, k: int, n_products: int) -> RitzPairs:
    nan = np.full(k, np.nan)
    return RitzPairs(nan, like.new_full((k, like.shape[-1]), torch.nan), nan, nan, np.zeros(k, bool), False, n_products)


def run_together(solvers: list[Generator], linearize: Callable[[list[int]], Callable]) -> list:
    """Drive solvers in step, one batched product for all of them; returns what each returns, in order.

    ``linearize(indices)`` gives the product (E, n) → (E, n) of the operators of these solvers. It is asked again, for
    those still running, whenever half of them have finished: a product for few is cheaper than one for all.
    """
    results: list = [None] * len(solvers)
    asked = {i: next(solver) for i, solver in enumerate(solvers)}
    while asked:
        members = list(asked)
        product = linearize(members)
        idle = torch.zeros_like(asked[members[0]])
        while 2 * len(asked) > len(members):
            products = product(torch.stack([asked.get(i, idle) for i in members]))
            for i, row in zip(members, products, strict=True):
                if i not in asked:
                    continue
                try:
                    asked[i] = solvers[i].send(row)
                except StopIteration as stop:
                    results[i] = stop.value
                    del asked[i]
    return results
