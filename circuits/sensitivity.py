"""First-order sensitivity of the inverse to every part, in closed form.

A capacitor x with stamp s moves C by x s sᵀ, hence the inverse by  dB/dlog x = - x c0/k w wᵀ,  w = Xᵀ H C⁻¹ s: a
matrix of rank one with the norm x c0/k |w|². A resistor moves the temperature of its node (the source does not follow
it), and with equal G, Γ everywhere the modes c of C separate:

    dCov(v)/dlog R_i = V [ 2 kT g (V_ia V_ib) / (g (c_a + c_b) + Γ (c_a - c_b)²/(2 g)) ] Vᵀ.

An inductor moves nothing. For independent parts, uniform within ±tolerance, the expected relative error of the
inverse is tolerance/sqrt(3) times the root of the sum of squares.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import incidence, nominal_circuit
from circuits.board import Board, Conditions, Program, part_values


@dataclass(frozen=True)
class PartSensitivity:
    """Relative change of the inverse for a relative change of one part: ||dP⁻¹/dlog x|| / ||P⁻¹||."""

    part: str
    role: str
    value: float


def part_sensitivities(board: Board, program: Program) -> tuple[PartSensitivity, ...]:
    """Sensitivity to every populated part of the nominal board, in the order of the board's parts."""
    nominal = np.ones(len(board.parts))
    values = part_values(board, program, nominal, Conditions())
    circuit = nominal_circuit(board, program)
    stamps = incidence(board)
    X = program.mapping
    reach = X.T @ circuit.readout @ np.linalg.inv(circuit.capacitance)  # (n, m)
    scale = board.unit_capacitance / board.nodes_per_cell
    kinds = np.array([part.kind for part in board.parts])
    sizes = np.zeros(len(board.parts))
    capacitor = kinds == "C"
    sizes[capacitor] = np.abs(values[capacitor]) * scale * ((reach @ stamps[:, capacitor]) ** 2).sum(axis=0)
    sizes[kinds == "R"] = _of_resistors(board, program, stamps[:, kinds == "R"], X, scale)
    reference = np.linalg.norm(np.linalg.inv(program.target))
    return tuple(
        PartSensitivity(part.name, part.role, float(size / reference))
        for part, size, value in zip(board.parts, sizes, values, strict=True)
        if value != 0
    )


def expected_error(board: Board, program: Program) -> float:
    """Root mean square relative error of the inverse over copies, to first order in the parts' tolerances."""
    tolerance = {part.name: part.tolerance for part in board.parts}
    squares = [(s.value * tolerance[s.part]) ** 2 for s in part_sensitivities(board, program)]
    return float(np.sqrt(np.sum(squares) / 3))


def _of_resistors(board: Board, program: Program, stamps: np.ndarray, X: np.ndarray, scale: float) -> np.ndarray:
    """Norms of the inverse's change for resistors to ground, whose stamps (m, resistors) pick their nodes."""
    circuit = nominal_circuit(board, program)
    c, V = np.linalg.eigh(circuit.capacitance)
    g, stiffness = circuit.conductance[0, 0], circuit.inverse_inductance[0, 0]
    a, b = c[:, None], c[None, :]
    response = 2 * g / (g * (a + b) + stiffness * (a - b) ** 2 / (2 * g))
    at_node = stamps.T @ V  # (resistors, modes)
    read = X.T @ circuit.readout @ V  # (n, modes)
    sizes = np.empty(len(at_node))
    for k, row in enumerate(at_node):  # one (m, m) matrix at a time: all of them would be m³ numbers
        sizes[k] = np.linalg.norm(read @ (response * np.outer(row, row)) @ read.T)
    return sizes * scale
