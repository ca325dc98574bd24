"""Evidence on the parts of a copy under one program: the data that a model gives, and their errors.

Spectra (`Evidence`). A spectrum S is taken as ln S_ii, and S_ij/sqrt(S_ii S_jj), real and imaginary: numbers of one
size whose absolute errors are relative errors of S. A resistive board adds the columns of its inverse, Z(0), scaled
alike. The model of equal pairs leaves mismatch out, in second order; its discrepancy comes from pairs drawn from their
tolerances, with the same draws for all programs, because one copy has one mismatch.

A sampled or recorded covariance (`CovarianceEvidence`), weighted by the law of its estimate:

    data = triangle(S),   model(θ) = r_i r_j Σ_ij(θ) + bias,   errors of the covariance that the law of S has.

Σ is the covariance under white noise. `bias` is the effect, on the nominal board, of a hold or of taking S about its
own mean: some per cent of Σ, so that its change with the parts is far below the noise of sampling. r are relative gains
of the readout, parameters of their own where the data are recorded voltages. Data and model are whitened, so that their
errors are independent and of size 1.

Covariances of a record at no lag and at another (`LaggedEvidence`), which show how a copy settles:

    C(τ) = (1/N_τ) Σ_t y(t + τ) y(t)ᵀ,   <C(τ)> = r_i r_j ρ_ij(τ) - V_ij,   ρ(τ) = H e^{-Aτ} Σ Hᵀ

about the mean of the readings, whose covariance is V. By Isserlis' theorem for a Gaussian process

    Cov(C_ij(τ), C_kl(σ)) = (1/N_τ N_σ) Σ_u c(u) [ρ_ik(u + τ - σ) ρ_jl(u) + ρ_il(u + τ) ρ_jk(u - σ)],

with c(u) the number of pairs that are u apart. One covariance does not determine A; two together do, inductances and
losses with it. The law and the derivatives by the parts are those of the nominal board. Both differ from those of the
copy by as much as parts do; the minimum of a fit does not, because the model is evaluated at the copy's own θ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import expm, solve_triangular

from circuits.board import Board, Program
from circuits.calibration.discrepancy import DrawnPairs, delayed_discrepancies, lagged_discrepancies
from circuits.model.pairs import Half, PairModel, half_circuit, half_of
from circuits.model.response import covariance_and_slopes, impedance, impedance_slopes, spectra, spectra_and_slopes
from circuits.nodal import Circuit
from circuits.ou import drift, lagged_covariances, reading_covariance, stationary_covariance
from circuits.statistics.estimators import EstimateLaw, mean_covariance

STEP = 1e-4  # of a parameter, for a derivative

ESR = "esr"  # the cause of resistances in series with capacitors
# Times the corner, where spectra show ESR; the covariance holds noise of these frequencies too.
SERIES = (128.0, 1024.0, 8192.0, 65536.0)
FLOOR = 1e-7  # relative error of an exact datum: above that of ngspice, below any other
SPECTRAL = {"capacitive": (0.25, 0.5, 1.0, 2.0, 4.0, 16.0), "resistive": (0.05, 0.25, 1.0, 4.0, 16.0)}


@dataclass(frozen=True, eq=False)
class RecordEvidence:
    """Covariances that one record is to show: the circuit, and the lower factor (q, q) [V²] of the law of the data.

    `bias` (n, n) [V²] is added to every covariance of the model, `discrepancy` (draws, q) holds the drawn
    discrepancies of the whitened data, `readout` says which n parameters, the last ones, are gains of the readout.
    """

    half: Half
    factor: np.ndarray
    bias: np.ndarray
    discrepancy: np.ndarray
    readout: slice | None = None

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation (q,) of the independent errors of the data."""
        return np.ones(len(self.factor))

    def covariances(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return covariances (t, n, n) [V²] of the circuit at θ, and derivatives by the parts (t, n, n, parts)."""
        raise NotImplementedError

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the data (q,) that the model gives at θ, and their derivatives (q, parameters)."""
        C, J = self.covariances(theta)
        if self.readout is not None:
            r = theta[self.readout]
            across = np.outer(r, r)
            own = np.eye(len(r)) / r
            gains = (C * across)[..., None] * (own[:, None] + own)
            J = np.concatenate([J[..., : self.readout.start] * across[..., None], gains], axis=-1)
            C = C * across
        return self.whitened(_taken(C + self.bias)), self.whitened(_taken(J))

    def data(self, covariances: np.ndarray) -> np.ndarray:
        """Return the data (q,) of measured covariances, (t, n, n) or one (n, n) [V²]."""
        return self.whitened(_taken(covariances.reshape(-1, *covariances.shape[-2:])))

    def whitened(self, entries: np.ndarray) -> np.ndarray:
        """Return entries (q, …) in independent units of their errors."""
        return solve_triangular(self.factor, entries, lower=True)


@dataclass(frozen=True, eq=False)
class CovarianceEvidence(RecordEvidence):
    """A record of which the covariance of the readings is known: one matrix, its upper triangle the q data."""

    def covariances(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the covariance (1, n, n) [V²] at θ, and its derivatives (1, n, n, parameters)."""
        S, J = covariance_and_slopes(self.half, theta)
        return S[None], J[None]


@dataclass(frozen=True, eq=False, kw_only=True)
class LaggedEvidence(RecordEvidence):
    """A record of which covariances are known at several lags (t,) [s], the first of them 0.

    `slopes` (t, n, n, parts) are the derivatives of the nominal board.
    """

    lags: tuple[float, ...]
    slopes: np.ndarray

    def covariances(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the covariances (t, n, n) [V²] at θ, and the derivatives of the nominal board."""
        return lags_of(half_circuit(self.half, theta), self.lags), self.slopes


def lagged_evidence(
    model: PairModel,
    program: Program,
    period: float,
    lags: Sequence[int],
    pairs: Sequence[np.ndarray],
    draws: DrawnPairs,
    readout: slice | None = None,
) -> LaggedEvidence:
    """Return the evidence of a record of a program, readings every `period` [s], at whole `lags`, the first of them 0.

    `pairs` holds for every lag τ the counts (…,) of times t, with y(t + τ) y(t) taken, that are 0, 1, 2, … apart.
    """
    half, times = half_of(model, program), tuple(lag * period for lag in lags)
    count = len(model.names) if readout is None else readout.start
    ones = np.ones(len(model.names))
    nominal = half_circuit(half, ones)
    rho = lagged_covariances(nominal, period, held=False)
    moved = [
        [lags_of(half_circuit(half, ones + sign * e), times) for sign in (1, -1)]
        for e in STEP * np.eye(len(ones))[:count]
    ]
    factor = np.linalg.cholesky(lagged_law(rho, lags, pairs))
    blank = LaggedEvidence(
        half,
        factor,
        -mean_covariance(rho, pairs[0]),
        np.zeros((0, len(factor))),
        readout,
        lags=times,
        slopes=np.moveaxis(np.array([up - down for up, down in moved]), 0, -1) / (2 * STEP),
    )
    left = _taken(np.moveaxis(lagged_discrepancies(half, draws, times), 1, -1))
    return replace(blank, discrepancy=blank.whitened(left).T)


def lags_of(circuit: Circuit, lags: Sequence[float]) -> np.ndarray:
    """Return ρ (t, n, n) [V²] at lags (t,) [s] under white noise."""
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    A, covariance = drift(circuit), stationary_covariance(circuit)
    unit = np.sqrt(np.diag(covariance))
    A, state = A * unit / unit[:, None], (covariance / unit[:, None]) @ H.T
    return np.array([(H * unit) @ expm(-A * lag) @ state for lag in lags])


def lagged_law(rho: np.ndarray, lags: Sequence[int], pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the covariance (q, q) [V⁴] of the data: the upper triangle of C at lag 0, all its entries at other lags.

    ρ (…, n, n) at 0, 1, 2, … periods; `pairs` as in `lagged_evidence`.
    """
    n, most = rho.shape[1], max(lags)
    both = np.concatenate([np.swapaxes(rho[:0:-1], 1, 2), rho])  # u = -far … far
    far = len(rho) - 1
    padded = np.pad(both, ((2 * most, 2 * most), (0, 0), (0, 0)))

    def at(shift: int) -> np.ndarray:
        """ρ(u + shift), u = -far - most … far + most."""
        return padded[most + shift : most + shift + 2 * (far + most) + 1].reshape(-1, n * n)

    blocks = []
    for a, own in zip(lags, pairs, strict=True):
        row = []
        for b, other in zip(lags, pairs, strict=True):
            weight = _counts(np.minimum(*_same(own, other)), far + most)[:, None] / own[0] / other[0]
            one = ((at(a - b) * weight).T @ at(0)).reshape(n, n, n, n).transpose(0, 2, 1, 3)  # ik, jl
            two = ((at(a) * weight).T @ at(-b)).reshape(n, n, n, n).transpose(0, 2, 3, 1)  # il, jk
            row.append(_rows(one + two, a, b))
        blocks.append(row)
    V = np.block(blocks)
    return (V + V.T) / 2


def _rows(block: np.ndarray, a: int, b: int) -> np.ndarray:
    """Return the entries of a block (n, n, n, n) that are data at lags a and b, as a matrix."""
    n = len(block)
    own, other = (np.triu_indices(n) if lag == 0 else tuple(np.indices((n, n)).reshape(2, -1)) for lag in (a, b))
    return block[own][:, other[0], other[1]]


def _taken(covariances: np.ndarray) -> np.ndarray:
    """Return the data (q, …) in covariances (t, n, n, …), the first of them at lag 0."""
    n = covariances.shape[1]
    every = covariances[1:].reshape((len(covariances) - 1) * n * n, *covariances.shape[3:])
    return np.concatenate([covariances[0][np.triu_indices(n)], every])


def _same(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = min(len(one), len(two))
    return one[:size], two[:size]


def _counts(counts: np.ndarray, far: int) -> np.ndarray:
    """Return c(u), u = -far … far, zero where nothing was counted."""
    half = np.pad(counts[: far + 1].astype(float), (0, max(far + 1 - len(counts), 0)))
    return np.concatenate([half[:0:-1], half])


def covariance_evidence(
    model: PairModel,
    program: Program,
    law: EstimateLaw,
    draws: DrawnPairs,
    readout: slice | None = None,
) -> CovarianceEvidence:
    """Return the evidence of a record of a program, with the law `law` of its covariance at nominal parts."""
    half = half_of(model, program)
    white = reading_covariance(half_circuit(half, np.ones(len(model.names))))
    factor = np.linalg.cholesky(law.covariance)
    blank = CovarianceEvidence(half, factor, law.mean - white, np.zeros((0, len(factor))), readout)
    left = delayed_discrepancies(half, draws)[0][(slice(None), *np.triu_indices(len(white)))]
    return replace(blank, discrepancy=blank.whitened(left.T).T)


def with_readout(model: PairModel, tolerance: float) -> tuple[PairModel, slice]:
    """Return the model with a readout gain a cell, uniform within ±tolerance before any data, and their slice."""
    n = len(model.board.cells)
    names = tuple(f"readout_{i}" for i in range(1, n + 1))
    known = len(model.names)
    wider = replace(
        model,
        names=(*model.names, *names),
        spreads=np.concatenate([model.spreads, np.full(n, tolerance / np.sqrt(3))]),
        exponents=np.pad(model.exponents, ((0, 0), (0, n))),
        powers=np.pad(model.powers, ((0, 0), (0, n))),
    )
    return wider, slice(known, known + n)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Spectra under one program: circuit, frequencies (f,) [Hz], and drawn discrepancies (draws, data)."""

    half: Half
    frequencies: np.ndarray
    columns: bool
    discrepancy: np.ndarray

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation (data,) of the independent errors of the data."""
        return np.full(self.discrepancy.shape[1], FLOOR)

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the data (data,) that the model gives at θ, and their derivatives (data, parameters)."""
        return expected_and_slopes(self, theta)


def evidence_frequencies(board: Board) -> np.ndarray:
    """Return the frequencies (f,) [Hz] of spectra: around the resonance or corner of the unit, and where ESR acts."""
    inductance = next((part.nominal for part in board.parts if part.kind == "L"), None)
    corner = 1 / np.sqrt(inductance * board.capacitance) if inductance else board.unit / board.capacitance
    beyond = SERIES if any(part.cause == ESR for part in board.parts) else ()
    return np.array((*SPECTRAL[board.coupling], *beyond)) * corner / (2 * np.pi)


def expected(evidence: Evidence, theta: np.ndarray) -> np.ndarray:
    """Return the data (data,) that the model gives at θ."""
    data = [flattened(spectra(evidence.half, theta, evidence.frequencies)[None])[0]]
    if evidence.columns:
        data.append(flattened(impedance(evidence.half, theta, np.zeros(1))[None])[0])
    return np.concatenate(data)


def expected_and_slopes(evidence: Evidence, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `expected` and its derivatives (data, parameters)."""
    found = [spectra_and_slopes(evidence.half, theta, evidence.frequencies)]
    if evidence.columns:
        found.append(impedance_slopes(evidence.half, theta, np.zeros(1)))
    data = np.concatenate([flattened(S[None])[0] for S, _ in found])
    return data, np.concatenate([_flattened_slopes(S, J) for S, J in found])


def flattened(S: np.ndarray) -> np.ndarray:
    """Return matrices (draws, f, n, n) as real numbers (draws, data)."""
    a, b = np.triu_indices(S.shape[-1], 1)
    power = np.einsum("dfii->dfi", S).real
    R = S[..., a, b] / np.sqrt(power[..., a] * power[..., b])
    return np.concatenate([np.log(power), R.real, R.imag], axis=2).reshape(len(S), -1)


def _flattened_slopes(S: np.ndarray, J: np.ndarray) -> np.ndarray:
    """Return derivatives (data, parameters) of `flattened`, from derivatives J (f, n, n, parameters) of S."""
    a, b = np.triu_indices(S.shape[-1], 1)
    power = np.einsum("fii->fi", S).real
    own = np.einsum("fiip->fip", J).real / power[..., None]
    scale = np.sqrt(power[:, a] * power[:, b])
    R = S[:, a, b] / scale
    slopes = J[:, a, b] / scale[..., None] - R[..., None] * (own[:, a] + own[:, b]) / 2
    return np.concatenate([own, slopes.real, slopes.imag], axis=1).reshape(-1, J.shape[-1])
