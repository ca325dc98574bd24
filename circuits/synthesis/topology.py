"""Topology of the boards: n cells, all coupled by capacitors or by resistors, with every element a program may need.

Capacitive: R, L and a capacitor to ground at every node; an element is a capacitance. Resistive: a capacitor and a
resistor to ground at every node, and inputs for bias currents; an element is a conductance.

Plain cells have one node v_i; an element between v_i and v_j adds -e to M_ij. Differential cells have two, p_i and
n_i, read as p_i - n_i; a straight pair (p_i-p_j, n_i-n_j) adds -e to M_ij, a crossed pair (p_i-n_j, n_i-p_j) adds
+e, and a negative element between p_i and n_i adds 2 d_i < 0 to M_ii. Every element has its place on the board and its
parts in every copy; a program populates some of them, or sets the codes of their banks.

Parasitics that a designer may add to a board:

    winding          R in series with every inductor
    self-resonance   C across every inductor, 1/((2π f)² L)
    esr              R in series with every capacitor that holds an element or stores (bits of banks have a switch)
    coupled coils    M = k L between the inductors of neighbouring cells
    strays           C between the last node of a cell and the first of the next

All are cold: only the noise sources are hot. Static, known loads (self-resonance, inputs, pads of switches) are
subtracted from the ground elements (circuits.synthesis.elements). At the highest frequencies a capacitor behind its ESR
is a resistor, and white noise at its node would have no finite variance. The input capacitance of the amplifier that
reads the node limits the variance, so a board with ESR always has input capacitances.

Binary-weighted switched banks: a coupling consists of bits, each a part in series with its switches.

Bit b holds unit · 2ᵇ. From the near cell's node a part leads to an inner node; one switch leads on to the far node
(straight), another one to the other far node (crossed), and the sign of the code tells which of them closes. A closed
switch has a resistance; both its pads have a capacitance to ground, which loads the inner node and the far one. That
load is known and is subtracted from the ground capacitors. These are soldered for good: behind a switch, whose
resistance adds damping without noise, they would cause the largest error, and no program needs to change them
(circuits.synthesis.rounding).

No bank is negative: above 1/(Ron C) the positive capacitors behind switches no longer compensate a negative one, and
the node runs away (shown in tests/circuits/synthesis/test_banks.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from circuits.board import GROUND, Bank, Bit, Board, Cell, Element, Input, Limits, Mutual, Part, Reading, Source
from circuits.errors import InputError
from circuits.synthesis.options import TEMPCO, BoardError, BoardOptions, Parasitics, two_digits

LETTERS = {"ground": "G", "straight": "S", "crossed": "X", "negative": "N"}

INPUT_CAPACITANCE = 5e-12  # F, of an amplifier and the trace to it
MOST_INPUT = 0.9  # largest fraction of a capacitor that the input capacitance may replace

PARASITIC_TOLERANCE = 0.2  # of parasitics, which no data sheet specifies
MOST_SWITCH = 0.5  # largest fraction of the resistance of a bit in its switch, which is less accurate than the resistor
GOOD_SWITCH = 0.1  # suggested fraction


@dataclass(frozen=True)
class _Place:
    """Place of an element on the board: the node pairs of its parts."""

    element: Element
    pairs: tuple[tuple[str, str], ...]


def build_board(
    cells: int, kind: str, tolerance: float = 0.01, options: BoardOptions | None = None, bank_range: float = 1.0
) -> Board:
    """Board of `cells` cells, `kind` "plain" or "differential", every part off by at most ±`tolerance`.

    `bank_range` is the largest coupling its banks hold, if it has any, as a fraction of the unit.
    """
    chosen = options or BoardOptions()
    capacitive = chosen.coupling == "capacitive"
    prefix, poles = ("v", ("",)) if kind == "plain" else ("", ("p", "n"))
    all_cells = tuple(Cell(f"cell{i}", tuple(f"{prefix}{pole}{i}" for pole in poles)) for i in range(1, cells + 1))
    places = list(_places(all_cells, chosen))
    banks = tuple(bank_of(*pair, chosen, bank_range) for pair in _pairs_of_elements(places)) if chosen.bank_bits else ()
    nodes = [node for cell in all_cells for node in cell.nodes]
    conductance = 1 / chosen.resistance if capacitive else chosen.unit_conductance
    return Board(
        kind=kind,
        coupling=chosen.coupling,
        cells=all_cells,
        elements=tuple(place.element for place in places),
        parts=(*_fixed(all_cells, tolerance, chosen), *_held(places, banks, all_cells, tolerance, chosen)),
        sources=tuple(Source(f"I{node}", node, conductance, chosen.source_tolerance, TEMPCO["I"]) for node in nodes),
        readings=tuple(Reading(cell.name, cell.nodes[0], (*cell.nodes, None)[1]) for cell in all_cells),
        unit=chosen.unit,
        capacitance=chosen.unit_capacitance,
        inputs=() if capacitive else tuple(_inputs(all_cells)),
        banks=banks,
        limits=Limits(chosen.smallest_element, chosen.largest, chosen.reading_rms, chosen.hold_bias),
    )


def _places(cells: tuple[Cell, ...], options: BoardOptions) -> Iterator[_Place]:
    """Every element of the board; with two parts in parallel every element but the negative ones comes twice."""
    pairs = list(combinations(range(len(cells)), 2))
    differential = len(cells[0].nodes) == 2
    single = [] if options.bank_bits else [(i,) for i in range(len(cells))]
    kinds = [("ground", cell) for cell in single] + [("straight", pair) for pair in pairs]
    if differential:
        kinds += [("crossed", pair) for pair in pairs] + [("negative", cell) for cell in single]
    for suffix in ("", "b")[: options.parallel]:
        for kind, which in kinds:
            if not (suffix and kind == "negative"):
                name = "_".join([kind, *(str(i + 1) for i in which)]) + suffix
                ends = _pairs(kind, *(cells[i].nodes for i in which))
                yield _Place(Element(name, kind, which, bool(suffix)), tuple(ends))


def _pairs(kind: str, near: tuple[str, ...], far: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    if kind == "ground":
        return [(node, GROUND) for node in near]
    if kind == "negative":
        return [(near[0], near[1])]
    return list(zip(near, far if kind == "straight" else far[::-1], strict=True))


def _pairs_of_elements(places: list[_Place]) -> list[tuple[Element, Element | None]]:
    """The straight and the crossed element (None on plain cells) of every two cells."""
    crossed = {place.element.cells: place.element for place in places if place.element.kind == "crossed"}
    straight = [place.element for place in places if place.element.kind == "straight"]
    return [(element, crossed.get(element.cells)) for element in straight]


def _fixed(cells: tuple[Cell, ...], tolerance: float, options: BoardOptions) -> Iterator[Part]:
    """The parts that no program changes; with banks these include the ground elements."""
    left = [options.unit_capacitance] * len(cells)
    if options.bank_bits:
        left = unloaded_capacitances(len(cells), len(cells[0].nodes), options)
    fixed = {"R": ("damping", options.resistance), "L": ("resonance", options.inductance)}
    if options.coupling == "resistive":
        fixed = {"RG": ("ground", 1 / options.unit)} if options.bank_bits else {}
    for cell, capacitance in zip(cells, left, strict=True):
        for node in cell.nodes:
            own = dict(fixed)
            if options.coupling == "resistive":
                own["C"] = ("storage", capacitance)
            elif options.bank_bits:
                own["CG"] = ("ground", capacitance)
            for name, (role, value) in own.items():
                yield Part(f"{name}{node}", name[0], (node, GROUND), role, value, None, tolerance, TEMPCO[name[0]])


def _held(
    places: list[_Place], banks: tuple[Bank, ...], cells: tuple[Cell, ...], tolerance: float, options: BoardOptions
) -> Iterator[Part]:
    """The parts of all elements: one for each node pair, or the bits of the banks."""
    kind = "C" if options.coupling == "capacitive" else "R"
    if banks:
        for bank in banks:
            i, j = bank.cells
            yield from bank_parts(bank, cells[i].nodes, cells[j].nodes, kind, tolerance, options)
        return
    for place in places:
        element = place.element
        suffix = "b" * element.second
        for a, b in place.pairs:
            short = f"{a}_{b}" if len(element.cells) == 2 else a if element.kind == "ground" else element.name[9:]
            name = f"{kind}{LETTERS[element.kind]}{short}{suffix}"
            yield Part(name, kind, (a, b), element.kind, None, element.name, tolerance, TEMPCO[kind])


def _inputs(cells: tuple[Cell, ...]) -> Iterator[Input]:
    for i, cell in enumerate(cells):
        shares = (1.0,) if len(cell.nodes) == 1 else (0.5, -0.5)
        for node, share in zip(cell.nodes, shares, strict=True):
            yield Input(f"IB{node}", node, i, share)


def with_parasitics(board: Board, parasitics: Parasitics) -> Board:
    """The board with its parasitics; InputError for those of inductors on a board that has none.

    BoardError if the input capacitance of an amplifier is not well below the capacitor from which it is subtracted.
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
    """Raise BoardError if a capacitor that is soldered for good is too small to subtract the input capacitance."""
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
    """Whether the input capacitance is subtracted from this part: a capacitor to ground that no program sets."""
    return part.kind == "C" and part.role in ("storage", "ground") and part.nominal is not None


