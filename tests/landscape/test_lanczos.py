"""The eigensolver on explicit matrices whose spectra are known: multiplicities, clusters, rank, and honest failure."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.basis import Basis, Batch
from landscape.certificate import Probe
from landscape.lanczos import Settings, _probe, top_ritz_pairs

DEFAULTS = {"tol": 1e-6, "certify": True, "accuracy": 1e-3, "failure": 1e-6}


def rotated(spectrum, seed=0):
    """A symmetric matrix with this spectrum and random eigenvectors."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))
    matrix = (Q * np.asarray(spectrum, dtype=float)) @ Q.T
    return (matrix + matrix.T) / 2


def solve_all(matrices, k, seed=0, dtype=torch.float64, max_products=None, **options):
    n = len(matrices[0])
    asked = Settings(k=k, max_products=max_products or n, **(DEFAULTS | options))
    stacked = torch.from_numpy(np.stack(matrices)).to(dtype)
    rngs = [np.random.default_rng([seed, i]) for i in range(len(matrices))]
    return top_ritz_pairs(lambda rows: lambda v: (stacked[rows] @ v[..., None])[..., 0], stacked[:, 0], rngs, asked)


def solve(matrix, k, **options):
    return solve_all([matrix], k, **options)[0]


def assert_right(pairs, matrix, k, *, tol=DEFAULTS["tol"], accuracy=DEFAULTS["accuracy"]):
    """Converged and certified mean: dense eigenvalues within the accuracy, residuals true, vectors orthonormal."""
    exact = np.linalg.eigvalsh(matrix)[::-1]
    scale = np.abs(exact).max()
    sigma = np.maximum(np.abs(pairs.values), 1e-3 * scale)
    rounding = 1e-12 * scale
    assert pairs.converged.all()
    assert pairs.certified
    assert (exact[:k] - pairs.values >= -rounding).all()
    assert (exact[:k] - pairs.values <= accuracy * sigma + rounding).all()
    vectors = pairs.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-10)
    residuals = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    assert (residuals <= 1.001 * tol * sigma + rounding).all()


