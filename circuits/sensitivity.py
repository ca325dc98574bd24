"""First-order sensitivity of the inverse to every part, in closed form.

A capacitor x with stamp s moves C by x s sᵀ, hence the inverse by  dB/dlog x = - x c0/k w wᵀ,  w = Xᵀ H C⁻¹ s: a
matrix of rank one with the norm x c0/k |w|². A resistor moves the temperature of its node (the source does not follow
it), and with equal G, Γ everywhere the modes c of C separate:

    dCov(v)/dlog R_i = V [ 2 kT g (V_ia V_ib) / (g (c_a + c_b) + Γ (c_a - c_b)²/(2 g)) ] Vᵀ.

A source's power does as much as its resistor. An inductor moves nothing. On a resistive board the inverse is read from
the mean, <v> = G⁻¹ i, so the first law holds with G for C and a conductance for x, and capacitors move nothing.

For independent parts, uniform within ±tolerance, the expected relative error of the inverse is tolerance/sqrt(3) times
the root of the sum of squares.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import nominal_circuit, stamp_vectors
from circuits.board import Board, Conditions, Program, ideal_conditions
from circuits.copies import gains_of, nominal_copy, part_values, wiring


@dataclass(frozen=True)
class PartSensitivity:
    """Relative change of the inverse for a relative change of one part: ||dP⁻¹/dlog x|| / ||P⁻¹||."""

    part: str
    role: str
    value: float


def part_sensitivities(board: Board, program: Program) -> tuple[PartSensitivity, ...]:
    """Sensitivity to every part of the nominal board, switches closed or open, in the order of the board's parts.

    And then to every source, if their power has a tolerance.
    """
    conditions = Conditions(off=ideal_conditions(board).off | {"switches"})
    values = part_values(board, program, gains_of(board, [nominal_copy(board)])[0], conditions)
    wired = wiring(board, program, conditions)
    stamps = stamp_vectors(board, wired)
    floats = (stamps[len(board.nodes) :] != 0).any(axis=0)  # an open bit: the pad in series is all that is felt of it
    stamps = stamps[: len(board.nodes)] * ~floats
    kinds = np.array([part.kind for part in board.parts])
    holds = (kinds == board.element_kind) & wired.present
    held = np.abs(values[holds] if board.coupling == "capacitive" else 1 / values[holds])
    circuit = nominal_circuit(board, program)
    capacitive = board.coupling == "capacitive"
    X = program.mapping
    reach = X.T @ circuit.readout @ np.linalg.inv(circuit.capacitance if capacitive else circuit.conductance)
    scale = board.unit / board.nodes_per_cell
    sizes = np.zeros(len(board.parts))
    sizes[holds] = held * scale * ((reach @ stamps[:, holds]) ** 2).sum(axis=0)
    sources = [source for source in board.sources if source.tolerance and capacitive]
    if capacitive:
        resistors = (kinds == "R") & wired.present
        sizes[resistors] = _of_heat(board, program, stamps[:, resistors], X, scale)
    at_sources = np.eye(len(board.nodes))[:, [board.nodes.index(source.node) for source in sources]]
    sizes = np.concatenate([sizes, _of_heat(board, program, at_sources, X, scale) if sources else []])
    reference = np.linalg.norm(np.linalg.inv(program.target))
    there = [*wired.present, *[True] * len(sources)]
    named = [(part.name, part.role) for part in board.parts] + [(source.name, "noise source") for source in sources]
    return tuple(
        PartSensitivity(*names, float(size / reference))
        for names, size, counts in zip(named, sizes, there, strict=True)
        if counts
    )


def expected_error(board: Board, program: Program) -> float:
    """Root mean square relative error of the inverse over copies, to first order in the parts' tolerances."""
    tolerance = {entry.name: entry.tolerance for entry in (*board.parts, *board.sources)}
    squares = [(s.value * tolerance[s.part]) ** 2 for s in part_sensitivities(board, program)]
    return float(np.sqrt(np.sum(squares) / 3))


def _of_heat(board: Board, program: Program, stamps: np.ndarray, X: np.ndarray, scale: float) -> np.ndarray:
    """Norms of the inverse's change for resistors to ground or sources, whose stamps (m, entries) pick their nodes."""
    circuit = nominal_circuit(board, program)
    c, V = np.linalg.eigh(circuit.capacitance)
    g, stiffness = circuit.conductance[0, 0], circuit.inverse_inductance[0, 0]
    a, b = c[:, None], c[None, :]
    response = 2 * g / (g * (a + b) + stiffness * (a - b) ** 2 / (2 * g))
    at_node = stamps.T @ V  # (entries, modes)
    read = X.T @ circuit.readout @ V  # (n, modes)
    sizes = np.empty(len(at_node))
    for k, row in enumerate(at_node):  # one (m, m) matrix at a time: all of them would be m³ numbers
        sizes[k] = np.linalg.norm(read @ (response * np.outer(row, row)) @ read.T)
    return sizes * scale
