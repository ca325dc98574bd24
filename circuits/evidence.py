"""What is known of a copy under one program: spectra of its readings as real numbers, and how far to trust them.

A spectrum S is taken as ln S_ii, and S_ij/sqrt(S_ii S_jj), real and imaginary: numbers of one size whose absolute
errors are relative errors of S. A resistive board adds the columns of its inverse, Z(0), scaled alike. The model of
equal pairs leaves mismatch out, in second order; how much that is comes from pairs drawn from their tolerances, the
same draws for all programs, for one copy's mismatch is one.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import nominal_circuit
from circuits.board import Board, Conditions, Program
from circuits.copies import draw_gains
from circuits.ou import spectrum
from circuits.pairs import Half, PairModel, half_of
from circuits.response import (
    impedance,
    impedance_slopes,
    mismatched_spectra,
    spectra,
    spectra_and_slopes,
)

DRAWS = 64  # of mismatch
MISMATCH_SEED = 20_000_003  # added to the design's seed: never the copies themselves
ESR = "esr"  # the cause of resistances in series with capacitors
SERIES = (128.0, 1024.0, 8192.0, 65536.0)  # where they show: noise of so high a frequency is in the covariance too
STRAYS = "strays"  # the cause of capacitances between neighbouring cells
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
    def sigma(self) -> np.ndarray:
        """Standard deviation (data,) of every datum about the model."""
        return np.sqrt(self.leavings.var(axis=0) + FLOOR**2)

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


def draw_mismatch(model: PairModel, seed: int, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """δ (draws, pairs) of the values of pairs, zero for single parts, and (draws, cells) of the powers of sources."""
    gains = draw_gains(model.board, seed + MISMATCH_SEED, draws)
    ends = np.array([(members[0], members[-1]) for members in model.pairs])
    parts = (gains[:, ends[:, 0]] - gains[:, ends[:, 1]]) / 2
    powers = gains[:, len(model.board.parts) :].reshape(draws, len(model.board.cells), -1)
    return parts, (powers[..., 0] - powers[..., -1]) / 2


def evidence_of(
    model: PairModel, program: Program, frequencies: np.ndarray, mismatch: tuple[np.ndarray, np.ndarray], columns: bool
) -> Evidence:
    """What to expect of a program; `columns`: those of the inverse are data too."""
    half = half_of(model, program)
    blank = Evidence(half, frequencies, columns, np.zeros((1, 1)))
    if model.board.nodes_per_cell == 1:
        size = len(expected(blank, np.ones(len(model.names))))
        return Evidence(half, frequencies, columns, np.zeros((2, size)))
    drawn = tuple(np.concatenate([0 * draws[:1], draws]) for draws in mismatch)  # equal pairs first
    data = [flattened(mismatched_spectra(half, *drawn, frequencies)[0])]
    if columns:
        data.append(flattened(mismatched_spectra(half, *drawn, np.zeros(1))[1]))
    each = np.concatenate(data, axis=1)
    return Evidence(half, frequencies, columns, each[1:] - each[0] + _lopsided(blank, model.board, program))


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


def _lopsided(evidence: Evidence, board: Board, program: Program) -> np.ndarray | float:
    """What strays on one side of a cell, which no pair of parts has, do to the nominal data, (data,)."""
    if not any(part.cause == STRAYS for part in board.parts):
        return 0.0
    circuit = nominal_circuit(board, program, Conditions())
    data = [flattened(spectrum(circuit, evidence.frequencies)[None])[0]]
    if evidence.columns:
        Z = circuit.readout @ np.linalg.solve(circuit.conductance, circuit.readout.T) / board.nodes_per_cell
        data.append(flattened(Z[None, None].astype(complex))[0])
    ones = np.ones(evidence.half.exponents.shape[1])
    return np.concatenate(data) - expected(evidence, ones)


def _flattened_slopes(S: np.ndarray, J: np.ndarray) -> np.ndarray:
    """The same of derivatives J (f, n, n, parameters), (data, parameters)."""
    a, b = np.triu_indices(S.shape[-1], 1)
    power = np.einsum("fii->fi", S).real
    own = np.einsum("fiip->fip", J).real / power[..., None]
    scale = np.sqrt(power[:, a] * power[:, b])
    R = S[:, a, b] / scale
    slopes = J[:, a, b] / scale[..., None] - R[..., None] * (own[:, a] + own[:, b]) / 2
    return np.concatenate([own, slopes.real, slopes.imag], axis=1).reshape(-1, J.shape[-1])
