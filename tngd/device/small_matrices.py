"""Linear algebra and matrix functions of many small matrices at once, laid out (n, n, tiles); vectors are (n, tiles).

Factorisations loop over the n rows, each step a pass over all tiles; batched library calls take one small matrix at a
time. Row k of every tile is eliminated in one operation,

    L_kk = sqrt(A_kk),   L_ik = A_ik / L_kk,   A_ij <- A_ij - L_ik L_jk   (i, j > k),

which is several times faster at n = 8.

Functions of symmetric matrices, applied to vectors, are Chebyshev series, which take products of matrices only. With
the eigenvalues a of S in [l, h], z = (2a - h - l)/(h - l) and S' = (2S - h - l)/(h - l),

    f(S) v = Σ_k c_k T_k(S') v,        Σ_i u_i(S) diag(w) u_i(S)ᵀ v = Σ_kl c_kl T_k(S') (w ∘ T_l(S') v),

the second for a symmetric function f(a, b) = Σ_i u_i(a) u_i(b) = Σ_kl c_kl T_k(z_a) T_l(z_b) of two eigenvalues: the
solution of a linear matrix equation with the right-hand side diag(w). As |T_k| <= 1, the error of a truncated series is
at most the sum of the sizes of the dropped coefficients; degrees are chosen by that bound.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

CACHE = 2**20  # bytes of the matrices of the tiles that are processed at once

NODES = 96  # number of Chebyshev nodes; series of a degree above half of it are not trusted
OUTWARD = 16  # bounds of a spectrum are moved to the next power of 2^(1/16): near ones share a series


def slices(matrices: Tensor) -> list[slice]:
    """Slices of the tiles of (n, n, tiles) to process at once, so small that intermediate results stay in the cache."""
    n, _, tiles = matrices.shape
    step = max(CACHE // (n * n * matrices.element_size()), 1)
    return [slice(first, min(first + step, tiles)) for first in range(0, tiles, step)]


def cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """L (n, n, tiles), meaningless above the diagonal, and the mask of positive definite tiles (tiles,).

    Only the lower triangle of symmetric matrices (n, n, tiles) is read. L of a tile that is not definite is not finite.
    """
    L = matrices.clone()
    _eliminate(L)
    return L, (L.diagonal(dim1=0, dim2=1) > 0).all(-1)


def solve_bordered(bordered: Tensor) -> tuple[Tensor, Tensor]:
    """A⁻¹ v (n, tiles) and vᵀ A⁻¹ v (tiles,) for positive definite A above v in (n + 1, n, tiles), overwritten."""
    _eliminate(bordered)
    x, size = bordered[-1], bordered[-1].square().sum(0)
    _back_substitute(bordered, x)
    return x, size


def cholesky_solve(L: Tensor, vectors: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ v, (n, tiles), for vectors (n, tiles)."""
    x = vectors.clone()
    for k in range(len(L)):
        x[k] /= L[k, k]
        x[k + 1 :].addcmul_(L[k + 1 :, k], x[k], value=-1)
    _back_substitute(L, x)
    return x


def lower_inverse(L: Tensor) -> Tensor:
    """L⁻¹ (n, n, tiles) of lower triangles; zero above the diagonal."""
    n = len(L)
    X = torch.zeros_like(L)
    X.diagonal(dim1=0, dim2=1).fill_(1)
    for k in range(n):
        X[k, : k + 1] /= L[k, k]
        X[k + 1 :, : k + 1].addcmul_(L[k + 1 :, k, None], X[None, k, : k + 1], value=-1)
    return X


def congruence(T: Tensor, P: Tensor) -> Tensor:
    """T P Tᵀ (n, n, tiles), exactly symmetric, for lower triangles T and symmetric P (n, n, tiles)."""
    n = len(P)
    half, whole = torch.zeros_like(P), torch.zeros_like(P)
    for k in range(n):
        half[k:].addcmul_(T[k:, k, None], P[None, k])
    for k in range(n):
        whole[k:, k:].addcmul_(half[k:, k, None], T[None, k:, k])  # complete on and below the diagonal
    for i in range(n):
        whole[i, i + 1 :] = whole[i + 1 :, i]
    return whole


def apply(matrices: Tensor, vectors: Tensor, work: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """A v, (n, tiles), for matrices (n, n, tiles) and vectors (n, tiles); `work` like the matrices is overwritten."""
    return torch.sum(torch.mul(matrices, vectors, out=work), 1, out=out)


def apply_transposed(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Aᵀ v, (n, tiles)."""
    return (matrices * vectors[:, None]).sum(0)


def spectrum_bounds(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (tiles,) between which all eigenvalues of symmetric matrices (n, n, tiles) lie.

    The better of two: Gershgorin's discs, and mean ± sqrt(n - 1) standard deviations of the eigenvalues, which the
    trace and the sum of squares give (Wolkowicz and Styan 1980).
    """
    n = len(matrices)
    diagonal = matrices.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    reach = matrices.abs().sum(1)
    mean = diagonal.mean(0)
    squares = matrices.square().sum((0, 1))
    deviation = ((n - 1) * (squares / n - mean.square()).clamp(min=0)).sqrt()
    low = torch.maximum((diagonal + diagonal.abs() - reach).amin(0), mean - deviation)
    return low, torch.minimum((diagonal - diagonal.abs() + reach).amax(0), mean + deviation)


def _eliminate(A: Tensor) -> None:
    """Overwrite A (n or more rows, n, tiles) by L, and each row v below the first n by L⁻¹ v."""
    n = A.shape[1]
    for k in range(n):
        A[k:, k] /= A[k, k].sqrt()  # NaN from the first pivot on that is not positive
        A[k + 1 :, k + 1 :].addcmul_(A[k + 1 :, k, None], A[None, k + 1 : n, k], value=-1)


def _back_substitute(L: Tensor, x: Tensor) -> None:
    """Overwrite x (n, tiles) by L⁻ᵀ x."""
    for k in reversed(range(len(x))):
        x[k] /= L[k, k]
        x[:k].addcmul_(L[k, :k], x[k], value=-1)


def widened(low: float, high: float) -> tuple[float, float]:
    """The bounds of a positive spectrum, each moved outward to a power of 2^(1/16)."""
    low, high = np.floor(OUTWARD * np.log2(low)), np.ceil(OUTWARD * np.log2(high))
    return float(2.0 ** (low / OUTWARD)), float(2.0 ** (max(high, low + 1) / OUTWARD))


def series(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, bound: float) -> np.ndarray | None:
    """Chebyshev coefficients of f on [low, high], dropped ones at most `bound` in total; None if too many."""
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
    """Σ f(S) v, (n, tiles), over terms of coefficients and vectors (n, tiles), S centred, in one recurrence."""
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
    """Chebyshev nodes of [low, high], and the matrix from values at the nodes to coefficients."""
    angle = np.pi * (np.arange(NODES) + 0.5) / NODES
    W = 2 / NODES * np.cos(np.arange(NODES)[:, None] * angle)
    W[0] /= 2
    return (low + high) / 2 + (high - low) / 2 * np.cos(angle), W


def _truncated(c: np.ndarray, bound: float) -> np.ndarray | None:
    """Leading coefficients (one or two indices), dropped ones at most `bound` in total; None if too many."""
    size = np.abs(c)
    kept = np.array([size[(slice(d),) * c.ndim].sum() for d in range(NODES + 1)])
    enough = np.flatnonzero(size.sum() - kept <= bound)
    degree = max(int(enough[0]), 1) if len(enough) else NODES
    return c[(slice(degree),) * c.ndim] if degree <= NODES // 2 else None
