"""What a record says of how a copy settles: its covariances at no lag and at another, with their joint law.

    C(τ) = (1/N_τ) Σ_t y(t + τ) y(t)ᵀ,   <C(τ)> = r_i r_j ρ_ij(τ) - V_ij,   ρ(τ) = H e^{-Aτ} Σ Hᵀ

about the mean of the readings, whose covariance is V. By Isserlis' theorem for a Gaussian process

    Cov(C_ij(τ), C_kl(σ)) = (1/N_τ N_σ) Σ_u c(u) [ρ_ik(u + τ - σ) ρ_jl(u) + ρ_il(u + τ) ρ_jk(u - σ)],

c(u) pairs of which are u apart. One covariance does not know A; two together do, inductances and losses with it. The
law is that of the nominal board, and so are the slopes by its parts, which differ from the copy's own by as much as
parts do: the minimum of a fit does not, for values are the copy's own at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import expm, solve_triangular

from circuits.board import Program
from circuits.calibration.discrepancy import Draws, lagged_leavings
from circuits.model.pairs import Half, PairModel, half_circuit, half_of
from circuits.nodal import Circuit
from circuits.ou import drift, lagged_covariances, stationary_covariance
from circuits.statistics.estimators import mean_covariance

STEP = 1e-4  # of a parameter, for a slope


@dataclass(frozen=True, eq=False)
class LaggedEvidence:
    """One record: its circuit, the lags (t,) [s], the lower factor of the law (q, q) [V²], and leavings (draws, q).

    `slopes` (t, n, n, parts) are of the nominal board, `bias` (n, n) [V²] is added to every covariance; `readout` are
    the n parameters that are gains of the readout, after those of parts.
    """

    half: Half
    lags: tuple[float, ...]
    slopes: np.ndarray
    factor: np.ndarray
    bias: np.ndarray
    leavings: np.ndarray
    readout: slice | None = None

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation (q,) of the independent errors of the data."""
        return np.ones(len(self.factor))

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data (q,) that the model gives at θ, and their derivatives (q, parameters)."""
        n = self.slopes.shape[1]
        rho, J = lags_of(half_circuit(self.half, theta), self.lags), self.slopes
        if self.readout is not None:
            r = theta[self.readout]
            across = np.outer(r, r)
            own = np.eye(n) / r
            gains = (rho * across)[..., None] * (own[:, None] + own)
            J = np.concatenate([J[..., : self.readout.start] * across[..., None], gains], axis=-1)
            rho = rho * across
        return self.whitened(_taken(rho + self.bias)), self.whitened(_taken(J))

    def data(self, covariances: np.ndarray) -> np.ndarray:
        """The data (q,) of measured covariances (t, n, n) [V²]."""
        return self.whitened(_taken(covariances))

    def whitened(self, entries: np.ndarray) -> np.ndarray:
        """Entries (q, …), in independent units of their errors."""
        return solve_triangular(self.factor, entries, lower=True)


def lagged_evidence(
    model: PairModel,
    program: Program,
    period: float,
    lags: Sequence[int],
    pairs: Sequence[np.ndarray],
    draws: Draws,
    readout: slice | None = None,
) -> LaggedEvidence:
    """What to expect of a record of a program with readings every `period` [s], at whole `lags`, the first of them 0.

    `pairs` are for every lag τ the counts (…,) of how many t, of which y(t + τ) y(t) was taken, are 0, 1, 2, … apart.
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
        times,
        np.moveaxis(np.array([up - down for up, down in moved]), 0, -1) / (2 * STEP),
        factor,
        -mean_covariance(rho, pairs[0]),
        np.zeros((0, len(factor))),
        readout,
    )
    left = _taken(np.moveaxis(lagged_leavings(half, draws, times), 1, -1))
    return replace(blank, leavings=blank.whitened(left).T)


def lags_of(circuit: Circuit, lags: Sequence[float]) -> np.ndarray:
    """ρ (t, n, n) [V²] at lags (t,) [s] under white noise."""
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    A, covariance = drift(circuit), stationary_covariance(circuit)
    unit = np.sqrt(np.diag(covariance))
    A, state = A * unit / unit[:, None], (covariance / unit[:, None]) @ H.T
    return np.array([(H * unit) @ expm(-A * lag) @ state for lag in lags])


def lagged_law(rho: np.ndarray, lags: Sequence[int], pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Covariance (q, q) [V⁴] of the entries of C at whole lags: the upper triangle at lag 0, all of them at others.

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
    """Entries of a block (n, n, n, n) that are data at lags a and b, as a matrix."""
    n = len(block)
    own, other = (np.triu_indices(n) if lag == 0 else tuple(np.indices((n, n)).reshape(2, -1)) for lag in (a, b))
    return block[own][:, other[0], other[1]]


def _taken(covariances: np.ndarray) -> np.ndarray:
    """The data (q, …) in covariances (t, n, n, …), the first of them at lag 0."""
    n = covariances.shape[1]
    every = covariances[1:].reshape((len(covariances) - 1) * n * n, *covariances.shape[3:])
    return np.concatenate([covariances[0][np.triu_indices(n)], every])


def _same(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = min(len(one), len(two))
    return one[:size], two[:size]


def _counts(counts: np.ndarray, far: int) -> np.ndarray:
    """c(u), u = -far … far, zero where nothing was counted."""
    half = np.pad(counts[: far + 1].astype(float), (0, max(far + 1 - len(counts), 0)))
    return np.concatenate([half[:0:-1], half])
