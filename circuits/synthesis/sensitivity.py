"""First-order sensitivity of the inverse to every part.

Ideal board, in closed form. A capacitor x with stamp s moves C by x s sᵀ, hence the inverse by
dB/dlog x = - x c0/k w wᵀ,  w = Xᵀ H C⁻¹ s: a matrix of rank one with the norm x c0/k |w|². A resistor moves the
temperature of its node (the source does not follow it), and with equal G, Γ everywhere the modes c of C separate:

    dCov(v)/dlog R_i = V [ 2 kT g (V_ia V_ib) / (g (c_a + c_b) + Γ (c_a - c_b)²/(2 g)) ] Vᵀ.

The power of a source has the same sensitivity as its resistor; that of an inductor is zero. On a resistive board the
inverse is read from the mean, <v> = G⁻¹ i, so the first law holds with G for C and a conductance for x, and the
sensitivity to capacitors is zero.

For independent parts, uniform within ±tolerance, the expected relative error of the inverse is the root of the sum of
the squares of the parts' contributions, sensitivity · tolerance / sqrt(3).

Capacitive board with parasitics: inductors and parasitics change the inverse too, and the sensitivity comes from the
gradient of the covariance of the readings of the whole circuit. With the state (v, φ), M = blkdiag(C, Γ),
K = [[G, EΓ], [-ΓEᵀ, ΓRΓ]] and N = blkdiag(2Q, 0) the Lyapunov equation is

    K Σ M + M Σ Kᵀ = N,   and for any change   K dΣ M + M dΣ Kᵀ = dN - dK Σ M - K Σ dM - (…)ᵀ.

A reading's entry is f = tr(F Σ). With the adjoint, Kᵀ Ψ M + M Ψ K = F, one for each entry,

    df = tr(Ψ dN) - 2 tr(Ψ dK Σ M) - 2 tr(Ψ K Σ dM):

n (n + 1)/2 equations with one Schur decomposition for all of them, whatever the number of parts. dM, dK and dN are
central differences of the assembled matrices, smooth functions of the parts' values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import schur
from scipy.linalg.lapack import dtrsyl

from circuits.board import Board, Conditions, Program, ideal_conditions, inverse_scale
from circuits.copies import gains_of, nominal_copy, part_values, wiring
from circuits.nodal import Circuit, assemble_gains, nominal_circuit, stamp_vectors
from circuits.ou import mode_rates

MOST_NODES = 150  # nodes and inductors of a circuit with parasitics that is differentiated: it takes a second

STEP = 1e-4  # relative change of a part, either way: the difference is off by its square
MEMORY = 2e6  # entries of a batch of matrices


@dataclass(frozen=True)
class PartSensitivity:
    """Relative change of the inverse for a relative change of one part: ||dP⁻¹/dlog x|| / ||P⁻¹||.

    `contribution` is the root mean square of the relative error that its own `tolerance` gives.
    """

    part: str
    role: str
    value: float
    tolerance: float

    @property
    def contribution(self) -> float:
        """value · tolerance / sqrt(3)."""
        return self.value * self.tolerance / float(np.sqrt(3))


@lru_cache(maxsize=8)
def part_sensitivities(board: Board, program: Program) -> tuple[PartSensitivity, ...]:
    """Sensitivity to every part of the nominal board, switches closed or open, in the order of the board's parts.

    Sensitivities to the sources follow, if their power has a tolerance.
    """
    sizes, there = _with_parasitics(board, program) if differentiated(board, program) else _ideal(board, program)
    reference = np.linalg.norm(np.linalg.inv(program.target))
    entries = [*((part, part.role) for part in board.parts), *((source, "noise source") for source in board.sources)]
    return tuple(
        PartSensitivity(entry.name, role, float(size / reference), entry.tolerance)
        for (entry, role), size, counts in zip(entries, sizes, there, strict=True)
        if counts
    )


def differentiated(board: Board, program: Program) -> bool:
    """Whether sensitivities are those of the board with its parasitics: if it has them and at most MOST_NODES nodes."""
    dynamic = {part.cause for part in board.parts} | {mutual.cause for mutual in board.mutuals}
    if board.coupling == "resistive" or not dynamic & ideal_conditions(board).off:
        return False
    coils = sum(part.kind == "L" for part in board.parts)
    return len(wiring(board, program, Conditions()).nodes) + coils <= MOST_NODES


def expected_error(board: Board, program: Program) -> float:
    """Root mean square relative error of the inverse over copies, to first order in the parts' tolerances."""
    return float(np.sqrt(sum(entry.contribution**2 for entry in part_sensitivities(board, program))))


