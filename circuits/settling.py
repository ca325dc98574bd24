"""How a board settles, as one matrix: the covariance of readings an exponentially distributed time apart, of mean τ.

    K(τ) = (1/τ) ∫₀^∞ e^{-t/τ} (ρ(t) + ρ(t)ᵀ)/2 dt = ∫₀^∞ Re S(f) / (1 + (2π f τ)²) df

with the lagged covariances ρ and the one-sided spectrum S of the readings; K(0) is their covariance. In ln f the
integrand is as smooth as the spectrum, so a plain sum over the spectrum of an exact run converges exponentially, which
the cosine transform for one lag does not. At τ = the slowest time constant K weighs the modes that settle last.
"""

from collections.abc import Sequence

import numpy as np

from circuits.assembly import Circuit, nominal_circuit
from circuits.board import Board, Conditions, Program
from circuits.errors import SimulationError
from circuits.evidence import STRAYS
from circuits.exact import ExactRun, integrate
from circuits.ou import drift, stationary_covariance
from circuits.pairs import Half, half_circuit
from circuits.quadrature import ROUGH, nodes_and_weights
from circuits.response import mismatched_spectra, spectra_and_slopes

PER_DECADE, DECADES = 160, 24  # of the frequencies asked for: as fine and as wide as the grid of an exact run
CLOSE = 1e-6  # relative, of the covariance by the kept spectrum to that of the run itself
PIECE = 16  # frequencies at a time


def settling_frequencies(middle: float) -> np.ndarray:
    """Frequencies (f,) [Hz] around `middle` so close that an exact run keeps every point of its grid within them."""
    return np.geomspace(middle * 10 ** (-DECADES / 2), middle * 10 ** (DECADES / 2), PER_DECADE * DECADES + 1)


def delayed_covariance(run: ExactRun, delay: float) -> np.ndarray:
    """K(delay [s]) (n, n) [V²] of a run whose spectra were kept at all points of its grid.

    SimulationError if its own covariance does not come out of them.
    """
    whole = integrate(run.frequencies, run.spectra)
    if not np.linalg.norm(whole - run.covariance) <= CLOSE * np.linalg.norm(run.covariance):
        raise SimulationError("the spectrum kept of a run does not add up to its covariance; are its modes too sharp?")
    return integrate(run.frequencies, run.spectra * low_pass(run.frequencies, delay)[:, None, None])


def delayed_and_slopes(half: Half, theta: np.ndarray, delay: float) -> tuple[np.ndarray, np.ndarray]:
    """K(delay [s]) (n, n) [V²] and its derivatives by every parameter (n, n, parameters)."""
    frequency, weights = nodes_and_weights(half)
    return spectra_and_slopes(half, theta, frequency, weights * low_pass(frequency, delay))


def mismatched_delayed(half: Half, mismatch: np.ndarray, sources: np.ndarray, delays: Sequence[float]) -> np.ndarray:
    """K (delays, draws, n, n) [V²] of nominal copies whose pairs are not equal, see `mismatched_spectra`."""
    frequency, weights = nodes_and_weights(half, ROUGH)
    each = np.array([weights * low_pass(frequency, delay) for delay in delays])
    total = np.zeros((len(each), len(mismatch), len(half.power), len(half.power)))
    for piece in np.array_split(np.arange(len(frequency)), max(1, len(frequency) // PIECE)):
        S, _ = mismatched_spectra(half, mismatch, sources, frequency[piece])
        total += np.einsum("wf,dfij->wdij", each[:, piece], S, optimize=True).real
    return total


def lopsided_delayed(half: Half, board: Board, program: Program, delay: float) -> np.ndarray | float:
    """What strays on one side of a cell, which no pair of parts has, add to K(delay) (n, n) of the nominal board."""
    if not any(part.cause == STRAYS for part in board.parts):
        return 0.0
    whole = circuit_delayed(nominal_circuit(board, program, Conditions()), delay)
    return whole - circuit_delayed(half_circuit(half, np.ones(half.exponents.shape[1])), delay)


def circuit_delayed(circuit: Circuit, delay: float) -> np.ndarray:
    """K(delay [s]) (n, n) [V²] of a circuit: H (1 + A τ)⁻¹ Σ Hᵀ, its symmetric part."""
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    A, covariance = drift(circuit), stationary_covariance(circuit)
    K = H @ np.linalg.solve(np.eye(len(A)) + A * delay, covariance @ H.T)
    return (K + K.T) / 2


def low_pass(frequency: np.ndarray, delay: float) -> np.ndarray:
    """1/(1 + (2π f τ)²), (f,)."""
    return 1 / (1 + (2 * np.pi * frequency * delay) ** 2)
