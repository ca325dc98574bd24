"""The RLC board: n cells, each R, L and a capacitor to ground at every node, all cells coupled by capacitors.

Plain cells have one node v_i; an element between v_i and v_j adds -c to M_ij. Differential cells have two, p_i and
n_i, read as p_i - n_i; a straight pair (p_i-p_j, n_i-n_j) adds -c to M_ij, a crossed pair (p_i-n_j, n_i-p_j) adds
+c, and a negative element between p_i and n_i adds 2 d_i < 0 to M_ii. Every element that any program may need has
its place on the board and its parts in every copy; a program populates some of them.

Free choices, all SI: 1 nF, 100 ohm and 10 uH give a resonance of 1.6 MHz at Q = 1. A low Q keeps the readings
insensitive to switches, wires and losses, and makes samples independent soon.
"""

from itertools import combinations

from circuits.board import GROUND, Board, Cell, Element, Part, Reading, Source

UNIT_CAPACITANCE = 1e-9  # F
RESISTANCE = 100.0  # ohm
INDUCTANCE = 10e-6  # H

# Relative change per kelvin of ordinary parts: thin film, ferrite core, C0G.
TEMPCO = {"R": 25e-6, "L": 100e-6, "C": 30e-6}


def rlc_board(cells: int, kind: str, tolerance: float = 0.01) -> Board:
    """Board of `cells` cells, `kind` "plain" or "differential", every part off by at most ±`tolerance`."""
    polarities = ("",) if kind == "plain" else ("p", "n")
    prefix = "v" if kind == "plain" else ""
    layout = tuple(Cell(f"cell{i}", tuple(f"{prefix}{pole}{i}" for pole in polarities)) for i in range(1, cells + 1))
    fixed = [part for cell in layout for part in _resonator(cell, tolerance)]
    held = [_ground(i, cell, tolerance) for i, cell in enumerate(layout)]
    pairs = list(combinations(range(cells), 2))
    held += [_coupling("straight", i, j, layout, tolerance) for i, j in pairs]
    if kind == "differential":
        held += [_coupling("crossed", i, j, layout, tolerance) for i, j in pairs]
        held += [_negative(i, cell, tolerance) for i, cell in enumerate(layout)]
    return Board(
        kind=kind,
        cells=layout,
        elements=tuple(element for element, _ in held),
        parts=tuple(fixed + [part for _, parts in held for part in parts]),
        sources=tuple(Source(f"I{node}", node, f"R{node}") for cell in layout for node in cell.nodes),
        readings=tuple(Reading(cell.name, cell.nodes[0], (*cell.nodes, None)[1]) for cell in layout),
        unit_capacitance=UNIT_CAPACITANCE,
    )


def _resonator(cell: Cell, tolerance: float) -> list[Part]:
    return [
        Part(f"{kind}{node}", kind, (node, GROUND), role, value, None, tolerance, TEMPCO[kind])
        for node in cell.nodes
        for kind, role, value in (("R", "damping", RESISTANCE), ("L", "resonance", INDUCTANCE))
    ]


def _capacitor(name: str, a: str, b: str, element: Element, tolerance: float) -> Part:
    return Part(name, "C", (a, b), element.kind, None, element.name, tolerance, TEMPCO["C"])


def _ground(i: int, cell: Cell, tolerance: float) -> tuple[Element, list[Part]]:
    element = Element(f"ground_{i + 1}", "ground", (i,))
    return element, [_capacitor(f"CG{node}", node, GROUND, element, tolerance) for node in cell.nodes]


def _coupling(kind: str, i: int, j: int, cells: tuple[Cell, ...], tolerance: float) -> tuple[Element, list[Part]]:
    element = Element(f"{kind}_{i + 1}_{j + 1}", kind, (i, j))
    far = cells[j].nodes if kind == "straight" else cells[j].nodes[::-1]
    letter = {"straight": "CS", "crossed": "CX"}[kind]
    return element, [
        _capacitor(f"{letter}{a}_{b}", a, b, element, tolerance) for a, b in zip(cells[i].nodes, far, strict=True)
    ]


def _negative(i: int, cell: Cell, tolerance: float) -> tuple[Element, list[Part]]:
    element = Element(f"negative_{i + 1}", "negative", (i,))
    return element, [_capacitor(f"CN{i + 1}", *cell.nodes, element, tolerance)]
