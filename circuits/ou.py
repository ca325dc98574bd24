"""The Ornstein-Uhlenbeck law of a circuit: x = (v, φ),  dx = -A x dt + noise of covariance D dt.

    A = [[C⁻¹G, C⁻¹EΓ], [-Eᵀ, RΓ]],   D = blkdiag(2 C⁻¹ Q C⁻¹, 0)

A is not normal and D is singular. Stationary: A Σ + Σ Aᵀ = D. With noise that is held for h, in place of white noise,
the discrete law is x' = Φ x + W i_k with Φ = e^{-Ah}, W = ∫₀ʰ e^{-As} ds [C⁻¹; 0] and Cov(i_k) = 2 Q / h. The
covariance is Σ = Φ Σ Φᵀ + W (2Q/h) Wᵀ, and differs from that under white noise by (ω h)²/12 to first order.

Covariance of estimates from N samples of a Gaussian process with lagged covariances ρ(τ), c(τ) pairs being τ apart:
    Cov(S_ij, S_kl) = (1/N²) Σ_τ c(|τ|) (ρ_ik ρ_jl + ρ_il ρ_jk)(τ),
c(τ) = Σ_r (N_r - τ)₊ in independent records of N_r samples; a gap in a record only reduces the number of pairs.
"""

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov, solve_discrete_lyapunov

from circuits.board import Board
from circuits.errors import InputError
from circuits.nodal import Circuit

MOST_STATES = 600  # of a circuit whose Lyapunov equation is solved: it takes half a minute
MEMORY = 40.0  # decay constants after which lagged covariances are dropped: e^-40 is below rounding


def drift(circuit: Circuit) -> np.ndarray:
    """A, (…, m + l, m + l), 1/s."""
    E, K = circuit.coils, circuit.inverse_inductance
    upper = np.linalg.solve(circuit.capacitance, np.concatenate([circuit.conductance, E @ K], axis=-1))
    lower = np.concatenate([-np.swapaxes(E, -1, -2), circuit.loss @ K], axis=-1)
    return np.concatenate([upper, lower], axis=-2)


def diffusion(circuit: Circuit) -> np.ndarray:
    """D, (…, m + l, m + l)."""
    inverse = np.linalg.inv(circuit.capacitance)
    m, coils = circuit.coils.shape[-2:]
    D = np.zeros((*inverse.shape[:-2], m + coils, m + coils))
    D[..., :m, :m] = 2 * inverse @ circuit.noise @ inverse
    return D


def mode_rates(values: np.ndarray, conductance: float, stiffness: float) -> np.ndarray:
    """Rates (m, m) at which two modes of equal RLC nodes forget each other: g (a + b) + Γ (a - b)²/(2 g).

    `values` (m,) [F] are the eigenvalues a, b of C, `conductance` g [S] and `stiffness` Γ [1/H] those of every node.
    Under white noise of power Q between them the voltages of the modes have the covariance 2 Q / rate.
    """
    a, b = values[:, None], values[None, :]
    return conductance * (a + b) + stiffness * (a - b) ** 2 / (2 * conductance)


def stationary_covariance(circuit: Circuit) -> np.ndarray:
    """Σ, (m + l, m + l), of the state under white noise: the residual A Σ + Σ Aᵀ - D is zero."""
    A, D, unit = _dimensionless(circuit)
    return unit[:, None] * solve_continuous_lyapunov(A, D) * unit


def reading_covariance(circuit: Circuit) -> np.ndarray:
    """H Σ_vv Hᵀ, (n, n), V²: what the exact route measures."""
    H = circuit.readout
    m = H.shape[1]
    S = H @ stationary_covariance(circuit)[:m, :m] @ H.T
    return (S + S.T) / 2


def reading_covariances(circuits: Circuit) -> np.ndarray:
    """`reading_covariance` of a batch of circuits, (…, n, n), by doubling: Σ(2t) = Σ(t) + e^{-At} Σ(t) e^{-Aᵀt}.

    InputError if a circuit is unstable.
    """
    A, D, unit = _dimensionless(circuits)
    m = circuits.readout.shape[-1]
    transition, covariance = _van_loan(A, D, 0.1 / np.abs(A).sum(axis=-1).max())
    while not np.abs(transition).max() <= 1e-9:  # the next term is its square
        if not np.isfinite(transition).all():
            raise InputError("a circuit of the batch is unstable and has no stationary covariance")
        covariance = covariance + transition @ covariance @ np.swapaxes(transition, -1, -2)
        transition = transition @ transition
    H = circuits.readout * unit[:m]
    S = H @ covariance[..., :m, :m] @ np.swapaxes(H, -1, -2)
    return (S + np.swapaxes(S, -1, -2)) / 2


