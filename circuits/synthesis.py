"""From a target to a board and a program for it: what every element is, the noise level, the sampling period.

The board is to hold M = X P Xᵀ (X = diag(d) T, d from the ladder) so that P⁻¹ = Xᵀ M⁻¹ X. The law: the Maxwell
matrix of the returned elements and of all static loads, as the readings see it, is `unit` M; rounded to a series or to
the codes of banks it is as near to that as the inverse allows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from circuits.assembly import nominal_circuit
from circuits.board import Board, Program
from circuits.choices import Choices
from circuits.coding import coded, needed_range
from circuits.elements import element_values, static_load, unloaded
from circuits.errors import CoarseBankError, InputError
from circuits.grids import halved, round_fixed, round_to_series
from circuits.ladder import Plan, plan
from circuits.layout import build_board
from circuits.ou import hold_period, settling_time
from circuits.parasitics import Parasitics, with_parasitics
from circuits.target import two_digits

LARGEST = 64  # cells
LARGEST_BANKED = 16  # cells of a board with banks, every bit of which is a node
MOST_BITS = 12
SMALLEST_PIVOT = 1e-13  # of M, relative to its largest eigenvalue: below it rounding decides whether M is definite


def design(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    name: str = "board",
    tolerance: float = 0.01,
    cells: str = "auto",
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
) -> tuple[Board, Program]:
    """Board and program for a checked target P (n, n), n <= 64, and a checked congruence T (default: identity)."""
    made = choices or Choices()
    check_size(len(target), bool(made.bank_bits))
    if made.bank_bits and len(target) == 1:
        raise InputError("a board of one cell has no coupling to switch; leave out --bank-bits")
    T = np.eye(len(target)) if congruence is None else congruence
    chosen = plan(target, T, cells, negative=not made.bank_bits)

    def built(bits: int) -> Board:
        return _board(target, T, chosen, tolerance, replace(made, bank_bits=bits), parasitics)

    board = built(made.bank_bits)
    try:
        return board, program(board, target, T, chosen, name, made.series)
    except CoarseBankError as error:
        more = range(made.bank_bits + 1, MOST_BITS + 1)
        enough = next((bits for bits in more if _goes(built, bits, target, T, chosen)), None)
        remedy = f"--bank-bits {enough} would do" if enough else "use a larger --damping or a --precondition"
        raise InputError(f"{error}; {remedy}") from None


def reprogram(board: Board, target: np.ndarray, congruence: np.ndarray | None, name: str) -> Program:
    """Put another checked target on a board with banks; InputError if it does not go there."""
    if not board.banks:
        raise InputError("the board has no banks: its parts are soldered for one target; design one with --bank-bits")
    n = len(target)
    if n != len(board.cells):
        raise InputError(f"the board has {len(board.cells)} cells, the target is {n} x {n}; design another board")
    T = np.eye(n) if congruence is None else congruence
    try:
        return program(board, target, T, plan(target, T, board.kind, negative=False), name)
    except InputError as error:
        words = str(error).split("; ")[0]
        raise InputError(
            f"the board of {board.kind} cells does not take this target: {words}; use a --precondition, a larger "
            "--damping, or another board"
        ) from None


def check_size(size: int, banks: bool = False) -> None:
    """Raise InputError if a target of this many rows is too large for a board."""
    most, which = (LARGEST_BANKED, "for boards with banks ") if banks else (LARGEST, "")
    if size > most:
        raise InputError(f"targets {which}up to {most} x {most} are supported, got {size} x {size}")


def program(
    board: Board, target: np.ndarray, congruence: np.ndarray, chosen: Plan, name: str, series: str | None = None
) -> Program:
    """Put a target on a board by a plan of the board's kind: element values, noise level, sampling period.

    The noise level makes the largest rms reading the board's limit; the sampling period costs the fastest mode the
    board's hold bias of its variance, which the discrete law knows.
    """
    M = _programmed(target, chosen.scaling[:, None] * congruence)
    values = {} if board.banks else element_values(board, M)
    draft = Program(name, target, congruence, chosen.scaling, chosen.step, chosen.reason, values, 1.0, 1.0, 1.0)
    if board.banks:
        return levelled(board, coded(board, draft))
    load = static_load(board, draft)
    draft = replace(draft, values=unloaded(board, values, load))
    _check_limits(board, draft.values)
    if series:
        draft = round_to_series(board, draft, series, load)
    elif any(element.second for element in board.elements):
        draft = replace(draft, values=halved(draft.values))
    return levelled(board, draft)


def levelled(board: Board, draft: Program) -> Program:
    """The program with noise level, sampling period and settling time for the element values it has."""
    circuit = nominal_circuit(board, draft)
    H = circuit.readout
    capacitive = board.coupling == "capacitive"
    held = circuit.capacitance / board.capacitance if capacitive else circuit.conductance / board.unit
    variance = np.diag(H @ np.linalg.inv(held) @ H.T).max() / board.capacitance  # of a reading, in units of kT
    return replace(
        draft,
        energy=float(board.limits.reading_rms**2 / variance),
        period=hold_period(circuit, board.limits.hold_bias),
        settling=settling_time(circuit),
    )


def _board(
    target: np.ndarray,
    congruence: np.ndarray,
    chosen: Plan,
    tolerance: float,
    choices: Choices,
    parasitics: Parasitics | None,
) -> Board:
    reach = choices.bank_range
    if choices.bank_bits and reach is None:
        reach = needed_range(_programmed(target, chosen.scaling[:, None] * congruence))
    board = build_board(len(target), chosen.kind, tolerance, choices, reach or 1.0)
    if choices.series:
        board = round_fixed(board, choices.series)
    return with_parasitics(board, parasitics) if parasitics else board


def _goes(built: Callable[[int], Board], bits: int, target: np.ndarray, congruence: np.ndarray, chosen: Plan) -> bool:
    """Whether a board with banks of so many bits can be built and takes the target."""
    try:
        program(built(bits), target, congruence, chosen, "board")
    except InputError:
        return False
    return True


def _programmed(target: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    M = mapping @ target @ mapping.T
    eigenvalues = np.linalg.eigvalsh(M)
    if not eigenvalues[0] > SMALLEST_PIVOT * eigenvalues[-1]:
        raise InputError(
            "the matrix as programmed is singular in double precision; use a larger --damping or a --precondition"
        )
    return (M + M.T) / 2


def _check_limits(board: Board, values: dict[str, float]) -> None:
    """Raise InputError that names the element farthest outside the board's limits, and what would bring it inside."""
    unit, option = board.element_unit, "--unit-capacitance" if board.coupling == "capacitive" else "--unit-conductance"
    smallest, largest = board.limits.smallest, board.limits.largest
    sizes = {name: abs(value) for name, value in values.items()}
    low, high = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    if sizes[high] > largest:
        name, limit, word = high, largest, "largest"
        would_do = two_digits(board.unit * largest / sizes[high], up=False)
    elif sizes[low] < smallest:
        name, limit, word = low, smallest, "smallest"
        would_do = two_digits(board.unit * smallest / sizes[low], up=True)
    else:
        return
    ratio = would_do / board.unit
    fits = smallest <= sizes[low] * ratio and sizes[high] * ratio <= largest
    remedy = (
        f"{option} {would_do:.2g}" if fits else f"--{word}-element {two_digits(sizes[name], word == 'largest'):.2g}"
    )
    raise InputError(
        f"element {name} needs {values[name]:.3g} {unit}, beyond the {word} this board may have, {limit:.3g} {unit}; "
        f"{remedy} would do"
    )
