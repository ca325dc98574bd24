"""Functions of many small symmetric matrices applied to vectors, by Chebyshev series: products of matrices only.

With the eigenvalues a of S in [l, h], z = (2a - h - l)/(h - l) and S' = (2S - h - l)/(h - l),

    f(S) v = Σ_k c_k T_k(S') v,        Σ_i u_i(S) diag(w) u_i(S)ᵀ v = Σ_kl c_kl T_k(S') (w ∘ T_l(S') v),

the second for a symmetric function f(a, b) = Σ_i u_i(a) u_i(b) = Σ_kl c_kl T_k(a) T_l(b) of two eigenvalues: the
solution of a linear matrix equation with the right-hand side diag(w). As |T_k| <= 1, what a truncated series leaves out
is at most the sum of the coefficients' sizes that were dropped; degrees are chosen by that bound. Matrices are
(n, n, tiles), vectors (n, tiles).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tngd.device.small_matrices import apply

NODES = 96  # at which a function is taken; a degree of more than half of them is not trusted
OUTWARD = 16  # bounds of a spectrum are moved to the next power of 2^(1/16): near ones share a series


def widened(low: float, high: float) -> tuple[float, float]:
    """The bounds of a positive spectrum, each moved outward to a power of 2^(1/16)."""
    low, high = np.floor(OUTWARD * np.log2(low)), np.ceil(OUTWARD * np.log2(high))
    return float(2.0 ** (low / OUTWARD)), float(2.0 ** (max(high, low + 1) / OUTWARD))


def series(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, bound: float) -> np.ndarray | None:
    """Chebyshev coefficients of f on [low, high], the dropped ones less than `bound` together; None if too many."""
    nodes, W = _nodes(low, high)
    return _truncated(W @ function(nodes), bound)


def pair_series(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], low: float, high: float, bound: float
) -> np.ndarray | None:
    """Coefficients (d, d) of a symmetric f(a, b) on [low, high]², as `series`."""
    nodes, W = _nodes(low, high)
    return _truncated(W @ function(nodes[:, None], nodes[None, :]) @ W.T, bound)


def centred(matrices: Tensor, low: float, high: float) -> Tensor:
    """S' (n, n, tiles), with its spectrum in [-1, 1]."""
    S = matrices * (2 / (high - low))
    S.diagonal(dim1=0, dim2=1).sub_((high + low) / (high - low))
    return S


def function_sum(S: Tensor, terms: list[tuple[np.ndarray, Tensor]]) -> Tensor:
    """Σ f(S) v, (n, tiles), over terms of coefficients and vectors (n, tiles), S centred: one recurrence for all."""
    degree = max(len(c) for c, _ in terms) - 1

    def own(k: int) -> Tensor:
        return sum(float(c[k]) * v for c, v in terms if k < len(c))

    return _clenshaw(S, degree, own)


def pair_function(S: Tensor, coefficients: np.ndarray, weights: Tensor, vectors: Tensor) -> Tensor:
    """Σ_kl c_kl T_k(S) (w ∘ T_l(S) v), (n, tiles), for weights and vectors (n, tiles), S centred."""
    degree = len(coefficients) - 1
    work = torch.empty_like(S)
    powers = vectors.new_empty(degree + 1, *vectors.shape)
    powers[0] = vectors
    for k in range(1, degree + 1):
        apply(S, powers[k - 1], work, powers[k])
        if k > 1:
            torch.lerp(powers[k - 2], powers[k], 2, out=powers[k])  # 2 S T_(k-1) - T_(k-2)
    c = torch.as_tensor(coefficients, dtype=vectors.dtype, device=vectors.device)
    inner = (c @ powers.view(degree + 1, -1)).view_as(powers).mul_(weights)
    return _clenshaw(S, degree, inner.__getitem__)


def _clenshaw(S: Tensor, degree: int, vector: Callable[[int], Tensor]) -> Tensor:
    """Σ_k T_k(S) y_k over k from 0 to the degree, y_k = vector(k): b_k = y_k + 2 S b_(k+1) - b_(k+2)."""
    work = torch.empty_like(S)
    after, second = vector(degree).clone(), None
    for k in range(degree - 1, -1, -1):
        found = apply(S, after, work)
        if k:
            found = found.mul_(2) if second is None else torch.lerp(second, found, 2, out=found)
        elif second is not None:
            found.sub_(second)
        after, second = found.add_(vector(k)), after
    return after


@lru_cache(maxsize=32)
def _nodes(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev nodes of [low, high] and the matrix that takes values there to coefficients."""
    angle = np.pi * (np.arange(NODES) + 0.5) / NODES
    W = 2 / NODES * np.cos(np.arange(NODES)[:, None] * angle)
    W[0] /= 2
    return (low + high) / 2 + (high - low) / 2 * np.cos(angle), W


def _truncated(c: np.ndarray, bound: float) -> np.ndarray | None:
    """The leading coefficients, of one or two indices, that leave less than `bound`."""
    size = np.abs(c)
    kept = np.array([size[(slice(d),) * c.ndim].sum() for d in range(NODES + 1)])
    enough = np.flatnonzero(size.sum() - kept <= bound)
    degree = max(int(enough[0]), 1) if len(enough) else NODES
    return c[(slice(degree),) * c.ndim] if degree <= NODES // 2 else None
