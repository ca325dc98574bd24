"""Target matrices: read from a file or an array, and checked once, at the border.

A target is real, finite, square, symmetric to rounding and positive definite. Everything behind this file may rely
on that.
"""

from pathlib import Path

import numpy as np

from circuits.errors import InputError

SYMMETRY = 1e-8  # relative asymmetry that still counts as rounding
SMALLEST_PIVOT = 1e-14  # relative to the largest eigenvalue: below it the matrix is singular in double precision


def read_matrix(path: Path, what: str = "matrix") -> np.ndarray:
    """Read a two-dimensional array from .npy or .csv (comma or white space); InputError says what is wrong."""
    if path.suffix not in (".npy", ".csv"):
        raise InputError(f"{what} {path} must be a .npy or .csv file")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text().replace(",", " ")
        rows = [line.split() for line in text.splitlines() if line.strip()]
        return np.array([[float(word) for word in row] for row in rows])
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{what} {path} is not readable: {str(error).splitlines()[0]}") from None


def check_square(matrix: np.ndarray, what: str) -> np.ndarray:
    """Return `matrix` as (n, n) finite float64, or raise InputError."""
    array = np.asarray(matrix)
    if array.size == 0:
        raise InputError(f"{what} is empty; expected n x n numbers, n >= 1")
    if array.ndim != 2:
        raise InputError(f"{what} must have two dimensions, got shape {array.shape}")
    if array.shape[0] != array.shape[1]:
        raise InputError(f"{what} must be square, got {array.shape[0]} x {array.shape[1]}")
    if np.iscomplexobj(array):
        raise InputError(f"{what} must be real, got complex numbers; give its real part if that is what you mean")
    try:
        array = array.astype(float)
    except (TypeError, ValueError):
        raise InputError(f"{what} must hold numbers, got type {array.dtype}") from None
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        i, j = bad[0]
        raise InputError(f"{what} must be finite, got {array[i, j]} in row {i + 1}, column {j + 1}")
    return array


def check_target(matrix: np.ndarray, damping: float = 0.0, what: str = "target") -> np.ndarray:
    """Return P + λI, (n, n), exactly symmetric and positive definite, or raise InputError with the remedy."""
    P = check_square(matrix, what)
    if not np.isfinite(damping) or damping < 0:
        raise InputError(f"damping must be a number >= 0, got {damping}")
    largest = np.abs(P).max()
    if np.abs(P - P.T).max() > SYMMETRY * largest:
        i, j = np.unravel_index(np.abs(P - P.T).argmax(), P.shape)
        raise InputError(
            f"{what} must be symmetric, got {P[i, j]:.6g} in row {i + 1}, column {j + 1} but {P[j, i]:.6g} across; "
            "give (P + Pᵀ)/2 if that is what you mean"
        )
    P = (P + P.T) / 2 + damping * np.eye(len(P))
    eigenvalues = np.linalg.eigvalsh(P)
    if eigenvalues[0] <= SMALLEST_PIVOT * max(abs(eigenvalues[-1]), np.finfo(float).tiny):
        scale = float(np.trace(P)) / len(P) if np.trace(P) > 0 else 1.0
        remedy = damping + max(-eigenvalues[0], 0.0) + 0.01 * scale
        raise InputError(
            f"{what} must be positive definite, its smallest eigenvalue is {eigenvalues[0]:.4g}; "
            f"--damping {remedy:.4g} would do"
        )
    return P


def check_congruence(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return the preconditioner T, (n, n), invertible, or raise InputError."""
    T = check_square(matrix, "preconditioner")
    if len(T) != size:
        raise InputError(f"preconditioner must be {size} x {size} like the target, got {len(T)} x {len(T)}")
    singular = np.linalg.svd(T, compute_uv=False)
    if singular[-1] <= SMALLEST_PIVOT * singular[0]:
        raise InputError(f"preconditioner must be invertible, its smallest singular value is {singular[-1]:.4g}")
    return T


def inverse_factor(matrix: np.ndarray) -> np.ndarray:
    """T, (n, n), lower triangular, with T P Tᵀ = I: the preconditioner made from an older P."""
    L = np.linalg.cholesky(matrix)
    return np.linalg.inv(L)
