"""From a target to a board and a program for it: what every element is, the noise level, the sampling period.

The board is to hold M = X P Xᵀ (X = diag(d) T, d from the ladder) so that P⁻¹ = Xᵀ M⁻¹ X. The law: the Maxwell
matrix of the returned elements, as the readings see it, is c0 M.
"""

from dataclasses import replace

import numpy as np

from circuits.assembly import nominal_circuit
from circuits.board import Board, Program
from circuits.derivation import element_formulas
from circuits.errors import InputError
from circuits.ladder import SLACK_MINIMUM, Plan, plan
from circuits.layout import Choices, rlc_board
from circuits.ou import hold_period, settling_time

GROUND_MINIMUM = 0.1  # of the unit capacitance: ground element that keeps the common mode definite
LARGEST = 64  # cells
SMALLEST_PIVOT = 1e-13  # of M, relative to its largest eigenvalue: below it rounding decides whether M is definite


def design(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    name: str = "board",
    tolerance: float = 0.01,
    cells: str = "auto",
    choices: Choices | None = None,
) -> tuple[Board, Program]:
    """Board and program for a checked target P (n, n), n <= 64, and a checked congruence T (default: identity)."""
    size = len(target)
    check_size(size)
    T = np.eye(size) if congruence is None else congruence
    chosen = plan(target, T, cells)
    board = rlc_board(size, chosen.kind, tolerance, choices)
    return board, program(board, target, T, chosen, name)


def check_size(size: int) -> None:
    """Raise InputError if a target of this many rows is too large for a board."""
    if size > LARGEST:
        raise InputError(f"targets up to {LARGEST} x {LARGEST} are supported, got {size} x {size}")


def program(board: Board, target: np.ndarray, congruence: np.ndarray, chosen: Plan, name: str) -> Program:
    """Put a target on a board by a plan of the board's kind: element values, noise level, sampling period.

    The noise level makes the largest rms reading the board's limit; the sampling period costs the fastest mode the
    board's hold bias of its variance, which the discrete law knows.
    """
    X = chosen.scaling[:, None] * congruence
    M = X @ target @ X.T
    eigenvalues = np.linalg.eigvalsh(M)
    if not eigenvalues[0] > SMALLEST_PIVOT * eigenvalues[-1]:
        raise InputError(
            "the matrix as programmed is singular in double precision; use a larger --damping or a --precondition"
        )
    values = element_values(board, (M + M.T) / 2)
    largest = max(abs(value) for value in values.values())
    if largest > board.limits.capacitance:
        raise InputError(
            f"element of {largest:.3g} F is beyond the board's limit of {board.limits.capacitance:.3g} F; "
            "use a larger --damping or a --precondition"
        )
    draft = Program(name, target, congruence, chosen.scaling, chosen.step, chosen.reason, values, 1.0, 1.0, 1.0)
    return levelled(board, draft)


def levelled(board: Board, draft: Program) -> Program:
    """The program with noise level, sampling period and settling time for the element values it has."""
    circuit = nominal_circuit(board, draft)
    H = circuit.readout
    variance = np.diag(H @ np.linalg.inv(circuit.capacitance) @ H.T).max()  # of a reading, in units of kT
    return replace(
        draft,
        energy=float(board.limits.reading_rms**2 / variance),
        period=hold_period(circuit, board.limits.hold_bias),
        settling=settling_time(circuit),
    )


def element_values(board: Board, matrix: np.ndarray) -> dict[str, float]:
    """Values [F] of the populated elements that make the board hold M (n, n)."""
    formulas = element_formulas(board.kind)
    c0 = board.unit_capacitance
    M = c0 * matrix
    coupling = np.abs(M).sum(axis=1) - np.abs(np.diag(M))
    slack = formulas.slack(np.diag(M), coupling)
    # Plain cells have no common mode to hold up, and a row sum of exactly zero, seen through rounding, is none.
    short = slack < (SLACK_MINIMUM * 0.99 * c0 if board.kind == "differential" else -np.inf)
    slack = np.where(np.abs(slack) < 1e-13 * np.diag(M), 0.0, slack)
    ground = np.where(short, GROUND_MINIMUM * c0, slack)
    negative = np.where(short, formulas.negative(np.diag(M), coupling, ground), 0.0)
    value = {
        "ground": lambda i: ground[i],
        "negative": lambda i: negative[i],
        "straight": lambda i, j: max(formulas.straight(M[i, j]), 0.0),
        "crossed": lambda i, j: max(formulas.crossed(M[i, j]), 0.0),
    }
    values = {element.name: float(value[element.kind](*element.cells)) for element in board.elements}
    return {name: size for name, size in values.items() if size != 0.0}
