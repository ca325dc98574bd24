"""The RLC board: n cells, each R, L and a capacitor to ground at every node, all cells coupled by capacitors.

Plain cells have one node v_i; an element between v_i and v_j adds -c to M_ij. Differential cells have two, p_i and
n_i, read as p_i - n_i; a straight pair (p_i-p_j, n_i-n_j) adds -c to M_ij, a crossed pair (p_i-n_j, n_i-p_j) adds
+c, and a negative element between p_i and n_i adds 2 d_i < 0 to M_ii. Every element that any program may need has
its place on the board and its parts in every copy; a program populates some of them.

The choices left free are made in `Choices`, and each may be overridden.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from circuits.board import GROUND, Board, Cell, Element, Limits, Part, Reading, Source
from circuits.errors import InputError

# Relative change per kelvin of ordinary parts: thin film, ferrite core, C0G.
TEMPCO = {"R": 25e-6, "L": 100e-6, "C": 30e-6}


@dataclass(frozen=True)
class Choices:
    """What the target leaves open. 1 nF, 10 uH and 100 ohm: a resonance of 1.6 MHz at Q = 1.

    `unit_capacitance` [F] stands for 1 of the matrix: large against strays and pads, small enough to be a C0G part.
    `resonance` [Hz] is that of a cell with the unit capacitance: slow enough for amplifiers, fast enough for small
    inductors. `quality` is R sqrt(c0/L); a low one keeps the readings insensitive to switches, wires and losses
    and makes samples independent soon. `reading_rms` [V] is the largest reading, `hold_bias` what the noise generator's
    sample period may cost of the fastest mode's variance.
    """

    unit_capacitance: float = 1e-9
    resonance: float = 1 / (2 * np.pi * 1e-7)
    quality: float = 1.0
    reading_rms: float = 0.05
    hold_bias: float = 0.03

    @property
    def inductance(self) -> float:
        """L [H] of every cell."""
        return float(f"{1 / ((2 * np.pi * self.resonance) ** 2 * self.unit_capacitance):.12g}")

    @property
    def resistance(self) -> float:
        """R [ohm] of every cell."""
        return float(f"{self.quality * np.sqrt(self.inductance / self.unit_capacitance):.12g}")


def check_choices(choices: Choices) -> Choices:
    """Return the choices if a board can be made of them, or raise InputError."""
    ranges = {
        "unit_capacitance": (1e-12, 1e-6, "F"),
        "resonance": (1e2, 1e9, "Hz"),
        "quality": (0.05, 100.0, ""),
        "reading_rms": (1e-6, 100.0, "V"),
        "hold_bias": (1e-6, 0.2, ""),
    }
    for name, (low, high, unit) in ranges.items():
        value = getattr(choices, name)
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is from {low:g} to {high:g} {unit}".rstrip() + f", got {value:g}")
    return choices


def rlc_board(cells: int, kind: str, tolerance: float = 0.01, choices: Choices | None = None) -> Board:
    """Board of `cells` cells, `kind` "plain" or "differential", every part off by at most ±`tolerance`."""
    made = choices or Choices()
    polarities = ("",) if kind == "plain" else ("p", "n")
    prefix = "v" if kind == "plain" else ""
    layout = tuple(Cell(f"cell{i}", tuple(f"{prefix}{pole}{i}" for pole in polarities)) for i in range(1, cells + 1))
    fixed = [part for cell in layout for part in _resonator(cell, tolerance, made)]
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
        unit_capacitance=made.unit_capacitance,
        limits=Limits(reading_rms=made.reading_rms, hold_bias=made.hold_bias),
    )


def _resonator(cell: Cell, tolerance: float, choices: Choices) -> list[Part]:
    return [
        Part(f"{kind}{node}", kind, (node, GROUND), role, value, None, tolerance, TEMPCO[kind])
        for node in cell.nodes
        for kind, role, value in (("R", "damping", choices.resistance), ("L", "resonance", choices.inductance))
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
