"""Linear algebra of many small matrices at once, laid out (n, n, tiles): loops over n rows, each a pass over all tiles.

Batched library calls take one small matrix at a time. Here row k of every tile is eliminated in one operation,

    L_kk = sqrt(A_kk),   L_ik = A_ik / L_kk,   A_ij <- A_ij - L_ik L_jk   (i, j > k),

which is several times faster at n = 8. Vectors are (n, tiles).
"""

import torch
from torch import Tensor

CACHE = 2**20  # bytes of a matrix of every tile that is worked on at once


def slices(matrices: Tensor) -> list[slice]:
    """Tiles of (n, n, tiles) to work on at once: what is made on the way stays in the cache."""
    n, _, tiles = matrices.shape
    step = max(CACHE // (n * n * matrices.element_size()), 1)
    return [slice(first, min(first + step, tiles)) for first in range(0, tiles, step)]


def cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """L (n, n, tiles), lower triangle (what is above it means nothing), and which tiles are positive definite (tiles,).

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
    """A becomes L; rows below the square ones become L⁻¹ times them."""
    n = A.shape[1]
    for k in range(n):
        A[k:, k] /= A[k, k].sqrt()  # not a number from the first pivot on that is not positive
        A[k + 1 :, k + 1 :].addcmul_(A[k + 1 :, k, None], A[None, k + 1 : n, k], value=-1)


def _back_substitute(L: Tensor, x: Tensor) -> None:
    """x (n, tiles) becomes L⁻ᵀ x."""
    for k in reversed(range(len(x))):
        x[k] /= L[k, k]
        x[:k].addcmul_(L[k, :k], x[k], value=-1)