def _with_series(part: Part, parasitics: Parasitics, spread: float) -> Iterator[Part]:
    """The part, and its winding resistance or ESR in series at its far end."""
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


def parasitic(
    name: str, kind: str, nodes: tuple[str, str], role: str, value: float, cause: str, tolerance: float
) -> Part:
    """A parasitic part: its spread is PARASITIC_TOLERANCE on a board whose parts have a tolerance, otherwise zero."""
    return Part(name, kind, nodes, role, value, None, PARASITIC_TOLERANCE if tolerance else 0.0, TEMPCO[kind], cause)


def bank_of(straight: Element, crossed: Element | None, options: BoardOptions, largest: float) -> Bank:
    """The bank of the couplings of two cells; `largest` is its reach, in units.

    BoardError if the switches take up too much of the resistance of its highest bit.
    """
    bits = options.bank_bits
    names = tuple(element.name for element in (straight, crossed) if element)
    name = "bank_" + "_".join(str(i + 1) for i in straight.cells)
    bank = Bank(name, straight.cells, names, options.unit * largest / (2**bits - 1), bits)
    highest = bank.unit * 2 ** (bits - 1)
    share = highest * options.switch_resistance
    if options.coupling == "resistive" and share > MOST_SWITCH:
        raise BoardError(
            f"switches of {options.switch_resistance:g} ohm leave no room in {name}, which reaches {bank.reach:.3g} S "
            f"and whose highest bit is to be {1 / highest:.3g} ohm with its switch",
            {"unit_conductance": two_digits(options.unit * GOOD_SWITCH / share, up=False)},
            {"switch_resistance": two_digits(GOOD_SWITCH / highest, up=False)},
        )
    return bank


