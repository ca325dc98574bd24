"""Design: board, program and copies for one target, checked, and suggestions where there is no such board.

A program sets the elements, the noise level and the sampling period so that the board holds M = X P Xᵀ (X = diag(d) T,
d from the decision for cells, circuits.synthesis.cells) and P⁻¹ = Xᵀ M⁻¹ X. The law: the Maxwell matrix of the elements
and of all static loads, in the coordinates of the readings, is `unit` M. Values rounded to a series or to the codes of
banks are chosen for the smallest error of the inverse.

A copy whose capacitance matrix is not positive definite runs away. A design with such a copy is refused; the error
gives the yield and suggestions.

Suggestions are changes of options, and each has been tried. A part outside its limits tells which option to change, and
roughly to which value, but that change may push another part outside its limits. So every change is tried, and if it
leads to another failure, the changes proposed by that failure are tried together with it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import numpy as np

from circuits.board import Board, Conditions, Design, Program, check_name, ideal_conditions
from circuits.copies import draw_copies, draw_gains, gains_of, nominal_copy
from circuits.errors import CoarseBankError, InputError, UnstableCopyError
from circuits.nodal import Circuit, assemble_gains, is_stable, nominal_circuit
from circuits.ou import hold_period, settling_time
from circuits.synthesis.cells import CellPlan, passive_damping, plan_cells, suggest_precondition
from circuits.synthesis.elements import LoadError, element_values, static_load, unloaded
from circuits.synthesis.options import (
    YIELD_DRAWS,
    BoardError,
    BoardOptions,
    BoardRequest,
    Parasitics,
    check_options,
    check_parasitics,
    option,
    two_digits,
)
from circuits.synthesis.rounding import coded, halved, needed_range, round_fixed, round_to_series
from circuits.synthesis.target import DOUBLINGS, least_damping
from circuits.synthesis.topology import build_board, with_parasitics

GOOD_YIELD = 0.99
MOST_COPIES = 1000

LARGEST = 64  # cells
LARGEST_BANKED = 16  # cells of a board with banks, every bit of which is a node
MOST_BITS = 12
SMALLEST_PIVOT = 1e-13  # of M, relative to its largest eigenvalue: below it rounding decides whether M is definite

MOST_TRIALS = 24
MOST_CHANGES = 3  # at a time: more are another board

Make = Callable[[BoardRequest], object]


def make_design(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    *,
    name: str = "board",
    copies: int = 3,
    tolerance: float = 0.01,
    seed: int = 0,
    damping: float = 0.0,
    source: str = "matrix",
    cells: str = "auto",
    choices: BoardOptions | None = None,
    parasitics: Parasitics | None = None,
) -> Design:
    """Design board and copies for a checked target P + λI, (n, n), λ = `damping`, and a checked congruence T (n, n).

    InputError if an argument is out of range or no board can be made, UnstableCopyError if a copy would run away.
    """
    request = BoardRequest(copies, tolerance, seed, cells, choices or BoardOptions(), parasitics or Parasitics())
    return design_requested(target, congruence, request, name=name, damping=damping, source=source)


def design_requested(
    target: np.ndarray,
    congruence: np.ndarray | None,
    request: BoardRequest,
    *,
    name: str = "board",
    damping: float = 0.0,
    source: str = "matrix",
) -> Design:
    """Design the board of a request, and its copies; arguments and errors as in make_design."""
    check_name(name)
    check_copies(request.copies, request.tolerance, request.seed)
    check_options(request.options)
    check_parasitics(request.parasitics)
    board, program = board_and_program(target, congruence, request, name=name, damping=damping)
    _check_nominal(board, program)
    drawn = draw_copies(board, request.seed, request.copies)
    definite = _stable(board, program, gains_of(board, drawn))
    fraction = float(_stable(board, program, draw_gains(board, request.seed, YIELD_DRAWS)).mean())
    if not definite.all():
        failed = drawn[int(np.argmin(definite))].name
        raise UnstableCopyError(
            f"{failed} is not positive definite: at ±{request.tolerance:.3g} parts {fraction:.0%} of the copies hold "
            f"this target; {_suggestions(board, program, request, damping)} would do"
        )
    return Design(board, program, drawn, request.seed, request.tolerance, damping, fraction, source)


def reuse_design(
    old: Design,
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    *,
    name: str = "board",
    damping: float = 0.0,
    source: str = "matrix",
) -> Design:
    """Program another checked target onto the board and the copies of a design that has banks.

    InputError if its board has no banks, is of another size, or does not hold the target.
    """
    program = reprogram(old.board, target, congruence, check_name(name), damping)
    definite = _stable(old.board, program, gains_of(old.board, old.copies))
    if not definite.all():
        failed = old.copies[int(np.argmin(definite))].name
        raise UnstableCopyError(f"{failed} does not hold this target: it would run away; use a --precondition")
    fraction = float(_stable(old.board, program, draw_gains(old.board, old.seed, YIELD_DRAWS)).mean())
    return replace(old, program=program, damping=damping, yield_fraction=fraction, source=source)


def check_copies(copies: int, tolerance: float, seed: int) -> None:
    """Raise InputError unless number of copies, tolerance and seed are in range."""
    if not 1 <= copies <= MOST_COPIES:
        raise InputError(f"from 1 to {MOST_COPIES} copies can be drawn, got --copies {copies}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is a fraction from 0 to below 1 (0.01 is one per cent), got {tolerance}")
    if seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {seed}")


def holds(target: np.ndarray, congruence: np.ndarray | None, request: BoardRequest) -> bool:
    """Whether the drawn copies, and 99 % of all, hold a checked target."""
    try:
        board, program = board_and_program(target, congruence, request)
    except InputError:
        return False
    return _all_hold(board, program, _gains_to_test(board, request), request.copies)


def _stable(board: Board, program: Program, gains: np.ndarray) -> np.ndarray:
    """Whether copies of these gains (copies, parts) are stable, (copies,).

    On a board with banks the ideal circuit is tested: a capacitive one has no negative elements, and of a resistive one
    the inner nodes are eliminated.
    """
    conditions = ideal_conditions(board) if board.banks else Conditions()
    return is_stable(assemble_gains(board, program, gains, conditions))


def _check_nominal(board: Board, program: Program) -> None:
    """Raise InputError if exact parts do not hold the target: negative elements dominate behind ESR."""
    if not _stable(board, program, gains_of(board, [nominal_copy(board)]))[0]:
        raise InputError(
            "behind their ESR the positive capacitors leave the negative elements alone at high frequencies, and the "
            "board runs away; use a --precondition, --cells differential with a --damping, or no --esr"
        )


def _all_hold(board: Board, program: Program, gains: np.ndarray, copies: int) -> bool:
    definite = _stable(board, program, gains)
    return bool(definite[:copies].all() and definite[:YIELD_DRAWS].mean() >= GOOD_YIELD)


def _gains_to_test(board: Board, request: BoardRequest) -> np.ndarray:
    """Gains (copies, parts) of the requested copies, and of as many more as the yield is estimated from."""
    return draw_gains(board, request.seed, max(request.copies, YIELD_DRAWS))


def _suggestions(board: Board, program: Program, request: BoardRequest, damping: float) -> str:
    """Suggestions in words: the tolerance and the damping at which these copies and 99 % of all hold this target."""
    gains, copies, tolerance = _gains_to_test(board, request), request.copies, request.tolerance
    # The spread of parasitics and of sources does not depend on the tolerance.
    soldered = np.array(
        [not part.cause and part.role != "input" for part in board.parts] + [False] * len(board.sources)
    )
    smaller_ones = (two_digits(tolerance / 2**k, up=False) for k in range(1, DOUBLINGS) if tolerance)
    scaled = ((t, 1 + (gains - 1) * np.where(soldered, t / tolerance, 1.0)) for t in smaller_ones)
    smaller = next((t for t, less in scaled if _all_hold(board, program, less, copies)), None)
    n = len(program.target)
    raw = program.target - damping * np.eye(n)
    first = damping + 1e-6 * float(np.trace(program.target)) / n
    larger = least_damping(raw, first, lambda P: holds(P, program.congruence, request))
    found = (("--tolerance", smaller), ("--damping", larger))
    words = [f"{name} {value:.2g}" for name, value in found if value is not None]
    return " or ".join(filter(None, [", ".join(words), suggest_precondition(program.congruence)]))


def board_and_program(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    request: BoardRequest | None = None,
    *,
    name: str = "board",
    damping: float = 0.0,
) -> tuple[Board, Program]:
    """Board and program for a checked target P (n, n), n <= 64, and a checked congruence T (default: identity).

    The target contains `damping` already. InputError if no such board can be made; it suggests changes of options that
    were tried, or a larger damping.
    """
    given = request or BoardRequest()
    n = len(target)
    check_size(n, bool(given.options.bank_bits))
    if given.options.bank_bits and n == 1:
        raise InputError("a board of one cell has no coupling to switch; leave out --bank-bits")
    T = np.eye(n) if congruence is None else congruence

    def make(request: BoardRequest, target: np.ndarray = target) -> tuple[Board, Program]:
        return _attempt(target, T, request, name, damping)

    def can_be_made(P: np.ndarray) -> bool:
        try:
            make(given, P)
        except InputError:
            return False
        return True

    try:
        return make(given)
    except BoardError as error:
        first = damping + 1e-6 * float(np.trace(target)) / n
        larger = partial(least_damping, target - damping * np.eye(n), first, can_be_made)
        raise refused(error, given, make, larger) from None


def reprogram(
    board: Board, target: np.ndarray, congruence: np.ndarray | None, name: str, damping: float = 0.0
) -> Program:
    """Program another checked target (n, n), which contains `damping` already, onto a board with banks.

    InputError with suggestions if the board does not hold the target.
    """
    if not board.banks:
        raise InputError("the board has no banks: its parts are soldered for one target; design one with --bank-bits")
    n = len(target)
    if n != len(board.cells):
        raise InputError(f"the board has {len(board.cells)} cells, the target is {n} x {n}; design another board")
    T = np.eye(n) if congruence is None else congruence
    try:
        return program(board, target, T, plan_cells(target, T, board.kind, negative=False), name)
    except InputError as error:
        more = passive_damping(target, T) or 1e-6 * float(np.trace(target)) / n
        larger = least_damping(target - damping * np.eye(n), damping + more, lambda P: takes(board, P, T))
        words = [f"--damping {larger:.2g}"] if larger else []
        words += [suggest_precondition(T), "another board"]
        raise InputError(
            f"the board of {board.kind} cells does not take this target: {str(error).split('; ')[0]}; "
            f"{', '.join(words[:-1])} or {words[-1]} would do"
        ) from None


def takes(board: Board, target: np.ndarray, congruence: np.ndarray | None) -> bool:
    """Whether a board with banks holds a checked target."""
    T = np.eye(len(target)) if congruence is None else congruence
    try:
        program(board, target, T, plan_cells(target, T, board.kind, negative=False), "board")
    except InputError:
        return False
    return True


def check_size(size: int, banks: bool = False) -> None:
    """Raise InputError if a target of this many rows is too large for a board."""
    most, which = (LARGEST_BANKED, "for boards with banks ") if banks else (LARGEST, "")
    if size > most:
        raise InputError(f"targets {which}up to {most} x {most} are supported, got {size} x {size}")


def program(
    board: Board, target: np.ndarray, congruence: np.ndarray, chosen: CellPlan, name: str, series: str | None = None
) -> Program:
    """Program a target onto a board by a plan of the board's kind: element values, noise level, sampling period.

    The noise level makes the largest rms reading the board's limit. Noise held for the sampling period lowers the
    variance of the fastest mode by the board's hold bias, which the discrete law (circuits.ou) accounts for.
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
    """Raise BoardError for the largest or else the smallest value [F or S] if it is outside the board's limits.

    The limit of the largest value is `at_most` times that of a part, for that many parts in parallel.
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
    """The program with noise level, sampling period and settling time for its element values.

    `circuit` is its nominal circuit (None: assembled here).
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
    target: np.ndarray, congruence: np.ndarray, request: BoardRequest, name: str, damping: float
) -> tuple[Board, Program]:
    """Board and program by the cheapest plan, or by a grounded one where a ground element is too small for its load."""
    negative = not request.options.bank_bits
    chosen = plan_cells(target, congruence, request.cells, negative=negative, damping=damping)
    try:
        return _made(target, congruence, chosen, request, name)
    except LoadError as error:
        try:
            grounded = plan_cells(target, congruence, request.cells, negative=False, grounded=True)
            return _made(target, congruence, grounded, request, name)
        except InputError:
            raise error from None