def _with_parasitics(board: Board, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Norms of the inverse's change, (parts + sources,), and whether each counts: the circuit with its parasitics."""
    scale = inverse_scale(board, program)
    X = program.mapping * np.sqrt(scale)
    change = X.T @ reading_gradients(board, program) @ X
    present = wiring(board, program, Conditions()).present
    return np.linalg.norm(change, axis=(-2, -1)), np.array([*present, *_sources_count(board)])


def _ideal(board: Board, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Norms of the inverse's change, (parts + sources,), and whether each counts: the ideal circuit, in closed form."""
    conditions = Conditions(off=ideal_conditions(board).off | {"switches"})
    values = part_values(board, program, gains_of(board, [nominal_copy(board)])[0], conditions)
    wired = wiring(board, program, conditions)
    stamps = stamp_vectors(board, wired)
    floats = (stamps[len(board.nodes) :] != 0).any(axis=0)  # an open bit: only the pad in series has an effect
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
    of_sources = np.zeros(len(board.sources))
    if capacitive:
        resistors = (kinds == "R") & wired.present
        at_sources = np.eye(len(board.nodes))[:, [board.nodes.index(source.node) for source in board.sources]]
        heat = _of_temperatures(board, program, np.hstack([stamps[:, resistors], at_sources]), X, scale)
        sizes[resistors], of_sources = np.split(heat, [resistors.sum()])
    return np.concatenate([sizes, of_sources]), np.array([*wired.present, *_sources_count(board)])


def _sources_count(board: Board) -> list[bool]:
    """Whether each source counts: its power has a tolerance, and the inverse is read from the covariance."""
    return [board.coupling == "capacitive" and source.tolerance > 0 for source in board.sources]


def _of_temperatures(board: Board, program: Program, stamps: np.ndarray, X: np.ndarray, scale: float) -> np.ndarray:
    """Norms of the inverse's change for resistors to ground or sources, whose stamps (m, entries) pick their nodes."""
    circuit = nominal_circuit(board, program)
    c, V = np.linalg.eigh(circuit.capacitance)
    g, stiffness = circuit.conductance[0, 0], circuit.inverse_inductance[0, 0]
    response = 2 * g / mode_rates(c, g, stiffness)
    at_node = stamps.T @ V  # (entries, modes)
    read = X.T @ circuit.readout @ V  # (n, modes)
    sizes = np.empty(len(at_node))
    for k, row in enumerate(at_node):  # one (m, m) matrix at a time: all of them would be m³ numbers
        sizes[k] = np.linalg.norm(read @ (response * np.outer(row, row)) @ read.T)
    return sizes * scale


def reading_gradients(board: Board, program: Program) -> np.ndarray:
    """d Cov(y) / d log x for every part, absent ones too, and every source's power, (parts + sources, n, n) [V²]."""
    circuit = nominal_circuit(board, program, Conditions())
    unit = _units(circuit, program.energy)
    M, K, N = _system(circuit, unit, program.energy)
    n = len(circuit.readout)
    H = np.concatenate([circuit.readout, np.zeros((n, len(M) - circuit.readout.shape[1]))], axis=1) * unit
    sigma, adjoints = _solutions(M, K, N, H)
    # tr(A dX) is the sum of Aᵀ ∘ dX: that is (Σ M Ψ)ᵀ = Ψ M Σ for K, and for M, which is symmetric, Ψ K Σ itself.
    gradients = (-2 * (adjoints @ K @ sigma), -2 * (adjoints @ M @ sigma), adjoints)
    i, j = np.triu_indices(n)
    found = np.zeros((len(board.parts) + len(board.sources), n, n))
    for which, changes in _changes(board, program, unit):
        entries = sum(
            np.einsum("qab,pab->pq", of, by, optimize=True) for of, by in zip(gradients, changes, strict=True)
        )
        found[which[:, None], i, j] = found[which[:, None], j, i] = entries
    return found


def _units(circuit: Circuit, energy: float) -> np.ndarray:
    """Units S of the state, x = S x', volts and webers, (m + l,), in which its energies are about 1 kT."""
    volt, weber = (
        np.sqrt(energy / np.abs(np.diag(matrix)).mean()) if len(matrix) else 0.0
        for matrix in (circuit.capacitance, circuit.inverse_inductance)
    )
    return np.concatenate([np.full(len(circuit.capacitance), volt), np.full(len(circuit.inverse_inductance), weber)])


def _system(circuit: Circuit, unit: np.ndarray, energy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S M S, S K S and S N S, (…, m + l, m + l), in units of kT and of its square."""
    E, stiffness = circuit.coils, circuit.inverse_inductance
    m, coils = E.shape[-2:]
    M, K, N = (np.zeros((*E.shape[:-2], m + coils, m + coils)) for _ in range(3))
    M[..., :m, :m], M[..., m:, m:] = circuit.capacitance, stiffness
    K[..., :m, :m], K[..., :m, m:] = circuit.conductance, E @ stiffness
    K[..., m:, :m] = -np.swapaxes(E @ stiffness, -1, -2)
    K[..., m:, m:] = stiffness @ circuit.loss @ stiffness
    N[..., :m, :m] = 2 * circuit.noise
    both = unit[:, None] * unit / energy
    return M * both, K * both, N * both / energy


def _solutions(M: np.ndarray, K: np.ndarray, N: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ, and Ψ of every entry of H Σ Hᵀ in its upper triangle, (n (n + 1)/2, m + l, m + l)."""
    T, Z = schur(np.linalg.solve(M, K), output="real")
    inverse = np.linalg.inv(M)
    sigma = _sylvester(T, Z, inverse @ N @ inverse, "N", "T")
    adjoints = [
        inverse @ _sylvester(T, Z, (np.outer(H[i], H[j]) + np.outer(H[j], H[i])) / 2, "T", "N") @ inverse
        for i, j in zip(*np.triu_indices(len(H)), strict=True)
    ]
    return sigma, np.array(adjoints)


def _sylvester(T: np.ndarray, Z: np.ndarray, right: np.ndarray, first: str, second: str) -> np.ndarray:
    """X of A X + X Aᵀ = right, or with "T" first of Aᵀ X + X A = right, for A = Z T Zᵀ and a symmetric right side."""
    Y, scale, _ = dtrsyl(T, T, Z.T @ right @ Z, trana=first, tranb=second)
    X = Z @ (Y / scale) @ Z.T
    return (X + X.T) / 2


def _changes(
    board: Board, program: Program, unit: np.ndarray
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Indices of a batch of present parts and sources, and dM, dK, dN of each, (batch, m + l, m + l)."""
    wired = wiring(board, program, Conditions())
    there = [*wired.present, *[True] * len(board.sources)]
    every = np.flatnonzero(there)
    size = max(1, int(MEMORY / max(len(wired.nodes), len(unit)) ** 2))  # nodes that are eliminated count, too
    for start in range(0, len(every), size):
        which = every[start : start + size]
        gains = np.ones((2, len(which), len(there)))
        gains[:, np.arange(len(which)), which] += np.array([[STEP], [-STEP]])
        systems = _system(assemble_gains(board, program, gains, Conditions()), unit, program.energy)
        yield which, tuple((matrix[0] - matrix[1]) / (2 * STEP) for matrix in systems)