SPECTRA = {
    "triple top": [3, 3, 3, *np.linspace(0, 1, 57)],
    "triple below one": [5, 3, 3, 3, *np.linspace(-1, 1, 56)],
    "all equal in pairs": np.repeat(np.arange(30), 2),
    "cluster": [2, 2 - 1e-7, 2 - 2e-7, 2 - 1e-2, *np.linspace(-2, 1, 56)],
    "rank 2": [1, 0.5] + [0] * 58,
    "rank 1, negative": [-1] + [0] * 59,
    "zero": [0] * 60,
    "identity": [1] * 60,
    "negative definite": -np.geomspace(0.1, 10, 60),
    "indefinite": [1, 0.9, 0.8, *-np.linspace(1, 50, 57)],
    "decaying": np.geomspace(1, 1e-8, 60),
    "tiny": 1e-9 * np.r_[3, 3, 3, np.linspace(0, 1, 57)],
    "huge": 1e9 * np.r_[3, 3, 3, np.linspace(0, 1, 57)],
    "outlier, flat bulk": [100, *np.full(59, 1.0)],
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_certified_pairs_are_those_of_the_dense_matrix(spectrum, k):
    matrix = rotated(spectrum)
    assert_right(solve(matrix, k), matrix, k)


def test_a_triple_eigenvalue_is_found_three_times_from_every_start():
    matrix = rotated(SPECTRA["triple top"])
    for pairs in solve_all([matrix] * 50, 4, seed=1):
        np.testing.assert_allclose(pairs.values, [3, 3, 3, 1], rtol=1e-3)
        assert_right(pairs, matrix, 4)
        np.testing.assert_allclose(pairs.gaps[:2], 0, atol=3e-3)


@pytest.mark.parametrize("k", [7, 8])
def test_vectors_stay_orthonormal_where_the_search_goes_on_from_a_residual_near_rounding(k):
    matrix = rotated(np.r_[np.zeros(9), -1] + 1e-8 * np.linspace(0, 1, 10))
    for seed in range(20):
        assert_right(solve(matrix, k, seed=seed), matrix, k)


def test_the_certificate_costs_few_products_where_the_spectrum_is_spread():
    matrix = rotated([*range(10, 6, -1), *np.linspace(0, 1, 196)])
    plain, certified = solve(matrix, 2, certify=False), solve(matrix, 2)
    assert plain.converged.all()
    assert not plain.certified
    assert plain.n_products < certified.n_products <= plain.n_products + 14
    np.testing.assert_allclose(plain.values, [10, 9], rtol=1e-10)


def test_gaps_are_the_distances_to_the_next_eigenvalue_and_nan_after_the_last():
    matrix = rotated([4, 3, 1, -2])
    np.testing.assert_allclose(solve(matrix, 3).gaps, [1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(solve(matrix, 4).gaps, [1, 2, 3, np.nan], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_pairs_of_a_small_matrix_are_found(n):
    matrix = rotated(np.arange(n) - 2.0)
    pairs = solve(matrix, n)
    assert_right(pairs, matrix, n)
    assert pairs.n_products == n


@pytest.mark.parametrize("overlap", [1e-1, 1e-4, 1e-9])
def test_a_start_overlaps_a_hidden_eigenvector_by_no_more_than_the_bound(overlap):
    hidden, spectrum = 2.0, np.append(np.linspace(-1, 1, 59), 2.0)
    r = np.append(np.sqrt((1 - overlap**2) / 59) * np.ones(59), overlap)
    basis = [r]
    probe = Probe(np.array([hidden, hidden]), 1, 0.0, 0.0)  # its candidates are all equal to the hidden eigenvalue
    for j in range(6):
        w = spectrum * basis[j]
        alpha = w @ basis[j]
        w = w - np.array(basis).T @ (np.array(basis) @ w)
        beta = np.linalg.norm(w)
        basis.append(w / beta)
        probe.step(alpha, beta)
        bound = np.exp(-probe.log_total[0] / 2)
        assert bound >= overlap * (1 - 1e-6)
        # An eigenvector's overlaps with the Lanczos vectors are its overlap with the first times the polynomials.
        np.testing.assert_allclose(bound, overlap / np.linalg.norm(np.array(basis)[:, -1]), rtol=1e-5)
        assert probe.bound(bound / 1.01) is None
        assert probe.bound(bound * 1.01) == hidden
    assert bound < max(0.01, 1.2 * overlap)  # polynomials of degree six, on a value outside [-1, 1], say something


def test_the_bounds_lie_above_all_ritz_values_of_the_probe():
    rng = np.random.default_rng(0)
    alphas, betas = rng.normal(size=12), rng.uniform(0.2, 1, size=12)
    probe = Probe(np.linspace(4, -2, 9), 1, 0.1, 0.0)
    for j in range(12):
        probe.step(alphas[j], betas[j])
        block = np.diag(alphas[: j + 1]) + np.diag(betas[:j], 1) + np.diag(betas[:j], -1)
        top = np.linalg.eigvalsh(block)[-1]
        np.testing.assert_array_equal(probe.above, probe.candidates > top)
        assert probe.bound(1.0) == probe.candidates[probe.candidates > top].min()
        assert not probe.copy_missing
    probe.step(4.2, 0.1)
    assert probe.copy_missing


def test_the_bound_stays_finite_where_the_probe_meets_rounding_only():
    probe = Probe(np.array([1.0, 0.0]), 1, 1e-3, 1e-15)
    for _ in range(40):
        probe.step(0.0, 1e-14)
    assert probe.bound(1e-300) == probe.candidates[1]  # the lowest is the Ritz value 0 itself


@pytest.mark.parametrize(("hidden", "good"), [(1.5, False), (1.01, False), (0.95, True)])
def test_an_eigenvalue_half_inside_the_basis_is_not_overlooked(hidden, good):
    """The basis holds the eigenvector of 1 and half of that of `hidden`; neither T nor its complement shows it."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]
    matrix = torch.from_numpy((Q * np.r_[1, hidden, 0.3, np.linspace(-0.5, 0.2, 57)]) @ Q.T)
    batch = Batch(1, torch.zeros(1, 60, dtype=torch.float64), 60)
    basis = Basis(batch, 0, np.random.default_rng(1))

    def extend(vector):
        return batch.extend(vector[None], (matrix @ vector)[None])

    for vector in (Q[:, 0], (Q[:, 1] + Q[:, 2]) / np.sqrt(2)):
        extend(torch.from_numpy(vector.copy()))
    values = np.linalg.eigvalsh(basis.T)[::-1]
    assert values[0] == pytest.approx(1)
    probe = _probe(basis, values, Settings(k=1, max_products=60, **DEFAULTS), 1e-6, 32)
    vector = next(probe)
    verdict = None
    while verdict is None:
        remainder, norm = extend(vector)
        try:
            restart = probe.send(norm[0])
        except StopIteration as stop:
            verdict = stop.value
        vector = remainder[0] if restart is None else restart
    assert verdict == good


@settings(max_examples=150, deadline=None)
@given(
    spectrum=st.lists(st.integers(-6, 6), min_size=1, max_size=24),
    ratio=st.sampled_from([0.0, 1e-8, 1e-3, 0.5]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_of_any_spectrum_all_pairs_are_found_and_certified(spectrum, ratio, scale, seed, data):
    """Integers repeat, and `ratio` splits what would be equal by a little."""
    k = data.draw(st.integers(1, len(spectrum)))
    matrix = rotated(scale * (np.array(spectrum) + ratio * np.linspace(0, 1, len(spectrum))), seed)
    assert_right(solve(matrix, k, seed=seed), matrix, k)


@settings(max_examples=80, deadline=None)
@given(
    top=st.lists(st.sampled_from([1.0, 1.0 - 1e-5, 0.9, 0.7]), min_size=1, max_size=5),
    bulk=st.sampled_from([0.1, 0.6, 0.699]),
    max_products=st.integers(6, 60),
    seed=st.integers(0, 100),
)
def test_what_is_certified_is_right_however_few_products_are_allowed(top, bulk, max_products, seed):
    matrix = rotated([*top, *np.linspace(-0.3, bulk, 80 - len(top))], seed)
    k = min(3, len(top) + 1)
    pairs = solve(matrix, k, seed=seed, max_products=max_products)
    assert pairs.n_products <= max_products
    if pairs.certified:
        assert_right(pairs, matrix, k)
    residuals = np.linalg.norm(pairs.vectors.numpy() @ matrix - pairs.values[:, None] * pairs.vectors.numpy(), axis=1)
    exceeds = residuals > 1.001e-6 * np.maximum(np.abs(pairs.values), 1e-3)
    assert not (pairs.converged & exceeds).any()


def test_too_few_products_come_back_as_not_converged_never_as_good():
    matrix = rotated(np.linspace(0, 1, 60))
    pairs = solve(matrix, 3, max_products=8)
    assert pairs.n_products == 8
    assert pairs.values.shape == pairs.residuals.shape == (3,)
    assert pairs.vectors.shape == (3, 60)
    assert not pairs.converged.any()
    assert (pairs.residuals > 1e-6).all()
    assert not pairs.certified
    vectors = pairs.vectors.numpy()
    residuals = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals / pairs.values, rtol=1e-8)


def test_converged_but_no_products_left_for_the_certificate_is_not_certified():
    matrix = rotated([3, 3, 3, 2, *np.linspace(0, 1, 56)])
    needed = solve(matrix, 2, certify=False).n_products
    pairs = solve(matrix, 2, max_products=needed)
    assert pairs.converged.all()
    assert not pairs.certified
    np.testing.assert_allclose(pairs.values, [3, 2], rtol=1e-9)  # a copy of 3 is missing
    np.testing.assert_allclose(solve(matrix, 2).values, [3, 3], rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_give_nan_and_leave_the_others_alone(bad):
    good = rotated(SPECTRA["triple top"])
    broken, right = solve_all([good * bad, good], 2)
    assert np.isnan(broken.values).all()
    assert np.isnan(broken.residuals).all()
    assert broken.vectors.isnan().all()
    assert not broken.converged.any()
    assert not broken.certified
    assert_right(right, good, 2)


def test_together_and_alone_operators_have_the_same_pairs():
    matrices = [rotated(spectrum, seed) for seed, spectrum in enumerate(SPECTRA.values())]
    together = solve_all(matrices, 2)
    for i, matrix in enumerate(matrices):
        assert_right(together[i], matrix, 2)
    asked = []

    def linearize(rows):
        asked.append(rows)
        return lambda v: torch.stack([torch.from_numpy(matrices[m]) @ row for m, row in zip(rows, v, strict=True)])

    rngs = [np.random.default_rng(i) for i in range(len(matrices))]
    wanted = Settings(k=2, max_products=60, **DEFAULTS)
    results = top_ritz_pairs(linearize, torch.zeros(len(matrices), 60).double(), rngs, wanted)
    assert len(asked) > 1  # those that need more products go on without the others
    for earlier, later in itertools.pairwise(asked):
        assert set(later) < set(earlier)
        assert 2 * len(later) <= len(earlier)
    for pairs, matrix in zip(results, matrices, strict=True):
        assert_right(pairs, matrix, 2)


def test_in_float32_pairs_are_found_to_its_precision():
    matrix = rotated(SPECTRA["triple top"])
    pairs = solve(matrix, 4, dtype=torch.float32, tol=1e-4)
    assert pairs.vectors.dtype == torch.float32
    assert pairs.converged.all()
    assert pairs.certified
    np.testing.assert_allclose(pairs.values, [3, 3, 3, 1], rtol=1e-3)


TRIALS = {
    "a triple top": ([3, 3, 3, *np.linspace(0, 1, 57)], 3),
    "a pair split by 1e-6": ([3, 3 - 1e-6, *np.linspace(0, 1, 58)], 2),
    "five copies": ([3] * 5 + [*np.linspace(0, 1, 55)], 3),
    "a pair below the top": ([3, 1, 1, 0.9, *np.linspace(0, 0.8, 56)], 3),
    "rank two": ([3, 1] + [0] * 58, 5),
}


@pytest.mark.parametrize(("spectrum", "k"), TRIALS.values(), ids=TRIALS)
def test_of_a_thousand_starts_none_certifies_a_wrong_answer(spectrum, k):
    """A random start in a diagonal matrix is one in any basis; a loose tolerance leaves most to the certificate."""
    spectrum, accuracy = torch.tensor(spectrum, dtype=torch.float64), 2e-3
    asked = Settings(k=k, max_products=60, **DEFAULTS | {"tol": 1e-3, "accuracy": accuracy})
    n_certified = 0
    for start in range(0, 1000, 50):
        rngs = [np.random.default_rng([start, i]) for i in range(50)]
        for pairs in top_ritz_pairs(lambda rows: lambda v: spectrum * v, torch.zeros(50, 60).double(), rngs, asked):
            assert pairs.converged.all()
            if pairs.certified:
                n_certified += 1
                missing = spectrum[:k].numpy() - pairs.values
                assert (missing >= -1e-12).all()
                assert (missing <= accuracy * np.maximum(np.abs(pairs.values), 3e-3)).all()
    assert n_certified == 1000


def test_the_gram_matrix_of_residuals_is_that_of_all_entries_however_they_are_cut(monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((23, 23))
    matrix = torch.from_numpy(matrix + matrix.T)
    batch = Batch(1, matrix[:1], capacity=8)
    basis = Basis(batch, 0, np.random.default_rng(1))
    for _ in range(6):
        vector = basis.random_vector()
        batch.extend(vector[None], (matrix @ vector)[None])
    V = basis.vectors.numpy()[:5]
    R = V @ matrix.numpy() - (V @ matrix.numpy() @ V.T) @ V
    for entries in (4, 5, 23, 100):
        monkeypatch.setattr("landscape.basis.GRAM_ENTRIES", entries)
        np.testing.assert_allclose(basis.gram(5), R @ R.T, atol=1e-12)
