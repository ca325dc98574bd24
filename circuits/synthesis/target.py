"""Target matrices: read from a file or an array, and checked once, on input.

A target is real, finite, square, symmetric to rounding and positive definite. Definiteness is judged once the diagonal
is 1, so that it does not depend on the units of the rows. All other modules rely on these checks.
"""

from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import ArrayLike

from circuits.errors import InputError
from circuits.synthesis.options import two_digits

SYMMETRY = 1e-8  # relative asymmetry that still counts as rounding
SMALLEST_PIVOT = 1e-14  # of a matrix of unit diagonal, relative to its largest: below it rounding makes it singular
DOUBLINGS = 60  # of a suggested value, before the search ends
LARGEST_ENTRY = 1e100  # beyond it, and below its inverse, products of three matrices leave double precision


def read_matrix(path: Path, what: str = "matrix") -> np.ndarray:
    """Read a two-dimensional array from .npy or .csv (comma or white space); InputError if it is not readable."""
    if path.suffix not in (".npy", ".csv"):
        raise InputError(f"{what} {path} must be a .npy or .csv file")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
        return _numbers(path.read_text(encoding="utf-8-sig"))  # spreadsheets begin a file with a byte order mark
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"{what} {path} is not readable: it is no UTF-8 text; save it as CSV in UTF-8") from None
    except (OSError, ValueError, EOFError, TokenError, MemoryError, OverflowError) as error:
        raise InputError(f"{what} {path} is not readable: {error}") from None


def check_array(values: ArrayLike, what: str) -> np.ndarray:
    """Return `values` as an array of any shape, or raise InputError if rows of numbers differ in length."""
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError(f"{what} must be an array, got rows of different lengths; fill them up") from None


def check_square(matrix: ArrayLike, what: str) -> np.ndarray:
    """Return `matrix` as (n, n) finite float64, or raise InputError."""
    array = check_array(matrix, what)
    if array.size == 0:
        raise InputError(f"{what} is empty; expected n x n numbers, n >= 1")
    if array.ndim != 2:
        raise InputError(f"{what} must have two dimensions, got shape {array.shape}")
    if array.shape[0] != array.shape[1]:
        raise InputError(f"{what} must be square, got {array.shape[0]} x {array.shape[1]}")
    if np.iscomplexobj(array):
        raise InputError(f"{what} must be real, got complex numbers; give its real part if that is what you mean")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} must hold numbers, got type {array.dtype}")
    array = array.astype(float)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        i, j = bad[0]
        raise InputError(f"{what} must be finite, got {array[i, j]} in row {i + 1}, column {j + 1}")
    largest = np.abs(array).max()
    if largest and not 1 / LARGEST_ENTRY <= largest <= LARGEST_ENTRY:
        raise InputError(f"{what} must have a largest entry from 1e-100 to 1e100, got {largest:.3g}; scale it")
    return array


def check_target(
    matrix: np.ndarray,
    damping: float = 0.0,
    what: str = "target",
    holds: Callable[[np.ndarray], bool] = lambda target: True,
) -> np.ndarray:
    """Return P + λI, (n, n), exactly symmetric and positive definite, or raise InputError with a suggestion.

    The suggestion is a damping; `holds` tells whether the boards to be designed hold a positive definite target.
    """
    P = check_square(matrix, what)
    if not 0 <= damping <= LARGEST_ENTRY:
        raise InputError(f"damping must be a number from 0 to 1e100, got {damping}")
    largest = np.abs(P).max()
    if np.abs(P - P.T).max() > SYMMETRY * largest:
        i, j = np.unravel_index(np.abs(P - P.T).argmax(), P.shape)
        raise InputError(
            f"{what} must be symmetric, got {P[i, j]:.6g} in row {i + 1}, column {j + 1} but {P[j, i]:.6g} across; "
            "give (P + Pᵀ)/2 if that is what you mean"
        )
    P = (P + P.T) / 2
    damped = P + damping * np.eye(len(P))
    smallest = np.linalg.eigvalsh(damped)[0]
    if not _is_definite(damped):
        scale = float(np.trace(damped)) / len(P) if np.trace(damped) > 0 else float(largest) or 1.0
        larger = least_damping(P, damping + max(-smallest, 0.0) + 0.01 * scale, holds)
        suggestion = f"; --damping {larger:.2g} would do" if larger is not None else ""
        to_rounding = ", zero to rounding" if smallest > 0 else ""
        raise InputError(
            f"{what} must be positive definite, its smallest eigenvalue is {smallest:.4g}{to_rounding}{suggestion}"
        )
    return damped


def least_damping(P: np.ndarray, first: float, holds: Callable[[np.ndarray], bool]) -> float | None:
    """The first of `first` · 2ᵏ, in two digits, with which P + λI is definite and `holds`; None if none does."""
    for k in range(DOUBLINGS):
        damping = two_digits(first * 2**k, up=True)
        damped = P + damping * np.eye(len(P))
        if _is_definite(damped) and holds(damped):
            return damping
    return None


def check_congruence(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return the preconditioner T, (n, n), invertible, or raise InputError."""
    T = check_square(matrix, "preconditioner")
    if len(T) != size:
        raise InputError(f"preconditioner must be {size} x {size} like the target, got {len(T)} x {len(T)}")
    singular = np.linalg.svd(_equilibrated(T), compute_uv=False)
    if singular[-1] <= SMALLEST_PIVOT * singular[0]:
        raise InputError(f"preconditioner must be invertible, its smallest singular value is {singular[-1]:.4g}")
    return T


def inverse_factor(matrix: np.ndarray) -> np.ndarray:
    """T, (n, n), lower triangular, with T P Tᵀ = I: the preconditioner made from an older P."""
    L = np.linalg.cholesky(matrix)
    return np.linalg.inv(L)


def _numbers(text: str) -> np.ndarray:
    """The numbers of a text, one row on each line; ValueError names the row that cannot be read."""
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"expected {len(rows[0])} numbers in row {number} as in row 1, got {len(row)}; fill it up, or cut it"
            )
        for column, word in enumerate(row, start=1):
            if not _is_number(word):
                raise ValueError(f"row {number}, column {column} is {word!r}; give numbers with a decimal point alone")
    return np.array([[float(word) for word in row] for row in rows])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_definite(P: np.ndarray) -> bool:
    """Whether P, scaled to unit diagonal, is positive definite in double precision."""
    diagonal = np.diag(P)
    if diagonal.min() <= 0:
        return False
    eigenvalues = np.linalg.eigvalsh(P / np.sqrt(diagonal[:, None] * diagonal))
    return bool(eigenvalues[0] > SMALLEST_PIVOT * eigenvalues[-1])


def _equilibrated(T: np.ndarray) -> np.ndarray:
    """T with rows, then columns, of unit length, so that units do not count in its condition. Rows of zeros stay."""
    for axis in (1, 0):
        length = np.linalg.norm(T, axis=axis, keepdims=True)
        T = T / np.where(length > 0, length, 1.0)
    return T