def _made(
    target: np.ndarray, congruence: np.ndarray, chosen: CellPlan, request: BoardRequest, name: str
) -> tuple[Board, Program]:
    """Board and program by a plan; BoardError with changes to be tried."""
    options = request.options
    reach = options.bank_range
    if options.bank_bits and reach is None:
        reach = needed_range(_programmed(target, chosen.scaling[:, None] * congruence))
    board = build_board(len(target), chosen.kind, request.tolerance, options, reach or 1.0)
    check_limits(board, _soldered_for_good(board))
    if options.series:
        board = round_fixed(board, options.series)
    board = with_parasitics(board, request.parasitics)
    try:
        return board, program(board, target, congruence, chosen, name, options.series)
    except CoarseBankError as error:
        more = range(options.bank_bits + 1, MOST_BITS + 1)
        raise BoardError(str(error), *({"bank_bits": bits} for bits in more)) from None


def _changes_of_size(board: Board, ratio: float) -> Iterator[dict[str, float]]:
    """Changes that make the parts of a board larger (`ratio` above 1) or smaller."""
    unit = "unit_capacitance" if board.coupling == "capacitive" else "unit_conductance"
    yield {unit: two_digits(board.unit * ratio, up=ratio > 1)}
    if any(element.second for element in board.elements):
        yield {"parallel": 1}
    for bank in board.banks[:1]:
        yield from ({"bank_bits": bits} for bits in range(bank.bits - 1, 0, -1) if ratio > 1)
        yield {"bank_range": two_digits(bank.reach / board.unit * ratio, up=ratio > 1)}


