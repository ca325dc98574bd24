"""From a target to a board and a program for it: what every element is, the noise level, the sampling period.

The board is to hold M = X P Xᵀ (X = diag(d) T, d from the ladder) so that P⁻¹ = Xᵀ M⁻¹ X. The law: the Maxwell
matrix of the returned elements and of all static loads, as the readings see it, is `unit` M; rounded to a series or to
the codes of banks it is as near to that as the inverse allows.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from circuits.board import Board, Program
from circuits.coding import coded, needed_range
from circuits.errors import CoarseBankError, InputError
from circuits.grids import halved, round_fixed, round_to_series
from circuits.nodal import Circuit, nominal_circuit
from circuits.ou import hold_period, settling_time
from circuits.parasitics import with_parasitics
from circuits.remedies import refused
from circuits.synthesis.cells import Plan, passive_damping, plan, precondition
from circuits.synthesis.elements import LoadError, element_values, static_load, unloaded
from circuits.synthesis.options import BoardError, Choices, Parasitics, two_digits
from circuits.synthesis.target import least_damping
from circuits.synthesis.topology import build_board

LARGEST = 64  # cells
LARGEST_BANKED = 16  # cells of a board with banks, every bit of which is a node
MOST_BITS = 12
SMALLEST_PIVOT = 1e-13  # of M, relative to its largest eigenvalue: below it rounding decides whether M is definite


def board_and_program(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    name: str = "board",
    tolerance: float = 0.01,
    cells: str = "auto",
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
    damping: float = 0.0,
) -> tuple[Board, Program]:
    """Board and program for a checked target P (n, n), n <= 64, and a checked congruence T (default: identity).

    InputError says what would do where no such board can be made: changes of the choices that were tried, or a damping
    of which `damping` is in the target already.
    """
    given, unwelcome = choices or Choices(), parasitics or Parasitics()
    n = len(target)
    check_size(n, bool(given.bank_bits))
    if given.bank_bits and n == 1:
        raise InputError("a board of one cell has no coupling to switch; leave out --bank-bits")
    T = np.eye(n) if congruence is None else congruence

    def make(choices: Choices, parasitics: Parasitics, target: np.ndarray = target) -> tuple[Board, Program]:
        return _attempt(target, T, name, tolerance, cells, choices, parasitics, damping)

    def holds(P: np.ndarray) -> bool:
        try:
            make(given, unwelcome, P)
        except InputError:
            return False
        return True

    try:
        return make(given, unwelcome)
    except BoardError as error:
        first = damping + 1e-6 * float(np.trace(target)) / n
        larger = partial(least_damping, target - damping * np.eye(n), first, holds)
        raise refused(error, given, unwelcome, make, larger) from None


def reprogram(
    board: Board, target: np.ndarray, congruence: np.ndarray | None, name: str, damping: float = 0.0
) -> Program:
    """Put another checked target on a board with banks; InputError if it does not go there, with what would.

    `damping` is in the target already.
    """
    if not board.banks:
        raise InputError("the board has no banks: its parts are soldered for one target; design one with --bank-bits")
    n = len(target)
    if n != len(board.cells):
        raise InputError(f"the board has {len(board.cells)} cells, the target is {n} x {n}; design another board")
    T = np.eye(n) if congruence is None else congruence
    try:
        return program(board, target, T, plan(target, T, board.kind, negative=False), name)
    except InputError as error:
        more = passive_damping(target, T) or 1e-6 * float(np.trace(target)) / n
        larger = least_damping(target - damping * np.eye(n), damping + more, lambda P: takes(board, P, T))
        words = [f"--damping {larger:.2g}"] if larger else []
        words += [precondition(T), "another board"]
        raise InputError(
            f"the board of {board.kind} cells does not take this target: {str(error).split('; ')[0]}; "
            f"{', '.join(words[:-1])} or {words[-1]} would do"
        ) from None


def takes(board: Board, target: np.ndarray, congruence: np.ndarray | None) -> bool:
    """Whether a checked target goes on a board with banks."""
    T = np.eye(len(target)) if congruence is None else congruence
    try:
        program(board, target, T, plan(target, T, board.kind, negative=False), "board")
    except InputError:
        return False
    return True


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
    parallel = any(element.second for element in board.elements)
    if series:
        check_limits(board, draft.values, at_most=parallel + 1)
        draft = round_to_series(board, draft, series, load)
    else:
        draft = replace(draft, values=halved(draft.values)) if parallel else draft
        check_limits(board, draft.values)
    return levelled(board, draft)


def check_limits(board: Board, values: dict[str, float], at_most: int = 1) -> None:
    """Raise BoardError that names the value [F or S] farthest outside the board's limits.

    One of `at_most` parts is held to the largest only with its share.
    """
    if not values:
        return
    smallest, largest = board.limits.smallest, board.limits.largest
    sizes = {name: abs(value) for name, value in values.items()}
    low, high = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    if sizes[high] > largest * at_most:
        name, limit, word, ratio = high, largest, "largest", largest * at_most / sizes[high]
    elif sizes[low] < smallest:
        name, limit, word, ratio = low, smallest, "smallest", smallest / sizes[low]
    else:
        return
    kind = "part" if board.banks else "element"
    raise BoardError(
        f"{kind} {name} needs {values[name]:.3g} {board.element_unit}, beyond the {word} this board may have, "
        f"{limit:.3g} {board.element_unit}",
        *_changes_of_size(board, ratio),
        {f"{word}_element": two_digits(sizes[name] / at_most, up=word == "largest")},
    )


def levelled(board: Board, draft: Program, circuit: Circuit | None = None) -> Program:
    """The program with noise level, sampling period and settling time for the element values it has.

    `circuit` is its nominal one, if that is known already.
    """
    circuit = circuit or nominal_circuit(board, draft)
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


def _attempt(
    target: np.ndarray,
    congruence: np.ndarray,
    name: str,
    tolerance: float,
    cells: str,
    choices: Choices,
    parasitics: Parasitics,
    damping: float,
) -> tuple[Board, Program]:
    """Board and program by the cheapest plan, or where that leaves no ground element to take a load from, grounded."""
    chosen = plan(target, congruence, cells, negative=not choices.bank_bits, damping=damping)
    try:
        return _made(target, congruence, chosen, name, tolerance, choices, parasitics)
    except LoadError as error:
        try:
            grounded = plan(target, congruence, cells, negative=False, grounded=True)
            return _made(target, congruence, grounded, name, tolerance, choices, parasitics)
        except InputError:
            raise error from None


def _made(
    target: np.ndarray,
    congruence: np.ndarray,
    chosen: Plan,
    name: str,
    tolerance: float,
    choices: Choices,
    parasitics: Parasitics,
) -> tuple[Board, Program]:
    """Board and program by a plan; BoardError says which changes may do."""
    reach = choices.bank_range
    if choices.bank_bits and reach is None:
        reach = needed_range(_programmed(target, chosen.scaling[:, None] * congruence))
    board = build_board(len(target), chosen.kind, tolerance, choices, reach or 1.0)
    check_limits(board, _soldered_for_good(board))
    if choices.series:
        board = round_fixed(board, choices.series)
    board = with_parasitics(board, parasitics)
    try:
        return board, program(board, target, congruence, chosen, name, choices.series)
    except CoarseBankError as error:
        more = range(choices.bank_bits + 1, MOST_BITS + 1)
        raise BoardError(str(error), *({"bank_bits": bits} for bits in more)) from None


def _changes_of_size(board: Board, ratio: float) -> Iterator[dict[str, float]]:
    """What makes the parts of a board larger (`ratio` above 1) or smaller."""
    unit = "unit_capacitance" if board.coupling == "capacitive" else "unit_conductance"
    yield {unit: two_digits(board.unit * ratio, up=ratio > 1)}
    if any(element.second for element in board.elements):
        yield {"parallel": 1}
    for bank in board.banks[:1]:
        yield from ({"bank_bits": bits} for bits in range(bank.bits - 1, 0, -1) if ratio > 1)
        yield {"bank_range": two_digits(bank.reach / board.unit * ratio, up=ratio > 1)}


def _soldered_for_good(board: Board) -> dict[str, float]:
    """What the bits of banks, and what leads to ground beside them, are [F or S], by part; nothing without banks."""
    held = [part for part in board.parts if part.role in ("bit", "ground") and part.nominal is not None]
    return {part.name: part.nominal if part.kind == "C" else 1 / part.nominal for part in held if board.banks}


def _programmed(target: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    M = mapping @ target @ mapping.T
    eigenvalues = np.linalg.eigvalsh(M)
    if not eigenvalues[0] > SMALLEST_PIVOT * eigenvalues[-1]:
        raise InputError(
            "the matrix as programmed is singular in double precision; use a larger --damping or a --precondition"
        )
    return (M + M.T) / 2
