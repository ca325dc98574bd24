"""How a board settles, as one matrix: the covariance of readings an exponentially distributed time apart, of mean τ.

    K(τ) = (1/τ) ∫₀^∞ e^{-t/τ} (ρ(t) + ρ(t)ᵀ)/2 dt = ∫₀^∞ Re S(f) / (1 + (2π f τ)²) df

with the lagged covariances ρ and the one-sided spectrum S of the readings; K(0) is their covariance. In ln f the
integrand is as smooth as the spectrum, so a plain sum over the spectrum of an exact run converges exponentially, which
the cosine transform for one lag does not. At τ = the slowest time constant K weighs the modes that settle last.
"""

from collections.abc import Sequence

import numpy as np

from circuits.calibration.discrepancy import low_pass
from circuits.errors import SimulationError
from circuits.model.pairs import Half
from circuits.model.response import nodes_and_weights, spectra_and_slopes
from circuits.nodal import Circuit
from circuits.ou import drift, stationary_covariance
from circuits.simulation.ac import ExactRun, integrate

PER_DECADE, DECADES = 160, 24  # of the frequencies asked for: as fine and as wide as the grid of an exact run
CLOSE = 1e-6  # relative, of the covariance by the kept spectrum to that of the run itself


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


def circuit_delayed(circuit: Circuit, delay: float) -> np.ndarray:
    """K(delay [s]) (n, n) [V²] of a circuit: H (1 + A τ)⁻¹ Σ Hᵀ, its symmetric part."""
    return circuit_delays(circuit, (delay,))[0]


def circuit_delays(circuit: Circuit, delays: Sequence[float]) -> np.ndarray:
    """K (delays, n, n) [V²] at several delays [s]."""
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    A, covariance = drift(circuit), stationary_covariance(circuit)
    K = np.array([H @ np.linalg.solve(np.eye(len(A)) + A * delay, covariance @ H.T) for delay in delays])
    return (K + np.swapaxes(K, 1, 2)) / 2
