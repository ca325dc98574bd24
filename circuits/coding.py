"""Codes for a board of switched banks, whose ground elements are soldered for good.

A digital scaling d costs nothing, so it is chosen to make the ground elements what they are: with U the target of unit
diagonal as programmed and <U> its comparison matrix, the row sums of diag(d) <U> diag(d) are to be the loads g,

    d_i (<U> d)_i = g_i,   the one minimum of ½ dᵀ <U> d - Σ g_i log d_i,   convex if <U> is positive definite.

Every target that passive cells hold therefore goes on the same board, and only couplings are switched. They take codes
by the closest-vector search of circuits.synthesis.rounding. What the pads load depends, a little, on the codes: a few passes.
"""

from dataclasses import replace

import numpy as np

from circuits.board import Bank, Board, Program
from circuits.errors import CoarseBankError
from circuits.synthesis.elements import element_values, static_load
from circuits.synthesis.options import MOST_RANGE, BoardError, two_digits
from circuits.synthesis.rounding import refitted, round_to_grid

HEADROOM = 2.0  # of the largest coupling of the first target: others will need more
NEAR_CODES = 4  # codes that are considered for a coupling
PASSES = 4
MOST_ERROR = 0.1  # of the nominal inverse: beyond it the target is lost
NEWTON_STEPS = 200


def coded(board: Board, draft: Program) -> Program:
    """The draft with codes, and the scaling that suits them, in place of whatever scaling it had but for the signs.

    CoarseBankError if no codes near the target hold its inverse better than MOST_ERROR, BoardError beyond a bank's
    reach. Every code gives a positive definite matrix: the ground elements are there, and nothing is negative.
    """
    load = static_load(board, replace(draft, values={}))
    for _ in range(PASSES):
        exact = _exact(board, draft, np.diag(load) / board.unit)
        found = _rounded(board, exact, load)
        before, load = load, static_load(board, found)
        if np.allclose(before, load, rtol=1e-12, atol=0):
            return found
    last = refitted(board, found, load)
    return replace(found, scaling=last.scaling, rounding=last.cost)


def needed_range(matrix: np.ndarray) -> float:
    """HEADROOM times the largest coupling of a target as programmed, in units, every ground element being one unit.

    For a target without couplings one unit. BoardError if it would be beyond MOST_RANGE.
    """
    U = np.abs(_unit_diagonal(matrix)[1])
    d = row_sum_scaling(2 * np.diag(np.diag(U)) - U, np.ones(len(U)))
    largest = np.abs(d[:, None] * (U - np.diag(np.diag(U))) * d).max()
    if largest == 0:
        return 1.0
    if largest > MOST_RANGE:
        words = f"banks reach at most {MOST_RANGE:g} units, the target needs {largest:.3g}"
        raise BoardError(words, otherwise="a --precondition")
    return two_digits(min(max(HEADROOM * float(largest), 2.0**-10), MOST_RANGE), up=True)


def row_sum_scaling(comparison: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """d > 0, (n,), with d_i (A d)_i = g_i for a positive definite A with non-positive off-diagonals, by Newton steps.

    >>> A, g = np.array([[1.0, -0.9], [-0.9, 1.0]]), np.array([1.0, 2.0])
    >>> d = row_sum_scaling(A, g)
    >>> bool(np.abs(d * (A @ d) - g).max() < 1e-14)
    True
    """
    d = np.sqrt(sums / np.diag(comparison))
    for _ in range(NEWTON_STEPS):
        gradient = comparison @ d - sums / d
        step = np.linalg.solve(comparison + np.diag(sums / d**2), gradient)
        decrement = np.sqrt(max(gradient @ step, 0.0))
        d = d - step / (1 + decrement / np.sqrt(sums.min()))  # damped: the function is self-concordant
        if decrement < 1e-15 * np.sqrt(sums.sum()):
            break
    return d


def _unit_diagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaling (n,) that makes the diagonal one, and the matrix so scaled."""
    unit = np.diag(matrix) ** -0.5
    U = unit[:, None] * matrix * unit
    np.fill_diagonal(U, 1.0)
    return unit, U


def _exact(board: Board, draft: Program, sums: np.ndarray) -> Program:
    """The draft with the scaling that makes the row sums those [units], and its exact couplings."""
    unit, U = _unit_diagonal(draft.congruence @ draft.target @ draft.congruence.T)
    U = np.abs(U)
    scaling = np.sign(draft.scaling) * unit * row_sum_scaling(2 * np.diag(np.diag(U)) - U, sums)
    scaled = replace(draft, scaling=scaling)
    values = element_values(board, scaled.matrix)
    for name, bank in _banks(board).items():
        if values.get(name, 0.0) > bank.reach + bank.unit / 2:
            raise BoardError(
                f"coupling {name} needs {values[name]:.3g} {board.element_unit}, its bank reaches {bank.reach:.3g}",
                {"bank_range": two_digits(values[name] / board.unit, up=True)},
                otherwise="a --precondition",
            )
    return replace(scaled, values=values)


def _rounded(board: Board, exact: Program, load: np.ndarray) -> Program:
    banks = _banks(board)
    grid = [_near(value / banks[e].unit, 2 ** banks[e].bits - 1) * banks[e].unit for e, value in exact.values.items()]
    bits = board.banks[0].bits
    name = f"banks of {bits} bit{'s' * (bits != 1)}"
    rounding = round_to_grid(board, exact, np.array(grid).reshape(len(grid), NEAR_CODES), name, load)
    if not rounding.cost.error < MOST_ERROR:
        raise CoarseBankError(
            f"{name} are too coarse for the target: the nominal inverse would be off by {rounding.cost.error:.0%}"
        )
    values = {element: value for element, value in rounding.values.items() if value}
    return replace(exact, values=values, scaling=rounding.scaling, rounding=rounding.cost)


def _banks(board: Board) -> dict[str, Bank]:
    """The bank of every element."""
    return {name: bank for bank in board.banks for name in bank.elements}


def _near(exact: float, most: int) -> np.ndarray:
    """The NEAR whole numbers from 0 to `most` nearest to `exact`, nearest first; some twice if there are fewer."""
    start = int(np.clip(np.floor(exact) - 1, 0, max(most - NEAR_CODES + 1, 0)))
    near = np.arange(start, start + NEAR_CODES).clip(max=most)
    return near[np.argsort(np.abs(near - exact), kind="stable")]
