"""Gradient of the covariance of the readings of a whole circuit, parasitics and all, with respect to every part.

With the state (v, φ), M = blkdiag(C, Γ), K = [[G, EΓ], [-ΓEᵀ, ΓRΓ]] and N = blkdiag(2Q, 0) the Lyapunov equation is

    K Σ M + M Σ Kᵀ = N,   and for any change   K dΣ M + M dΣ Kᵀ = dN - dK Σ M - K Σ dM - (…)ᵀ.

A reading's entry is f = tr(F Σ). With the adjoint, Kᵀ Ψ M + M Ψ K = F, one for each entry,

    df = tr(Ψ dN) - 2 tr(Ψ dK Σ M) - 2 tr(Ψ K Σ dM):

n (n + 1)/2 equations, one Schur decomposition for all of them, and none for a part. dM, dK and dN are central
differences of the assembled matrices, smooth functions of the parts' values.
"""

from collections.abc import Iterator

import numpy as np
from scipy.linalg import schur
from scipy.linalg.lapack import dtrsyl

from circuits.board import Board, Conditions, Program
from circuits.copies import wiring
from circuits.nodal import Circuit, assemble_gains, nominal_circuit

STEP = 1e-4  # relative change of a part, either way: the difference is off by its square
MEMORY = 2e6  # entries of a batch of matrices


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
    """Volts and webers, (m + l,), in which the energies of the state are about 1 kT: S, with x = S x'."""
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
    """Which parts and sources are there, a batch at a time, and dM, dK, dN of each, (batch, m + l, m + l)."""
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
