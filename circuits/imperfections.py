"""What is not ideal about a board of exact parts: what it has besides its elements, and elements hardly there.

Nothing of it is left out of a design. A designer is told what it costs the inverse.
"""

from functools import lru_cache

import numpy as np
from scipy.linalg import eigh

from circuits.board import Board, Conditions, Design, Program
from circuits.netlist.bill import UNITS, engineering
from circuits.nodal import Circuit, nominal_circuit, states
from circuits.ou import MOST_STATES, reading_covariance
from circuits.statistics.inversion import circuit_inverses, inversion
from circuits.synthesis.elements import held_matrix
from circuits.synthesis.options import SMALLEST_PART

MOST_RELAXING = 1500  # nodes of a circuit without inductors, whose Lyapunov equation is an eigenvalue problem
# Below these an element is as small as what no layout is without: strays of 0.2 pF, leakage of 100 MΩ.
STRAY = {"F": 0.2e-12, "S": 1e-8}
UNAVOIDABLE = {"F": "layout strays", "S": "leakage"}
MATTERS = 1e-3  # relative change of the inverse


@lru_cache(maxsize=4)
def nominal_errors(design: Design) -> dict[str, float]:
    """Relative error of the inverse on the nominal board with all that is not ideal, by how it is read.

    From the "covariance", and on a resistive board from the "mean" too; what would take too long is left out.
    """
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program, Conditions())
    rule, size = inversion(design), states(circuit)
    found = {}
    if board.inputs:
        found["mean"] = float(rule.error(circuit_inverses(design, rule, circuit)))
    if size <= (MOST_RELAXING if board.inputs else MOST_STATES):
        covariance = _relaxing_covariance(circuit) if board.inputs else reading_covariance(circuit)
        found["covariance"] = float(rule.error(rule.read(covariance)))
    return found


def errors_in_words(errors: dict[str, float]) -> str:
    """Errors of the inverse by how it is read."""
    if not errors:
        return ""
    first, *others = (f"{100 * error:.2g} %" for error in errors.values())
    if "mean" not in errors:
        return f"{first} error of the inverse"
    return f"{first} error of the inverse from the mean" + "".join(f", {other} from the covariance" for other in others)


def unwelcome(board: Board, program: Program) -> list[str]:
    """Parasitics by cause: how many parts, and their value."""
    found: dict[str, list] = {}
    for part in board.parts:
        there = part.beside is None or part.beside in program.values
        if there and (part.cause or part.role == "input") and part.role != "pad":
            found.setdefault(part.cause or "inputs", []).append(part)
    lines = [
        f"{cause}: {len(parts)} × {engineering(parts[0].nominal, UNITS[parts[0].kind])}"
        for cause, parts in found.items()
    ]
    pads = sum(part.nominal for part in board.parts if part.role == "pad")
    if pads:
        lines.append(f"pads of the switches: {engineering(pads, 'F')} in all, taken from the capacitors to ground")
    if board.mutuals:
        lines.append(f"coupled coils: {len(board.mutuals)} pairs with a factor of {board.mutuals[0].coefficient:g}")
    return lines


def small_elements(design: Design) -> str:
    """Elements that are as small as what no layout is without, and how much the inverse depends on them, in words."""
    board, program = design.board, design.program
    unit = board.element_unit
    word = engineering(STRAY[unit], unit)
    if board.banks:
        bits = [part.nominal if part.kind == "C" else 1 / part.nominal for part in board.parts if part.role == "bit"]
        words = f"the lowest bits hold {engineering(min(bits), unit)}; below {word}, as small as {UNAVOIDABLE[unit]}"
        return words if min(bits) < STRAY[unit] else ""
    small = {name: value for name, value in program.values.items() if abs(value) < STRAY[unit]}
    if not small:
        return ""
    name = min(small, key=lambda name: abs(small[name]))
    nowhere = ", which no part is" if abs(small[name]) < SMALLEST_PART[unit] else ""
    return (
        f"{len(small)} of {len(program.values)} elements are below {word}, as small as {UNAVOIDABLE[unit]} "
        f"({name} is {engineering(small[name], unit)}{nowhere}); {_dependence(board, program, small)}"
    )


def _dependence(board: Board, program: Program, small: dict[str, float]) -> str:
    """What leaving these elements out would cost, in words."""
    M = program.matrix - held_matrix(board, small) / board.unit
    lost = "the board depends on them: without them no inverse is left; use a larger --damping or a --precondition"
    if np.linalg.eigvalsh(M)[0] <= 0:
        return lost
    X, inverse = program.mapping, np.linalg.inv(program.target)
    error = np.linalg.norm(X.T @ np.linalg.inv(M) @ X - inverse) / np.linalg.norm(inverse)
    if error > 1:
        return lost
    depends = "the board depends on them: " if error > MATTERS else ""
    return f"{depends}left out, they cost {100 * error:.2g} % of the inverse"


def _relaxing_covariance(circuit: Circuit) -> np.ndarray:
    """Covariance (n, n) [V²] of the readings without inductors: G Σ C + C Σ G = 2 Q, by the modes of (G, C)."""
    rates, V = eigh(circuit.conductance, circuit.capacitance)
    modes = 2 * V.T @ circuit.noise @ V / (rates[:, None] + rates)
    HV = circuit.readout @ V
    return HV @ modes @ HV.T