def spectrum(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    """One-sided cross spectral density of the readings, (f, n, n), V²/Hz.

    4 H Z Q Zᴴ Hᵀ with Z = (G + jωC + E (jωL + R)⁻¹ Eᵀ)⁻¹.
    """
    s = 2j * np.pi * frequencies[:, None, None]
    E = circuit.coils
    coils = E @ np.linalg.inv(s * np.linalg.inv(circuit.inverse_inductance) + circuit.loss) @ E.T
    Z = np.linalg.inv(circuit.conductance + s * circuit.capacitance + coils)
    HZ = circuit.readout @ Z
    return 4 * HZ @ circuit.noise @ np.conj(np.swapaxes(HZ, -1, -2))


def held_covariance(circuit: Circuit, period: float) -> np.ndarray:
    """Covariance (n, n) [V²] of the readings at multiples of `period` under noise held for `period`."""
    _, covariance, H = _held_law(circuit, period)
    return H @ covariance @ H.T


def nominal_hold_correction(circuit: Circuit, period: float) -> np.ndarray:
    """White-noise minus held-noise covariance (n, n) [V²] of the readings of a nominal board.

    All its matrices but one, C or on a resistive board G, are multiples of I, so its modes separate, a cell each.
    """
    one = np.ones((1, 1))
    rlc = circuit.inverse_inductance.shape[-1] > 0
    values, V = np.linalg.eigh(circuit.capacitance if rlc else circuit.conductance)
    lost = []
    for value in values:
        alone = circuit.capacitance[:1, :1], circuit.conductance[:1, :1]
        C, G = (value * one, alone[1]) if rlc else (alone[0], value * one)
        coil = one[:, : int(rlc)]
        mode = Circuit(C, G, coil, circuit.inverse_inductance[:1, :1], 0 * coil.T @ coil, circuit.noise[:1, :1], one)
        lost.append((reading_covariance(mode) - held_covariance(mode, period))[0, 0])
    HV = circuit.readout @ V
    return (HV * np.array(lost)) @ HV.T


def lagged_covariances(circuit: Circuit, period: float, held: bool = True) -> np.ndarray:
    """ρ(τ) = <y(t + τ) y(t)ᵀ>, τ = 0, h, 2h, … until it has decayed: (lags, n, n), V².

    Under noise held for `period`, or (`held` False) under white noise.
    """
    transition, covariance, H = _held_law(circuit, period)
    if not held:
        A, D, _ = _dimensionless(circuit)
        covariance = solve_continuous_lyapunov(A, D)
    lags = int(np.ceil(MEMORY * decay_time(circuit) / period)) + 1
    state = covariance @ H.T
    rho = np.empty((lags, len(H), len(H)))
    for k in range(lags):
        rho[k] = H @ state
        state = transition @ state
    return rho


def decay_time(circuit: Circuit) -> float:
    """Time constant of the slowest mode [s]."""
    return float(1 / np.linalg.eigvals(drift(circuit)).real.min())


def settling_time(circuit: Circuit) -> float:
    """Time constant of the slowest mode [s] of a nominal circuit: all matrices but one are multiples of I.

    A mode of capacitance c has the poles s² + (G/c) s + Γ/c = 0, one of a resistive board the pole s = -g/C.
    """
    if not circuit.inverse_inductance.size:
        return float(circuit.capacitance[0, 0] / np.linalg.eigvalsh(circuit.conductance)[0])
    c = np.linalg.eigvalsh(circuit.capacitance)
    damping, stiffness = circuit.conductance[0, 0] / (2 * c), circuit.inverse_inductance[0, 0] / c
    root = np.sqrt(np.maximum(damping**2 - stiffness, 0))
    return float(1 / np.where(root > 0, stiffness / (damping + root), damping).min())


def hold_period(circuit: Circuit, bias: float) -> float:
    """Hold time h [s] that lowers the variance of the fastest observed mode by the fraction `bias`, to first order.

    For a mode of capacitance c the bias is (ω h)²/12 + (h/RC)²/12 with ω² = Γ/c and 1/RC = G/c.
    """
    H = circuit.readout
    elastance = np.linalg.inv(circuit.capacitance)
    corners = []
    for matrix in (elastance, elastance @ circuit.conductance):  # 1/c and 1/RC of the modes
        corners.append(np.linalg.eigvals(H @ matrix @ H.T / (H @ H.T)[0, 0]).real.max())
    stiffness = np.diag(circuit.inverse_inductance).max(initial=0.0)
    return float(np.sqrt(12 * bias / (corners[0] * stiffness + corners[1] ** 2)))


def _dimensionless(circuit: Circuit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [1/s] and D for a state in units of one energy, and these units (m + l,) in volts and webers."""
    A, D = drift(circuit), diffusion(circuit)
    m, coils = circuit.coils.shape[-2:]
    C, G, Q, K = (
        np.diagonal(matrix, axis1=-2, axis2=-1)
        for matrix in (circuit.capacitance, circuit.conductance, circuit.noise, circuit.inverse_inductance)
    )
    energy = (Q.sum(axis=-1) / G.sum(axis=-1)).mean()
    weber = [np.full(coils, np.sqrt(energy / K.mean()))] if coils else []
    unit = np.concatenate([np.full(m, np.sqrt(energy / C.mean())), *weber])
    return A * (unit / unit[:, None]), D / (unit[:, None] * unit), unit


def _held_law(circuit: Circuit, period: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Φ and Σ of the scaled state under held noise, and its readout H (n, m + l) [V]."""
    A, _, unit = _dimensionless(circuit)
    m, coils = circuit.coils.shape
    inverse = np.linalg.inv(circuit.capacitance) / unit[:m, None]
    B = np.concatenate([inverse, np.zeros((coils, m))])
    block = expm(np.block([[-A, B], [np.zeros((m, m + coils + m))]]) * period)
    transition, W = block[: m + coils, : m + coils], block[: m + coils, m + coils :]
    covariance = solve_discrete_lyapunov(transition, W @ (2 * circuit.noise / period) @ W.T)
    H = np.concatenate([circuit.readout * unit[:m], np.zeros((len(circuit.readout), coils))], axis=1)
    return transition, covariance, H


def _van_loan(A: np.ndarray, D: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """e^{-At} and ∫₀ᵗ e^{-As} D e^{-Aᵀs} ds from one block exponential."""
    n = A.shape[-1]
    block = np.zeros((*A.shape[:-2], 2 * n, 2 * n))
    block[..., :n, :n], block[..., :n, n:], block[..., n:, n:] = -A, D, np.swapaxes(A, -1, -2)
    exponential = expm(block * t)
    transition = exponential[..., :n, :n]
    return transition, exponential[..., :n, n:] @ np.swapaxes(transition, -1, -2)


def predicted_columns(board: Board, circuit: Circuit, bias: float) -> np.ndarray:
    """Prediction of the measured `columns` of a circuit: H G⁻¹ times the currents, (…, n, n) [V]."""
    return circuit.readout @ np.linalg.solve(circuit.conductance, input_currents(board, circuit)) * bias


def predicted_settling(board: Board, circuit: Circuit, bias: float, times: np.ndarray) -> np.ndarray:
    """Prediction of the measured `settling` of a circuit at equally spaced times, (times, n) [V]."""
    final = np.linalg.solve(circuit.conductance, input_currents(board, circuit).sum(axis=1)) * bias
    decay = expm(-np.linalg.solve(circuit.capacitance, circuit.conductance) * times[0])
    left, settling = final, []
    for _ in times:
        left = decay @ left
        settling.append(circuit.readout @ (final - left))
    return np.array(settling)


def input_currents(board: Board, circuit: Circuit) -> np.ndarray:
    """Current into every node for a unit of bias into each cell, (m, n)."""
    row = {node: k for k, node in enumerate(board.nodes)}  # the nodes of the cells come first in a circuit
    into = np.zeros((circuit.conductance.shape[-1], len(board.cells)))
    for entry in board.inputs:
        into[row[entry.node], entry.cell] = entry.share
    return into
