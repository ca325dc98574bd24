"""Numbers for bringing a board up: what can be measured at its nodes without noise, and with one source at a time.

In an all-to-all network no part can be measured by itself once it is soldered: whatever is put across it, R, L and
every coupling of its nodes answer too. What can be measured is the impedance of a node to ground, all others open,

    Z_ii(s) of Z(s) = (G + s C + E (s L + R)⁻¹ Eᵀ)⁻¹,

and with noise at one node alone the spread of its cell's reading, from the modes V of the nominal board: the
covariance V [2 kT g V_ia V_ib / (g (c_a + c_b) + Γ (c_a - c_b)²/(2 g))] Vᵀ, on a resistive one with the denominator
c (λ_a + λ_b).
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Conditions, Design, ideal_conditions
from circuits.nodal import Circuit, assemble_many, nominal_circuit
from circuits.ou import predicted_columns

MOST_COLUMNS = 600  # of a circuit whose impedances are taken with every parasitic in it
MOST_COPIES = 3  # that are compared with the nominal board


@dataclass(frozen=True, eq=False)
class Bringup:
    """What a designer measures on the nominal board.

    `impedances` (nodes, frequencies) [ohm] at `frequencies` [Hz]; `spread`, the largest relative difference of the
    drawn copies' from them; `alone` (nodes,) [V], rms of the cell's reading with the noise of that node alone;
    `columns` (n, n) [V], readings for `bias` [A] into each cell, of a resistive board.
    """

    nodes: tuple[str, ...]
    frequencies: np.ndarray
    impedances: np.ndarray
    spread: float
    alone: np.ndarray
    bias: float
    columns: np.ndarray | None


def bringup(design: Design, frequencies: np.ndarray, bias: float) -> Bringup:
    """The numbers of a design at these frequencies [Hz] and for this bias current [A]."""
    board, program = design.board, design.program
    nominal = nominal_circuit(board, program)
    conditions, circuit = Conditions(), nominal_circuit(board, program, Conditions())
    if circuit.capacitance.shape[-1] > MOST_COLUMNS:
        conditions, circuit = ideal_conditions(board), nominal
    own = len(board.nodes)
    impedances = _impedances(circuit, frequencies)[:, :own].T
    copies = assemble_many(board, program, design.copies[:MOST_COPIES], conditions)
    others = [_impedances(copies[k], frequencies)[:, :own].T for k in range(len(copies.capacitance))]
    return Bringup(
        board.nodes,
        frequencies,
        impedances,
        float(np.abs(np.array(others) / impedances - 1).max()),
        _alone(nominal, board.nodes_per_cell),
        bias,
        predicted_columns(board, nominal, bias) if board.inputs else None,
    )


def _impedances(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    """|Z_ii|, (frequencies, m) [ohm]."""
    found = []
    for s in 2j * np.pi * frequencies:
        Y = circuit.conductance + s * circuit.capacitance
        if circuit.inverse_inductance.size:
            stiffness, E = circuit.inverse_inductance, circuit.coils
            # (s L + R)⁻¹ = Γ (s + R Γ)⁻¹: no inverse of Γ is needed.
            Y = Y + E @ stiffness @ np.linalg.inv(s * np.eye(len(stiffness)) + circuit.loss @ stiffness) @ E.T
        found.append(np.abs(np.diag(np.linalg.inv(Y))))
    return np.array(found)


def _alone(circuit: Circuit, nodes_per_cell: int) -> np.ndarray:
    """Rms (m,) [V] of the reading of each node's cell with the source of that node alone, under white noise."""
    rlc = circuit.inverse_inductance.size > 0
    values, V = np.linalg.eigh(circuit.capacitance if rlc else circuit.conductance)
    a, b = values[:, None], values[None, :]
    power = circuit.noise[0, 0]
    if rlc:
        g, stiffness = circuit.conductance[0, 0], circuit.inverse_inductance[0, 0]
        response = 2 * power / (g * (a + b) + stiffness * (a - b) ** 2 / (2 * g))
    else:
        response = 2 * power / (circuit.capacitance[0, 0] * (a + b))
    read = np.repeat(circuit.readout @ V, nodes_per_cell, axis=0)  # the reading of every node's cell, (m, modes)
    weight = read * V  # of a mode, driven at the node and read at its cell
    return np.sqrt(np.einsum("ia,ab,ib->i", weight, response, weight, optimize=True))
