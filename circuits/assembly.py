"""Matrices of one copy, or of many, straight from the four records: no netlist in between.

    C dv/dt = -G v - Γ φ + i_n,   dφ/dt = v,   <i_n(t) i_n(t')ᵀ> = 2 Q δ(t - t'),   readings = H v.

Every part is a stamp a aᵀ with a = e_plus - e_minus, so C = B diag(values) Bᵀ over the capacitors, and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from circuits.board import (
    GROUND,
    Board,
    Conditions,
    Copy,
    Program,
    gains_of,
    nominal_copy,
    part_values,
)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodal matrices of m nodes, with any leading batch axes: SI units, readout dimensionless."""

    capacitance: np.ndarray  # (…, m, m), F
    conductance: np.ndarray  # (…, m, m), 1/ohm
    inverse_inductance: np.ndarray  # (…, m, m), 1/H
    noise: np.ndarray  # (…, m, m), Q, A² s
    readout: np.ndarray  # (n, m)

    def __getitem__(self, index: int) -> "Circuit":
        """One circuit out of a batch."""
        return Circuit(
            self.capacitance[index],
            self.conductance[index],
            self.inverse_inductance[index],
            self.noise[index],
            self.readout,
        )


def assemble(board: Board, program: Program, copy: Copy, conditions: Conditions) -> Circuit:
    """The circuit of one copy, matrices (m, m)."""
    return assemble_many(board, program, [copy], conditions)[0]


def assemble_many(board: Board, program: Program, copies: Sequence[Copy], conditions: Conditions) -> Circuit:
    """The circuits of several copies, matrices (copies, m, m)."""
    return assemble_gains(board, program, gains_of(board, copies), conditions)


def assemble_gains(board: Board, program: Program, gains: np.ndarray, conditions: Conditions) -> Circuit:
    """The circuits of copies given as ratios actual/nominal (…, parts), matrices (…, m, m)."""
    values = part_values(board, program, gains, conditions)
    kinds = np.array([part.kind for part in board.parts])
    populated = (values != 0).reshape(-1, len(kinds)).any(axis=0)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=(kinds != "C") & (values != 0))
    nodes = len(board.nodes)

    def total(kind: str, weights: np.ndarray) -> np.ndarray:
        chosen = np.flatnonzero(populated & (kinds == kind))
        flat = _stamps(board, chosen) @ weights[..., chosen].reshape(-1, len(chosen)).T
        return np.ascontiguousarray(flat.T).reshape(*weights.shape[:-1], nodes, nodes)

    capacitance = total("C", values)
    return Circuit(
        capacitance,
        total("R", inverse),
        total("L", inverse),
        np.broadcast_to(source_noise(board, program), capacitance.shape),
        readout_matrix(board),
    )


def nominal_circuit(board: Board, program: Program) -> Circuit:
    """The circuit with every part nominal."""
    return assemble(board, program, nominal_copy(board), Conditions())


def source_noise(board: Board, program: Program) -> np.ndarray:
    """Q = diag(kT / R_nominal) over the nodes, (m, m), A² s."""
    nominal = {part.name: part.nominal for part in board.parts}
    row = {node: k for k, node in enumerate(board.nodes)}
    power = np.zeros(len(board.nodes))
    for source in board.sources:
        power[row[source.node]] += program.energy / nominal[source.heats]
    return np.diag(power)


def readout_matrix(board: Board) -> np.ndarray:
    """H, (n, m): readings = H v."""
    row = {node: k for k, node in enumerate(board.nodes)}
    H = np.zeros((len(board.readings), len(board.nodes)))
    for k, reading in enumerate(board.readings):
        H[k, row[reading.plus]] = 1
        if reading.minus is not None:
            H[k, row[reading.minus]] = -1
    return H


def is_definite(capacitance: np.ndarray) -> np.ndarray:
    """Whether each capacitance matrix (…, m, m) is positive definite, (…,): the copy is stable if and only if it is."""
    return np.linalg.eigvalsh(capacitance)[..., 0] > 0


def incidence(board: Board) -> np.ndarray:
    """(m, parts): +1 at a part's first node, -1 at its second, nothing at ground."""
    B = np.zeros((len(board.nodes), len(board.parts)))
    for end, sign in zip(_ends(board).T, (1, -1), strict=True):
        there = end >= 0
        B[end[there], np.flatnonzero(there)] = sign
    return B


def _ends(board: Board) -> np.ndarray:
    """Node numbers of both ends of every part, (parts, 2), -1 for ground."""
    number = {node: k for k, node in enumerate(board.nodes)} | {GROUND: -1}
    return np.array([[number[node] for node in part.nodes] for part in board.parts])


def _stamps(board: Board, chosen: np.ndarray) -> sparse.csr_array:
    """a aᵀ of the chosen parts, flattened, one column a part, (m², parts): at most four entries a column."""
    a, b = _ends(board)[chosen].T
    m = len(board.nodes)
    rows, columns, signs = [], [], []
    for first, second, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
        there = np.flatnonzero((first >= 0) & (second >= 0))
        rows.append(first[there] * m + second[there])
        columns.append(there)
        signs.append(np.full(len(there), sign))
    entries = (np.concatenate(signs), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, (m * m, len(chosen)))
