"""The boards: n cells, all coupled, by capacitors or by resistors, with every element that a program may need.

Capacitive: R, L and a capacitor to ground at every node; an element is a capacitance. Resistive: a capacitor and a
resistor to ground at every node, and inputs for bias currents; an element is a conductance.

Plain cells have one node v_i; an element between v_i and v_j adds -e to M_ij. Differential cells have two, p_i and
n_i, read as p_i - n_i; a straight pair (p_i-p_j, n_i-n_j) adds -e to M_ij, a crossed pair (p_i-n_j, n_i-p_j) adds
+e, and a negative element between p_i and n_i adds 2 d_i < 0 to M_ii. Every element that any program may need has
its place on the board and its parts in every copy; a program populates some of them, or sets the codes of their banks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from circuits.banks import bank_of, bank_parts, unloaded_capacitances
from circuits.board import GROUND, Bank, Board, Cell, Element, Input, Limits, Part, Reading, Source
from circuits.synthesis.options import TEMPCO, Choices

LETTERS = {"ground": "G", "straight": "S", "crossed": "X", "negative": "N"}


@dataclass(frozen=True)
class _Place:
    """Where an element is soldered: the node pairs of its parts."""

    element: Element
    pairs: tuple[tuple[str, str], ...]


def build_board(
    cells: int, kind: str, tolerance: float = 0.01, choices: Choices | None = None, bank_range: float = 1.0
) -> Board:
    """Board of `cells` cells, `kind` "plain" or "differential", every part off by at most ±`tolerance`.

    `bank_range` is the largest coupling its banks hold, if it has any, as a fraction of the unit.
    """
    made = choices or Choices()
    capacitive = made.coupling == "capacitive"
    prefix, poles = ("v", ("",)) if kind == "plain" else ("", ("p", "n"))
    layout = tuple(Cell(f"cell{i}", tuple(f"{prefix}{pole}{i}" for pole in poles)) for i in range(1, cells + 1))
    places = list(_places(layout, made))
    banks = tuple(bank_of(*pair, made, bank_range) for pair in _pairs_of_elements(places)) if made.bank_bits else ()
    nodes = [node for cell in layout for node in cell.nodes]
    conductance = 1 / made.resistance if capacitive else made.unit_conductance
    return Board(
        kind=kind,
        coupling=made.coupling,
        cells=layout,
        elements=tuple(place.element for place in places),
        parts=(*_fixed(layout, tolerance, made), *_held(places, banks, layout, tolerance, made)),
        sources=tuple(Source(f"I{node}", node, conductance, made.source_tolerance, TEMPCO["I"]) for node in nodes),
        readings=tuple(Reading(cell.name, cell.nodes[0], (*cell.nodes, None)[1]) for cell in layout),
        unit=made.unit,
        capacitance=made.unit_capacitance,
        inputs=() if capacitive else tuple(_inputs(layout)),
        banks=banks,
        limits=Limits(made.smallest_element, made.largest, made.reading_rms, made.hold_bias),
    )


def _places(cells: tuple[Cell, ...], choices: Choices) -> Iterator[_Place]:
    """Every element of the board; with two parts in parallel every element but the negative ones comes twice."""
    pairs = list(combinations(range(len(cells)), 2))
    differential = len(cells[0].nodes) == 2
    single = [] if choices.bank_bits else [(i,) for i in range(len(cells))]
    kinds = [("ground", cell) for cell in single] + [("straight", pair) for pair in pairs]
    if differential:
        kinds += [("crossed", pair) for pair in pairs] + [("negative", cell) for cell in single]
    for suffix in ("", "b")[: choices.parallel]:
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


def _fixed(cells: tuple[Cell, ...], tolerance: float, choices: Choices) -> Iterator[Part]:
    """The parts that no program changes; behind banks that includes what leads to ground."""
    left = [choices.unit_capacitance] * len(cells)
    if choices.bank_bits:
        left = unloaded_capacitances(len(cells), len(cells[0].nodes), choices)
    fixed = {"R": ("damping", choices.resistance), "L": ("resonance", choices.inductance)}
    if choices.coupling == "resistive":
        fixed = {"RG": ("ground", 1 / choices.unit)} if choices.bank_bits else {}
    for cell, capacitance in zip(cells, left, strict=True):
        for node in cell.nodes:
            own = dict(fixed)
            if choices.coupling == "resistive":
                own["C"] = ("storage", capacitance)
            elif choices.bank_bits:
                own["CG"] = ("ground", capacitance)
            for name, (role, value) in own.items():
                yield Part(f"{name}{node}", name[0], (node, GROUND), role, value, None, tolerance, TEMPCO[name[0]])


def _held(
    places: list[_Place], banks: tuple[Bank, ...], cells: tuple[Cell, ...], tolerance: float, choices: Choices
) -> Iterator[Part]:
    """The parts of all elements: one a node pair, or the bits of the banks."""
    kind = "C" if choices.coupling == "capacitive" else "R"
    if banks:
        for bank in banks:
            i, j = bank.cells
            yield from bank_parts(bank, cells[i].nodes, cells[j].nodes, kind, tolerance, choices)
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
