"""Copies of a board: the values of their parts, and the nodes of the parts.

The parts of a copy are drawn once, by name, independent of the program. A program sets element values and closes
switches; conditions switch causes on and off. The netlist writer and the matrix assembly take the value of every part,
and the nodes that wires join, from here; each of them makes the circuit from the parts on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuits.board import (
    GROUND,
    REFERENCE_CELSIUS,
    TEMPERATURES,
    TOLERANCE,
    Board,
    Conditions,
    Copy,
    Design,
    Part,
    Program,
    Source,
)
from circuits.files import sha256

PART_STREAM = 1  # every use of random numbers has a stream of its own, even with equal seeds


@dataclass(frozen=True, eq=False)
class Wiring:
    """Nodes of all parts, where resistances that are switched off are wires.

    `nodes` are the remaining nodes, those of the cells first; `ends` (parts, 2) are indices into them, -1 for ground;
    `present` (parts,) tells whether each part is present.
    """

    nodes: tuple[str, ...]
    ends: np.ndarray
    present: np.ndarray


def nominal_copy(board: Board) -> Copy:
    """The copy whose every part and source is exactly nominal."""
    return Copy("nominal", {entry.name: 1.0 for entry in _spread(board)})


def specimens(design: Design) -> tuple[Copy, ...]:
    """The nominal board, then the copies of a design."""
    return (nominal_copy(design.board), *design.copies)


def draw_gains(board: Board, seed: int, copies: int) -> np.ndarray:
    """Ratios actual/nominal of `copies` specimens, (copies, parts + sources): 1 + tolerance · uniform(-1, 1).

    A part's ratio depends on `seed`, the copy's number and the part's name alone: more copies, or more parts on the
    board, do not change the other ratios.
    """
    tolerance = np.array([entry.tolerance for entry in _spread(board)])
    names = np.array([int(sha256(entry.name)[:16], 16) for entry in _spread(board)], dtype=np.uint64)
    keys = np.array(
        [np.random.SeedSequence([PART_STREAM, seed, k]).generate_state(1, np.uint64) for k in range(copies)]
    )
    uniform = _mixed(_mixed(names + keys.reshape(copies, 1))) / 2.0**64  # (copies, parts + sources), 0 to 1
    return 1 + tolerance * (2 * uniform - 1)


def draw_copies(board: Board, seed: int, copies: int) -> tuple[Copy, ...]:
    """Draw copies named copy-1, copy-2, … with the ratios of `draw_gains`."""
    names = [entry.name for entry in _spread(board)]
    return tuple(
        Copy(f"copy-{k}", dict(zip(names, row.tolist(), strict=True)))
        for k, row in enumerate(draw_gains(board, seed, copies), start=1)
    )


def gains_of(board: Board, copies: Sequence[Copy]) -> np.ndarray:
    """Ratios of given copies in the order of the board's parts, then its sources, (copies, parts + sources)."""
    names = [entry.name for entry in _spread(board)]
    return np.array([[copy.gains[name] for name in names] for copy in copies])


def part_values(board: Board, program: Program, gains: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Actual value of every part, (…, parts) for gains (…, parts + sources): nominal · gain · (1 + tempco ΔT).

    The value is 0 for an absent part: not populated by the program, behind an open switch, or with its cause off.
    """
    held = codes(board, program)
    nominal = np.array([_nominal(part, program, held, conditions) for part in board.parts])
    return nominal * _ratios(board.parts, gains[..., : len(board.parts)], conditions)


def source_ratios(board: Board, gains: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Actual over nominal power of every source, (…, sources) for gains (…, parts + sources)."""
    return _ratios(board.sources, gains[..., len(board.parts) :], conditions)


def populated_parts(board: Board, program: Program) -> list[tuple[Part, float]]:
    """The parts to be soldered, including all switches, with their nominal values, in the board's order.

    Parasitics and the inputs of amplifiers are not soldered: they and their inner nodes are omitted.
    """
    parasitic = {part.cause for part in board.parts if part.cause and not part.bit}
    wired = wiring(board, program, Conditions(off=frozenset(parasitic)))
    names = (*wired.nodes, GROUND)
    found = []
    for part, (a, b) in zip(board.parts, wired.ends, strict=True):
        value = part.nominal if part.bit else _nominal(part, program, {}, Conditions(off=frozenset(parasitic)))
        if value and part.role != "input":
            found.append((replace(part, nodes=(names[a], names[b])), float(value)))
    return found


def codes(board: Board, program: Program) -> dict[str, int]:
    """Signed code of every bank, by its name: the values of its elements in its unit."""
    return {
        bank.name: sum(
            sign * round(program.values.get(element, 0.0) / bank.unit)
            for element, sign in zip(bank.elements, (1, -1), strict=False)
        )
        for bank in board.banks
    }


def wiring(board: Board, program: Program, conditions: Conditions) -> Wiring:
    """Nodes and ends of all parts under these conditions."""
    held = codes(board, program)
    wired = [part for part in board.parts if part.wire and part.cause in conditions.off and _closed(part, held)]
    same: dict[str, str] = {}
    for part in wired:  # from an inner node (first) to another; no cell's own node is ever joined to another
        same[part.nodes[0]] = part.nodes[1]
    reached = {node: _end_of(node, same) for part in board.parts for node in part.nodes}
    present = np.array([_is_there(part, program, held, conditions) for part in board.parts])
    used = dict.fromkeys(board.nodes)
    for part, there in zip(board.parts, present, strict=True):
        if there:
            used |= dict.fromkeys(reached[node] for node in part.nodes if reached[node] != GROUND)
    number = {node: k for k, node in enumerate(used)} | {GROUND: -1}
    ends = np.array([[number.get(reached[node], -1) for node in part.nodes] for part in board.parts])
    return Wiring(tuple(used), ends, present)


def spread_cause(entry: Part | Source) -> str:
    """The cause under which the spread of a part or source is switched off."""
    return TEMPERATURES if isinstance(entry, Source) or entry.role == "damping" else TOLERANCE


def _spread(board: Board) -> tuple[Part | Source, ...]:
    """Parts and sources: all entries with a spread."""
    return (*board.parts, *board.sources)


def _ratios(entries: Sequence[Part | Source], gains: np.ndarray, conditions: Conditions) -> np.ndarray:
    """gain · (1 + tempco ΔT), the gain being 1 where its cause is off."""
    off = np.array([spread_cause(entry) in conditions.off for entry in entries], dtype=bool)
    tempco = np.array([entry.tempco for entry in entries])
    return np.where(off, 1.0, gains) * (1 + tempco * (conditions.ambient - REFERENCE_CELSIUS))


def _mixed(z: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves half of the output."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _end_of(node: str, same: dict[str, str]) -> str:
    while node in same:
        node = same[node]
    return node


def _closed(part: Part, held: dict[str, int]) -> bool:
    """Whether a switch is closed; True for all other parts."""
    if part.bit is None:
        return True
    code = held[part.bit.bank]
    return bool(abs(code) >> part.bit.number & 1) and code * part.bit.sign >= 0


def _is_there(part: Part, program: Program, held: dict[str, int], conditions: Conditions) -> bool:
    return _nominal(part, program, held, conditions) != 0


def _nominal(part: Part, program: Program, held: dict[str, int], conditions: Conditions) -> float:
    if part.cause in conditions.off or not _closed(part, held) or (part.beside and part.beside not in program.values):
        return 0.0
    if part.nominal is not None:
        return part.nominal
    value = program.values.get(part.element, 0.0)
    return value if part.kind == "C" or value == 0 else 1 / value