def bank_parts(
    bank: Bank, near: tuple[str, ...], far: tuple[str, ...], kind: str, tolerance: float, options: BoardOptions
) -> Iterator[Part]:
    """Parts, switches and pads of a bank between the nodes of two cells."""
    for pole, node in enumerate(near):
        ends = [(far[pole], 1)] + ([(far[1 - pole], -1)] if len(far) == 2 else [])
        for number in range(bank.bits):
            yield from _bit(bank, number, node, ends, kind, tolerance, options)
    pads = options.pad_capacitance * bank.bits * len(near)  # a switch of every bit of either near node ends here
    for node in far:
        yield parasitic(f"CP{bank.name[5:]}{node}", "C", (node, GROUND), "pad", pads, "pads", tolerance)


def unloaded_capacitances(cells: int, poles: int, options: BoardOptions) -> list[float]:
    """Capacitance [F] from each node of every cell to ground: one unit less the load of the pads at half codes.

    BoardError if the pads alone are nearly one unit.
    """
    inner = options.pad_capacitance * options.bank_bits * poles  # of a bank, per near node; open: there, closed: far
    pads = [(cells - 1) * inner / 2 + i * options.pad_capacitance * options.bank_bits * poles for i in range(cells)]
    spare = options.unit_capacitance / 4
    if pads[-1] > 0.9 * options.unit_capacitance:
        raise BoardError(
            f"the pads of the switches load {cells} cells with up to {pads[-1]:.3g} F, which leaves too little of the "
            f"unit capacitance of {options.unit_capacitance:.3g} F",
            {"unit_capacitance": two_digits(4 * pads[-1], up=True)},
            {"pad_capacitance": two_digits(options.pad_capacitance * spare / pads[-1], up=False)},
        )
    return [options.unit_capacitance - load for load in pads]


def _bit(
    bank: Bank, number: int, node: str, ends: list[tuple[str, int]], kind: str, tolerance: float, options: BoardOptions
) -> Iterator[Part]:
    short = f"{bank.name[5:]}{node}b{number}"
    inner = f"x{short}"
    held = bank.unit * 2**number
    # A resistor leaves room for its switch, a capacitor needs none.
    value = held if kind == "C" else 1 / held - options.switch_resistance
    yield Part(f"{kind}B{short}", kind, (node, inner), "bit", value, None, tolerance, TEMPCO[kind])
    for end, sign in ends:
        switch = parasitic(
            f"RS{short}{'s' if sign > 0 else 'x'}",
            "R",
            (inner, end),
            "switch",
            options.switch_resistance,
            "switches",
            tolerance,
        )
        yield replace(switch, wire=True, bit=Bit(bank.name, number, sign))
    pads = options.pad_capacitance * len(ends)
    yield parasitic(f"CP{short}", "C", (inner, GROUND), "pad", pads, "pads", tolerance)