def _soldered_for_good(board: Board) -> dict[str, float]:
    """Values [F or S] of the bits of banks and of the ground elements beside them, by part; empty without banks."""
    held = [part for part in board.parts if part.role in ("bit", "ground") and part.nominal is not None]
    return {part.name: part.nominal if part.kind == "C" else 1 / part.nominal for part in held if board.banks}


def _programmed(target: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """M = X P Xᵀ, (n, n); InputError if M is singular in double precision."""
    M = mapping @ target @ mapping.T
    eigenvalues = np.linalg.eigvalsh(M)
    if not eigenvalues[0] > SMALLEST_PIVOT * eigenvalues[-1]:
        raise InputError(
            "the matrix as programmed is singular in double precision; use a larger --damping or a --precondition"
        )
    return (M + M.T) / 2


def refused(error: BoardError, request: BoardRequest, make: Make, damping: Callable[[], float | None]) -> InputError:
    """The same error with suggestions: the first change with which a board is made, and the error's own ones.

    Where no change does, `damping` finds one that does.
    """
    found = _change(error, request, make)
    larger = None if found else damping()
    words = [" with ".join(f"{option(name)} {value:.6g}" for name, value in found.items())] if found else []
    words += [f"--damping {larger:.2g}"] if larger else []
    words += [error.otherwise] if error.otherwise else []
    return InputError(f"{error}; {' or '.join(words) or 'a --precondition'} would do")


def _change(error: BoardError, request: BoardRequest, make: Make) -> dict[str, float] | None:
    """The first change with which `make` makes a board, single ones before combinations; None if none does."""
    queue = deque(error.changes)
    tried: list[dict[str, float]] = []
    while queue and len(tried) < MOST_TRIALS:
        change = queue.popleft()
        if change in tried:
            continue
        tried.append(change)
        try:
            make(_changed(request, change))
        except BoardError as another:
            further = ({**change, **more} for more in another.changes)
            queue.extend(more for more in further if len(more) <= MOST_CHANGES)
        except InputError:
            continue
        else:
            return change
    return None


def _changed(request: BoardRequest, change: dict[str, float]) -> BoardRequest:
    """The request with other options and parasitics; InputError if they are out of range."""
    own = {field.name for field in fields(BoardOptions)}
    of_options = {name: value for name, value in change.items() if name in own}
    of_parasitics = {name: value for name, value in change.items() if name not in own}
    return replace(
        request,
        options=check_options(replace(request.options, **of_options)),
        parasitics=check_parasitics(replace(request.parasitics, **of_parasitics)),
    )
