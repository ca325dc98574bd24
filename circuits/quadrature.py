"""Covariance of the readings as an integral of their spectrum, with its derivatives by every part.

In ln f the spectrum is smooth and dies out at both ends, so the plain sum converges exponentially: with poles at an
angle θ from the frequency axis the error is e^{-2πθ/step}. Beyond the ends it goes as f² (as 1 on a resistive board)
and f⁻², which closes the tails.
"""

import numpy as np

from circuits.model.pairs import Half, half_circuit
from circuits.model.response import spectra_and_slopes
from circuits.ou import drift

BELOW, ABOVE = 1e-3, 1e4  # of the lowest and the highest pole
DIGITS = 20.0  # natural logarithm of one over the error
ROUGH = 10.0  # of it, for what is small


def nodes_and_weights(half: Half, digits: float = DIGITS) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (f,) and weights (f,) [Hz] with ∫₀^∞ S df = Σ weight S, for the poles at nominal parts."""
    poles = np.linalg.eigvals(drift(half_circuit(half, np.ones(half.exponents.shape[1]))))
    angle = np.arctan2(poles.real, np.abs(poles.imag)).min()
    low, high = np.abs(poles).min() * BELOW / (2 * np.pi), np.abs(poles).max() * ABOVE / (2 * np.pi)
    count = int(np.ceil(np.log(high / low) * digits / (2 * np.pi * angle))) + 1
    frequency = np.geomspace(low, high, count)
    step = np.log(high / low) / (count - 1)
    weights = np.full(count, step)
    weights[0] += step / np.expm1(step * (3 if half.coils.size else 1))
    weights[-1] += step / np.expm1(step)
    return frequency, weights * frequency


def covariance_and_slopes(half: Half, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the readings (n, n) [V²] and its derivatives by every parameter (n, n, parameters)."""
    frequency, weights = nodes_and_weights(half)
    return spectra_and_slopes(half, theta, frequency, weights)
