"""Parasitics that a designer may add to a board: what inductors, capacitors and neighbours do besides their duty.

    winding          R in series with every inductor
    self-resonance   C across every inductor, 1/((2π f)² L)
    esr              R in series with every capacitor that holds an element or stores (bits of banks have a switch)
    coupled coils    M = k L between the inductors of neighbouring cells
    strays           C between the last node of a cell and the first of the next

All are cold: only the noise sources are hot. What is static and known (self-resonance, inputs, pads of switches) is
taken from the ground elements (circuits.synthesis.elements). Behind its ESR no capacitor holds a node up any more at the
highest frequencies, where white noise would then have no finite variance; what does is the input capacitance of the
amplifier that reads the node, so a board with ESR has one, always on.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from circuits.banks import parasitic
from circuits.board import GROUND, Board, Mutual, Part
from circuits.errors import InputError
from circuits.synthesis.options import BoardError, Parasitics, two_digits

INPUT_CAPACITANCE = 5e-12  # F, of an amplifier and the trace to it
MOST_INPUT = 0.9  # of a capacitor may be taken for it


def with_parasitics(board: Board, parasitics: Parasitics) -> Board:
    """The board with its parasitics; InputError for those of inductors on a board that has none.

    BoardError if the input of an amplifier is as much as the capacitor that it is taken from.
    """
    coils = parasitics.winding or parasitics.self_resonance or parasitics.coupled_coils
    if coils and board.coupling == "resistive":
        raise InputError(
            "a resistive board has no inductors; leave out --winding, --self-resonance and --coupled-coils"
        )
    spread = max(part.tolerance for part in board.parts)
    if parasitics.esr:
        _check_inputs(board)
    parts = [made for part in board.parts for made in _with_series(part, parasitics, spread)]
    parts += [made for part in board.parts if part.kind == "L" for made in _across(part, parasitics, spread)]
    if parasitics.esr:
        parts += [_input(node, spread) for node in board.nodes]
    neighbours = list(zip(board.cells, board.cells[1:], strict=False))
    if parasitics.stray:
        ends = [(a.nodes[-1], b.nodes[0]) for a, b in neighbours]
        parts += [parasitic(f"CY{a}_{b}", "C", (a, b), "strays", parasitics.stray, "strays", spread) for a, b in ends]
    mutuals = tuple(
        Mutual(f"K{p}_{q}", (f"L{p}", f"L{q}"), parasitics.coupled_coils, "coupled coils")
        for a, b in neighbours
        for p, q in zip(a.nodes, b.nodes, strict=True)
    )
    return replace(board, parts=tuple(parts), mutuals=mutuals if parasitics.coupled_coils else ())


def _check_inputs(board: Board) -> None:
    """Raise BoardError if a capacitor that is soldered for good is no larger than the input that is taken from it."""
    fixed = [part for part in board.parts if _gives_way(part)]
    least = min(fixed, key=lambda part: part.nominal, default=None)
    if least and MOST_INPUT * least.nominal < INPUT_CAPACITANCE:
        raise BoardError(
            f"behind ESR every node needs the input of an amplifier, {INPUT_CAPACITANCE:.3g} F, taken from its "
            f"capacitor, but {least.name} is only {least.nominal:.3g} F",
            {"unit_capacitance": two_digits(board.capacitance + 4 * INPUT_CAPACITANCE, up=True)},
            {"esr": 0.0},
        )


def _gives_way(part: Part) -> bool:
    """Whether the input capacitance is taken from this part: a capacitor to ground that no program sets."""
    return part.kind == "C" and part.role in ("storage", "ground") and part.nominal is not None


def _with_series(part: Part, parasitics: Parasitics, spread: float) -> Iterator[Part]:
    """The part, and what is in series with it at its far end."""
    holds = part.kind == "C" and not part.cause and part.role not in ("negative", "bit")
    resistance, cause, letter = 0.0, "", ""
    if part.kind == "L":
        resistance, cause, letter = parasitics.winding, "winding", "w"
    elif holds:
        resistance, cause, letter = parasitics.esr, "esr", "e"
    if not resistance:
        yield part
        return
    inner = f"{letter}{part.name}".lower()
    nominal = part.nominal - INPUT_CAPACITANCE if _gives_way(part) else part.nominal
    yield replace(part, nodes=(part.nodes[0], inner), nominal=nominal)
    series = parasitic(f"R{inner}", "R", (inner, part.nodes[1]), cause, resistance, cause, spread)
    yield replace(series, wire=True, beside=part.element)


def _across(part: Part, parasitics: Parasitics, spread: float) -> Iterator[Part]:
    if parasitics.self_resonance:
        value = float(1 / ((2 * np.pi * parasitics.self_resonance) ** 2 * part.nominal))
        yield parasitic(f"CW{part.nodes[0]}", "C", part.nodes, "self-resonance", value, "self-resonance", spread)


def _input(node: str, spread: float) -> Part:
    return parasitic(f"CI{node}", "C", (node, GROUND), "input", INPUT_CAPACITANCE, "", spread)
