"""A design: board, program and copies for one target, checked, and the folder that holds it.

Folder: `board.json` (the records, and for every cell its nodes, sources and scale), `netlists/nominal.cir` and
`netlists/copy-k.cir`. A copy whose capacitance matrix is not positive definite is a board that runs away; such a
design is refused, with the yield and what would do.
"""

from dataclasses import replace

import numpy as np

from circuits.board import Board, Conditions, Design, Program, check_name, ideal_conditions
from circuits.copies import draw_copies, draw_gains, gains_of, nominal_copy
from circuits.errors import InputError, UnstableCopyError
from circuits.nodal import assemble_gains, is_stable
from circuits.synthesis.cells import precondition
from circuits.synthesis.options import Choices, Parasitics, check_choices, check_parasitics, two_digits
from circuits.synthesis.synthesis import board_and_program as synthesise
from circuits.synthesis.synthesis import reprogram
from circuits.synthesis.target import DOUBLINGS, least_damping

YIELD_DRAWS = 400
GOOD_YIELD = 0.99
MOST_COPIES = 1000


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
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
) -> Design:
    """Design board and copies for a checked target (damping already in it); InputError if a copy would run away."""
    check_name(name)
    check_options(copies, tolerance, seed)
    made, extra = check_choices(choices or Choices()), check_parasitics(parasitics or Parasitics())
    board, program = synthesise(target, congruence, name, tolerance, cells, made, extra, damping)
    _check_nominal(board, program)
    drawn = draw_copies(board, seed, copies)
    definite = _stable(board, program, gains_of(board, drawn))
    fraction = float(_stable(board, program, draw_gains(board, seed, YIELD_DRAWS)).mean())
    if not definite.all():
        failed = drawn[int(np.argmin(definite))].name
        remedies = _remedies(board, program, copies, tolerance, seed, damping, cells, made, extra)
        raise UnstableCopyError(
            f"{failed} is not positive definite: at ±{tolerance:.3g} parts {fraction:.0%} of the copies hold this "
            f"target; {remedies} would do"
        )
    return Design(board, program, drawn, seed, tolerance, damping, fraction, source)


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

    InputError if its board has none, is of another size, or holds no such target.
    """
    program = reprogram(old.board, target, congruence, check_name(name), damping)
    definite = _stable(old.board, program, gains_of(old.board, old.copies))
    if not definite.all():
        failed = old.copies[int(np.argmin(definite))].name
        raise UnstableCopyError(f"{failed} does not hold this target: it would run away; use a --precondition")
    fraction = float(_stable(old.board, program, draw_gains(old.board, old.seed, YIELD_DRAWS)).mean())
    return replace(old, program=program, damping=damping, yield_fraction=fraction, source=source)


def check_options(copies: int, tolerance: float, seed: int) -> None:
    """Raise InputError unless copies can be drawn with these."""
    if not 1 <= copies <= MOST_COPIES:
        raise InputError(f"from 1 to {MOST_COPIES} copies can be drawn, got --copies {copies}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is a fraction from 0 to below 1 (0.01 is one per cent), got {tolerance}")
    if seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {seed}")


def holds(
    target: np.ndarray,
    congruence: np.ndarray | None,
    copies: int,
    tolerance: float,
    seed: int,
    cells: str,
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
) -> bool:
    """Whether the drawn copies, and 99 % of all, hold a checked target."""
    try:
        board, program = synthesise(target, congruence, "board", tolerance, cells, choices, parasitics)
    except InputError:
        return False
    return _all_hold(board, program, draw_gains(board, seed, max(copies, YIELD_DRAWS)), copies)


def _stable(board: Board, program: Program, gains: np.ndarray) -> np.ndarray:
    """Whether copies of these gains (copies, parts) are stable, (copies,).

    On a board with banks the ideal circuit says it: there is nothing negative on a capacitive one, and on a resistive
    one the inner nodes are eliminated.
    """
    conditions = ideal_conditions(board) if board.banks else Conditions()
    return is_stable(assemble_gains(board, program, gains, conditions))


def _check_nominal(board: Board, program: Program) -> None:
    """Raise InputError if not even exact parts hold the target: a negative element that ESR leaves alone."""
    if not _stable(board, program, gains_of(board, [nominal_copy(board)]))[0]:
        raise InputError(
            "behind their ESR the positive capacitors leave the negative elements alone at high frequencies, and the "
            "board runs away; use a --precondition, --cells differential with a --damping, or no --esr"
        )


def _all_hold(board: Board, program: Program, gains: np.ndarray, copies: int) -> bool:
    definite = _stable(board, program, gains)
    return bool(definite[:copies].all() and definite[:YIELD_DRAWS].mean() >= GOOD_YIELD)


def _remedies(
    board: Board,
    program: Program,
    copies: int,
    tolerance: float,
    seed: int,
    damping: float,
    cells: str,
    choices: Choices,
    parasitics: Parasitics,
) -> str:
    """What would do in words: the tolerance and the damping at which these copies and 99 % of all hold this target."""
    gains = draw_gains(board, seed, max(copies, YIELD_DRAWS))
    # Parts that come with others, and sources, keep the spread they have whatever the tolerance is.
    soldered = np.array(
        [not part.cause and part.role != "input" for part in board.parts] + [False] * len(board.sources)
    )
    halved = (two_digits(tolerance / 2**k, up=False) for k in range(1, DOUBLINGS) if tolerance)
    scaled = ((t, 1 + (gains - 1) * np.where(soldered, t / tolerance, 1.0)) for t in halved)
    smaller = next((t for t, less in scaled if _all_hold(board, program, less, copies)), None)
    n = len(program.target)
    raw = program.target - damping * np.eye(n)
    first = damping + 1e-6 * float(np.trace(program.target)) / n
    wanted = (program.congruence, copies, tolerance, seed, cells, choices, parasitics)
    larger = least_damping(raw, first, lambda P: holds(P, *wanted))
    found = (("--tolerance", smaller), ("--damping", larger))
    words = [f"{option} {value:.2g}" for option, value in found if value is not None]
    return " or ".join(filter(None, [", ".join(words), precondition(program.congruence)]))
