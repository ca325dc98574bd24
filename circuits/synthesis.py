"""From a target to element values: which cells it needs, how it is scaled, and what every element is.

The board is to hold M = X P Xᵀ (X = diag(d) T) so that P⁻¹ = Xᵀ M⁻¹ X. Steps, each taken only if the one before
does not do:

1. plain cells, if some signs s make the off-diagonals of S P S non-positive (reading signs);
2. differential cells, straight or crossed by the sign of the entry;
   for both, d is the plain unit-diagonal scaling, or <U>⁻¹ 1 (<U> the comparison matrix of the unit-diagonal
   target), which makes M diagonally dominant whenever <U> is positive definite;
3. negative elements, which hold every positive definite target.

The law: the Maxwell matrix of the returned elements, as the readings see it, is c0 M.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import nominal_circuit
from circuits.board import Board, Program
from circuits.derivation import element_formulas
from circuits.errors import InputError
from circuits.layout import rlc_board
from circuits.ou import hold_period

GROUND_MINIMUM = 0.1  # of the unit capacitance: ground element that keeps the common mode definite
SCALING_LIMIT = 10.0  # largest weight of a dominance scaling; beyond it the ground elements are too small a part
SLACK_MINIMUM = 0.01  # of the unit capacitance: a smaller ground element counts as none on differential cells
HOLD_BIAS = 0.03  # of the fastest mode's variance, lost to the held noise and put back by the discrete law
LARGEST = 8  # cells
SMALLEST_PIVOT = 1e-13  # of M, relative to its largest eigenvalue: below it rounding decides whether M is definite


@dataclass(frozen=True, eq=False)
class Plan:
    """Which board a target needs: cell kind, signed scaling d (n,), and the step in words."""

    kind: str
    scaling: np.ndarray
    step: str


def plan(target: np.ndarray, congruence: np.ndarray, cells: str = "auto") -> Plan:
    """Choose the cheapest step that holds T P Tᵀ; `cells` "differential" leaves plain cells out."""
    M = congruence @ target @ congruence.T
    unit = np.diag(M) ** -0.5
    U = unit[:, None] * M * unit
    np.fill_diagonal(U, 1.0)
    slack = (2 * np.diag(U) - np.abs(U).sum(axis=1)).min()
    signs = reading_signs(U) if cells == "auto" else None
    if signs is not None:
        weights = np.ones(len(U)) if slack >= 0 else _dominance(U)
        if weights is not None:
            words = ["plain cells"] + ["reading signs"] * bool((signs < 0).any())
            words += ["scaled to dominance"] * bool(slack < 0)
            return Plan("plain", _normalised(signs * unit * weights, M), ", ".join(words))
    if slack >= SLACK_MINIMUM:
        return Plan("differential", unit, "differential cells")
    weights = _dominance(U)
    if weights is not None and weights.max() <= SCALING_LIMIT:
        return Plan("differential", _normalised(unit * weights, M), "differential cells, scaled to dominance")
    return Plan("differential", unit, "differential cells with negative elements")


def design(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    name: str = "board",
    tolerance: float = 0.01,
    cells: str = "auto",
) -> tuple[Board, Program]:
    """Board and program for a checked target P (n, n), n <= 8, and a checked congruence T (default: identity)."""
    size = len(target)
    check_size(size)
    if cells not in ("auto", "differential"):
        raise InputError(f"--cells is auto or differential, got {cells!r}")
    T = np.eye(size) if congruence is None else congruence
    chosen = plan(target, T, cells)
    board = rlc_board(size, chosen.kind, tolerance)
    return board, program(board, target, T, chosen, name)


def check_size(size: int) -> None:
    """Raise InputError if a target of this many rows is too large for a board."""
    if size > LARGEST:
        raise InputError(f"targets up to {LARGEST} x {LARGEST} are supported, got {size} x {size}")


def program(board: Board, target: np.ndarray, congruence: np.ndarray, chosen: Plan, name: str) -> Program:
    """Put a target on a board by a plan of the board's kind: element values, noise level, sampling period.

    The noise level makes the largest rms reading the board's limit; the sampling period costs the fastest mode 3 %
    of its variance, which the discrete law knows.
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
    unit_variance = board.nodes_per_cell * np.diag(np.linalg.inv(M)).max() / board.unit_capacitance
    energy = board.limits.reading_rms**2 / unit_variance
    draft = Program(name, target, congruence, chosen.scaling, chosen.step, values, float(energy), 1.0)
    circuit = nominal_circuit(board, draft)
    period = hold_period(circuit, HOLD_BIAS)
    return Program(name, target, congruence, chosen.scaling, chosen.step, values, float(energy), float(period))


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


def reading_signs(matrix: np.ndarray) -> np.ndarray | None:
    """Signs s (n,) with s_i M_ij s_j <= 0 for all i ≠ j, or None if the sign pattern is not balanced."""
    n = len(matrix)
    signs = np.zeros(n)
    for root in range(n):
        if signs[root]:
            continue
        signs[root] = 1
        queue = [root]
        while queue:
            i = queue.pop()
            for j in np.flatnonzero(matrix[i]):
                wanted = -np.sign(matrix[i, j]) * signs[i]
                if j != i and signs[j] == 0:
                    signs[j] = wanted
                    queue.append(j)
                elif j != i and signs[j] != wanted:
                    return None
    return signs


def _dominance(U: np.ndarray) -> np.ndarray | None:
    comparison = 2 * np.diag(np.diag(U)) - np.abs(U)
    if np.linalg.eigvalsh(comparison)[0] <= 0:
        return None
    return np.linalg.solve(comparison, np.ones(len(U)))


def _normalised(scaling: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Scale d so that the largest diagonal entry of diag(d) M diag(d) is 1."""
    return scaling / np.sqrt((scaling**2 * np.diag(M)).max())
