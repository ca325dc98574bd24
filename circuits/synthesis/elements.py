"""Element values with which a board holds a matrix, and the static load besides the elements.

The formulas come from circuits.synthesis.equations. The static load of a board (pads, coils, inputs and parts that are
soldered to ground for good) is known, and is subtracted from the ground elements.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from circuits.board import Board, Cell, Program
from circuits.nodal import nominal_circuit
from circuits.synthesis.cells import SLACK_MINIMUM
from circuits.synthesis.equations import element_formulas
from circuits.synthesis.options import BoardError, two_digits

GROUND_MINIMUM = 0.1  # of the unit: ground element that keeps the common mode definite


class LoadError(BoardError):
    """A ground element is smaller than the static load of its cell."""


def element_values(board: Board, matrix: np.ndarray) -> dict[str, float]:
    """Values [F or S] of the populated elements that make the board hold M (n, n)."""
    formulas = element_formulas(board.kind)
    unit = board.unit
    M = unit * matrix
    coupling = np.abs(M).sum(axis=1) - np.abs(np.diag(M))
    slack = formulas.slack(np.diag(M), coupling)
    # Plain cells have no common mode to hold up, and a row sum of exactly zero, seen through rounding, is none.
    short = slack < (SLACK_MINIMUM * 0.99 * unit if board.kind == "differential" else -np.inf)
    slack = np.where(np.abs(slack) < 1e-13 * np.diag(M), 0.0, slack)
    ground = np.where(short, GROUND_MINIMUM * unit, slack)
    negative = np.where(short, formulas.negative(np.diag(M), coupling, ground), 0.0)
    value = {
        "ground": lambda i: ground[i],
        "negative": lambda i: negative[i],
        "straight": lambda i, j: max(formulas.straight(M[i, j]), 0.0),
        "crossed": lambda i, j: max(formulas.crossed(M[i, j]), 0.0),
    }
    first = [element for element in board.elements if not element.second]
    values = {element.name: float(value[element.kind](*element.cells)) for element in first}
    return {name: size for name, size in values.items() if size != 0.0}


def static_load(board: Board, program: Program) -> np.ndarray:
    """Static load in the coordinates of the readings, (n, n) [F or S]: pads, coils, inputs; switches closed."""
    circuit = nominal_circuit(board, program)
    H = circuit.readout
    nodal = circuit.capacitance if board.coupling == "capacitive" else circuit.conductance
    load = H @ nodal @ H.T / board.nodes_per_cell - held_matrix(board, program.values)
    return np.where(np.abs(load) < 1e-13 * np.abs(nodal).max(), 0.0, load)


def unloaded(board: Board, values: dict[str, float], load: np.ndarray) -> dict[str, float]:
    """The values with the load (n, n) [F or S] of every cell subtracted from its ground element.

    LoadError if a ground element is smaller than the load.
    """
    left = dict(values)
    for element in board.elements:
        own = load[element.cells * 2] if len(element.cells) == 1 else 0.0
        if element.kind != "ground" or element.second or not own:
            continue
        held = values.get(element.name, 0.0)
        if held < own:
            cell = board.cells[element.cells[0]]
            raise LoadError(
                f"{cell.name} is loaded with {own:.3g} F by coils and inputs, but element {element.name} is only "
                f"{held:.3g} F",
                *_enough(board, cell, held, own),
                otherwise="a --precondition" if own < board.unit else "",
            )
        left[element.name] = float(held - own)
    return left


def _enough(board: Board, cell: Cell, held: float, load: float) -> Iterator[dict[str, float]]:
    """Changes that make the ground element large enough, if any: coils grow with the unit, inputs do not."""
    coil = next((part.nominal for part in board.parts if part.name == f"CW{cell.nodes[0]}"), 0.0)
    rest = load - coil
    if rest > 0 and held > coil:
        yield {"unit_capacitance": two_digits(1.05 * board.unit * rest / (held - coil), up=True)}
    if coil and held > rest:
        inductance = next(part.nominal for part in board.parts if part.name == f"L{cell.nodes[0]}")
        needed = 1 / (2 * np.pi * np.sqrt(inductance * 0.95 * (held - rest)))
        yield {"self_resonance": two_digits(float(needed), up=True)}


def held_matrix(board: Board, values: dict[str, float]) -> np.ndarray:
    """Matrix that elements of these values hold, (n, n) [F or S]: Σ value s sᵀ."""
    stamps = element_stamps(board, values)
    return np.einsum("e,ea,eb->ab", np.array(list(values.values())), stamps, stamps, optimize=True)


def element_stamps(board: Board, names: Iterable[str]) -> np.ndarray:
    """s of every element, (elements, n): (1, ∓1) for straight and crossed couplings, √2 for a negative element."""
    elements = {element.name: element for element in board.elements}
    chosen = [elements[name] for name in names]
    stamps = np.zeros((len(chosen), len(board.cells)))
    for row, element in zip(stamps, chosen, strict=True):
        row[element.cells[0]] = np.sqrt(2) if element.kind == "negative" else 1
        if len(element.cells) == 2:
            row[element.cells[1]] = 1 if element.kind == "crossed" else -1
    return stamps
