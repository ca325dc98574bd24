"""What is known of a copy under one program: spectra of its readings as real numbers, and how far to trust them.

A spectrum S is taken as ln S_ii, and S_ij/sqrt(S_ii S_jj), real and imaginary: numbers of one size whose absolute
errors are relative errors of S. A resistive board adds the columns of its inverse, Z(0), scaled alike. The model of
equal pairs leaves mismatch out, in second order; how much that is comes from pairs drawn from their tolerances, the
same draws for all programs, for one copy's mismatch is one.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Board
from circuits.model.pairs import Half
from circuits.model.response import impedance, impedance_slopes, spectra, spectra_and_slopes

ESR = "esr"  # the cause of resistances in series with capacitors
SERIES = (128.0, 1024.0, 8192.0, 65536.0)  # where they show: noise of so high a frequency is in the covariance too
FLOOR = 1e-7  # relative error of a datum: above that of ngspice, far below anything that matters
SPECTRAL = {"capacitive": (0.25, 0.5, 1.0, 2.0, 4.0, 16.0), "resistive": (0.05, 0.25, 1.0, 4.0, 16.0)}


@dataclass(frozen=True, eq=False)
class Evidence:
    """One program: its circuit, frequencies (f,) [Hz], and the model's leavings (draws, data) by mismatch."""

    half: Half
    frequencies: np.ndarray
    columns: bool
    leavings: np.ndarray

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation (data,) of the independent errors of the data."""
        return np.full(self.leavings.shape[1], FLOOR)

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data (data,) that the model gives at θ, and their derivatives (data, parameters)."""
        return expected_and_slopes(self, theta)


def evidence_frequencies(board: Board) -> np.ndarray:
    """At which spectra are looked at, (f,) [Hz]: around resonance or corner of the unit, and where ESR shows."""
    inductance = next((part.nominal for part in board.parts if part.kind == "L"), None)
    corner = 1 / np.sqrt(inductance * board.capacitance) if inductance else board.unit / board.capacitance
    beyond = SERIES if any(part.cause == ESR for part in board.parts) else ()
    return np.array((*SPECTRAL[board.coupling], *beyond)) * corner / (2 * np.pi)


def expected(evidence: Evidence, theta: np.ndarray) -> np.ndarray:
    """Data (data,) that the model gives at θ."""
    data = [flattened(spectra(evidence.half, theta, evidence.frequencies)[None])[0]]
    if evidence.columns:
        data.append(flattened(impedance(evidence.half, theta, np.zeros(1))[None])[0])
    return np.concatenate(data)


def expected_and_slopes(evidence: Evidence, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`expected`, and its derivatives (data, parameters)."""
    found = [spectra_and_slopes(evidence.half, theta, evidence.frequencies)]
    if evidence.columns:
        found.append(impedance_slopes(evidence.half, theta, np.zeros(1)))
    data = np.concatenate([flattened(S[None])[0] for S, _ in found])
    return data, np.concatenate([_flattened_slopes(S, J) for S, J in found])


def flattened(S: np.ndarray) -> np.ndarray:
    """Matrices (draws, f, n, n) as real numbers (draws, data)."""
    a, b = np.triu_indices(S.shape[-1], 1)
    power = np.einsum("dfii->dfi", S).real
    R = S[..., a, b] / np.sqrt(power[..., a] * power[..., b])
    return np.concatenate([np.log(power), R.real, R.imag], axis=2).reshape(len(S), -1)


def _flattened_slopes(S: np.ndarray, J: np.ndarray) -> np.ndarray:
    """The same of derivatives J (f, n, n, parameters), (data, parameters)."""
    a, b = np.triu_indices(S.shape[-1], 1)
    power = np.einsum("fii->fi", S).real
    own = np.einsum("fiip->fip", J).real / power[..., None]
    scale = np.sqrt(power[:, a] * power[:, b])
    R = S[:, a, b] / scale
    slopes = J[:, a, b] / scale[..., None] - R[..., None] * (own[:, a] + own[:, b]) / 2
    return np.concatenate([own, slopes.real, slopes.imag], axis=1).reshape(-1, J.shape[-1])
