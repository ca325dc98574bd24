"""Batched algebra and matrix functions against numpy, tile by tile."""

import numpy as np
import pytest
import torch
from cases import random_target
from compare import assert_close

from tngd.device import small_matrices
from tngd.device import small_matrices as device_small_matrices

CONDITIONS = [1.5, 3, 10, 100, 1e4]


def stack(matrices: list[np.ndarray]) -> torch.Tensor:
    return torch.tensor(np.array(matrices)).movedim(0, -1).contiguous()


MATRICES = [random_target(8, condition, seed) for seed, condition in enumerate(CONDITIONS)]
VECTORS = np.random.default_rng(0).normal(size=(8, len(MATRICES)))


def spread(eigenvalues: np.ndarray, seed: int) -> np.ndarray:
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0]
    return (Q * eigenvalues) @ Q.T


def test_factors_solves_and_products_are_those_of_numpy():
    A, v = stack(MATRICES), torch.tensor(VECTORS)
    L, definite = small_matrices.cholesky(A)
    assert definite.all()
    X, w = small_matrices.cholesky_solve(L, v), small_matrices.lower_inverse(L)
    moved = small_matrices.congruence(w, A.flip(-1))
    for k, P in enumerate(MATRICES):
        own = np.linalg.cholesky(P)
        assert_close(np.tril(L[:, :, k]), own, 1e-12 * np.linalg.cond(P))
        assert_close(X[:, k], np.linalg.solve(P, VECTORS[:, k]), 1e-13 * np.linalg.cond(P))
        assert_close(w[:, :, k], np.linalg.inv(own), 1e-13 * np.linalg.cond(P))
        assert_close(moved[:, :, k], w[:, :, k].numpy() @ MATRICES[-1 - k] @ w[:, :, k].numpy().T, 1e-11)
        assert_close(small_matrices.apply(A, v)[:, k], P @ VECTORS[:, k], 1e-13)
        assert_close(small_matrices.apply_transposed(w, v)[:, k], w[:, :, k].numpy().T @ VECTORS[:, k], 1e-13)
    assert torch.equal(moved, moved.transpose(0, 1))


def test_bordered_systems_are_solved_with_their_quadratic_form():
    bordered = torch.cat([stack(MATRICES), torch.tensor(VECTORS)[None]])
    x, size = small_matrices.solve_bordered(bordered)
    for k, P in enumerate(MATRICES):
        expected = np.linalg.solve(P, VECTORS[:, k])
        assert_close(x[:, k], expected, 1e-13 * np.linalg.cond(P))
        assert abs(float(size[k]) / (VECTORS[:, k] @ expected) - 1) < 1e-13 * np.linalg.cond(P)


def test_what_is_not_positive_definite_is_told_apart():
    low = [1e-9, -1e-9, -1.0, 0.5]
    A = stack([spread(np.array([x, 1, 1, 2, 2, 3, 3, 3.0]), k) for k, x in enumerate(low)])
    assert small_matrices.cholesky(A)[1].tolist() == [x > 0 for x in low]
    assert not small_matrices.cholesky(A * torch.nan)[1].any()


def test_bounds_hold_every_eigenvalue_and_are_reached():
    A = stack([*MATRICES, np.diag(np.arange(-3.0, 5.0)), np.full((8, 8), 0.5)])
    low, high = small_matrices.spectrum_bounds(A)
    for k in range(A.shape[-1]):
        m = np.linalg.eigvalsh(A[:, :, k])
        assert low[k] <= m[0] + 1e-12
        assert m[-1] <= high[k] + 1e-12
    assert [float(low[-2]), float(high[-2]), float(high[-1])] == pytest.approx([-3.0, 4.0, 4.0], rel=1e-12)
    near = stack([spread(np.linspace(0.9, 1.1, 8), 0)])
    assert float(small_matrices.spectrum_bounds(near)[0]) > 0.8  # by the sum of squares: the discs reach further


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.2, 2.5), (0.9, 1.1)])
def test_functions_of_matrices_are_those_of_their_eigenvalues(low, high):
    rng = np.random.default_rng(1)
    eigenvalues = np.sort(rng.uniform(low, high, (5, 8)))
    eigenvalues[:, 0], eigenvalues[:, -1] = low, high
    matrices = [spread(m, k) for k, m in enumerate(eigenvalues)]
    u, v, w = rng.normal(size=(3, 8, 5))
    S = device_small_matrices.centred(stack(matrices), low, high)
    exp = device_small_matrices.series(lambda a: np.exp(-3 * a), low, high, 1e-13)
    inverse = device_small_matrices.series(lambda a: 1 / a, low, high, 1e-10)
    pair = device_small_matrices.pair_series(lambda a, b: 1 / (a + b + 0.5 * (a - b) ** 2), low, high, 1e-10)
    found = device_small_matrices.function_sum(S, [(exp, torch.tensor(u)), (inverse, torch.tensor(v))])
    both = device_small_matrices.pair_function(S, pair, torch.tensor(w), torch.tensor(v))
    for k, A in enumerate(matrices):
        m, V = np.linalg.eigh(A)
        expected = V @ (np.exp(-3 * m) * (V.T @ u[:, k]) + (V.T @ v[:, k]) / m)
        assert_close(found[:, k], expected, 1e-10)
        X = V.T @ np.diag(w[:, k]) @ V / (m[:, None] + m + 0.5 * (m[:, None] - m) ** 2)
        assert_close(both[:, k], V @ X @ V.T @ v[:, k], 2e-10)


def test_a_series_keeps_its_bound_and_says_when_it_would_be_long():
    c = device_small_matrices.series(lambda a: 1 / a, 0.5, 2.0, 1e-6)
    a = np.linspace(0.5, 2.0, 1001)
    error = np.abs(np.polynomial.chebyshev.chebval((2 * a - 2.5) / 1.5, c) - 1 / a).max()
    assert 1e-9 < error < 1e-6  # neither exact nor beyond what was asked for
    assert device_small_matrices.series(lambda a: 1 / a, 1e-4, 2.0, 1e-10) is None
    assert device_small_matrices.widened(0.5, 2.0) == (0.5, 2.0)
    low, high = device_small_matrices.widened(0.51, 1.9)
    assert 0.51 / 2 ** (1 / 16) < low < 0.51
    assert 1.9 < high < 1.9 * 2 ** (1 / 16)
