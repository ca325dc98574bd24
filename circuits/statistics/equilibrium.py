"""Tests of a record: Gaussian readings, and detailed balance as far as the law of the copy has it.

Gaussian: the excess kurtosis of every reading, k_i = <y_i⁴>/<y_i²>² - 3, is to first order the mean of the Hermite
polynomial He₄ of y_i/σ_i, and

    Cov(k_i, k_j) = (24/N²) Σ_τ c(τ) r_ij(τ)⁴,   r_ij = ρ_ij/(σ_i σ_j),   c(τ) pairs of readings τ apart.

Detailed balance: at equal temperatures no probability current flows, and the lagged covariance C(L) = <y(t + L) y(t)ᵀ>
is symmetric. At unequal temperatures the antisymmetric part a(L) = (C - Cᵀ)/2 is not zero; its expected value is
(ρ(L) - ρ(L)ᵀ)/2, ρ being the lagged covariance of the copy, and its scatter, by Isserlis' theorem,

    Cov(C_ij, C_kl) = (1/N²) Σ_τ c(τ) [ρ_ik(τ) ρ_jl(τ) + ρ_il(τ + L) ρ_jk(τ - L)].
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from circuits.statistics.estimators import pair_counts

LONG_RECORD = 400.0  # effective samples in the slowest direction from which both χ² keep their false-alarm rates


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over a record: Σ y(t + lag) y(t)ᵀ (n, n) [V²] over `pairs` pairs, Σ y⁴ (n,) [V⁴] over all `readings`."""

    lag: int
    pairs: int
    lagged: np.ndarray
    readings: int
    fourth: np.ndarray

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of two records of the same lag."""
        return Sums(
            self.lag,
            self.pairs + other.pairs,
            self.lagged + other.lagged,
            self.readings + other.readings,
            self.fourth + other.fourth,
        )


@dataclass(frozen=True)
class Equilibrium:
    """Results of both tests on one record; `lag` is L in sampling periods.

    `kurtosis` is the excess kurtosis of largest size, `kurtosis_p` the p of the χ² of all of them (None: the record is
    too short). `asymmetry` is ||a(L)||/||<y yᵀ>||, `predicted_asymmetry` the same by the law of the copy,
    `expected_asymmetry` the root mean square of `asymmetry` with the noise of the estimate, `asymmetry_p` the p of the
    χ² of a(L) against the law (None: one cell, or the record is too short).
    """

    lag: int
    kurtosis: float
    kurtosis_p: float | None
    asymmetry: float
    predicted_asymmetry: float
    expected_asymmetry: float
    asymmetry_p: float | None


def sums_of(y: np.ndarray, lag: int) -> Sums:
    """Sums of one record y (readings, n) [V]."""
    late, early = y[lag:], y[: len(y) - lag]
    return Sums(lag, len(early), late.T @ early, len(y), (y**4).sum(axis=0))


def pairs_of_records(lags: int, lag: int, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (lags,) of pairs of readings, and of pairs of products `lag` apart, in records of these lengths."""
    return pair_counts(lags, records), pair_counts(lags, records, lag)


def judge_equilibrium(
    sums: Sums,
    covariance: np.ndarray,
    rho: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    effective: float = np.inf,
) -> Equilibrium:
    """Test a record of this sample covariance (n, n) [V²] by the lagged covariances ρ (lags, n, n) [V²] of its copy.

    `pairs` are the counts that `pairs_of_records` gives, fewer if the record has gaps. The record is worth `effective`
    independent readings in the slowest direction; below LONG_RECORD the p are None.
    """
    of_readings, of_pairs = (_fitted(counts, len(rho)) for counts in pairs)
    kurtosis, kurtosis_p = _gaussian(sums, covariance, rho, of_readings)
    long = effective >= LONG_RECORD
    L, n = sums.lag, len(covariance)
    known = rho[L] if len(rho) > L else np.zeros((n, n))
    predicted, found = (known - known.T) / 2, (sums.lagged - sums.lagged.T) / 2 / sums.pairs
    scale = np.linalg.norm(covariance)
    V = _antisymmetric_covariance(rho, L, of_pairs)
    i, j = np.triu_indices(n, 1)
    deviation = (found - predicted)[i, j]
    p = float(special.chdtrc(len(i), deviation @ np.linalg.solve(V, deviation))) if n > 1 and long else None
    return Equilibrium(
        L,
        kurtosis,
        kurtosis_p if long else None,
        float(np.linalg.norm(found) / scale),
        float(np.linalg.norm(predicted) / scale),
        float(np.sqrt(np.sum(predicted**2) + 2 * np.trace(V)) / scale),
        p,
    )


def _gaussian(sums: Sums, covariance: np.ndarray, rho: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """Excess kurtosis of largest size, and the p of the χ² of all excess kurtoses."""
    sigma = np.sqrt(np.diag(rho[0]))
    r = rho / (sigma[:, None] * sigma)
    weight = counts * np.where(np.arange(len(rho)) == 0, 1.0, 2.0) / counts[0] ** 2
    # <y_i²> is off by a_i, the mean of He₂, Var(a_i) = 2 Σ c r²/N²; to second order this lowers k_i by 3 a_i².
    second = 2 * np.einsum("t,tii->i", weight, r**2)
    excess = sums.fourth / sums.readings / np.diag(covariance) ** 2 - 3 + 3 * second
    worst = float(excess[np.abs(excess).argmax()])
    if (2 / second).min() < LONG_RECORD:
        return worst, None
    V = 24 * np.einsum("t,tij->ij", weight, (r**4 + np.swapaxes(r, 1, 2) ** 4) / 2)
    deviation = np.sqrt(np.diag(V))
    z = _normal(excess / deviation, 24 / np.diag(V))
    R = V / deviation / deviation[:, None]
    return worst, float(special.chdtrc(len(z), z @ np.linalg.solve(R, z)))


def _normal(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Normal deviates of kurtoses x of `n` independent samples, x in standard deviations (Anscombe and Glynn 1983).

    The law of a kurtosis has a long tail to the right; the law of its cube root is close to Gaussian.
    """
    skewness = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * np.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    A = 6 + 8 / skewness * (2 / skewness + np.sqrt(1 + 4 / skewness**2))
    return (1 - 2 / (9 * A) - np.cbrt((1 - 2 / A) / (1 + x * np.sqrt(2 / (A - 4))))) / np.sqrt(2 / (9 * A))


def _antisymmetric_covariance(rho: np.ndarray, lag: int, counts: np.ndarray) -> np.ndarray:
    """Covariance of the upper triangle of a(L), (q, q)."""
    n = rho.shape[1]
    far = len(rho) - 1
    both = np.concatenate([np.swapaxes(rho[:0:-1], 1, 2), rho])  # ρ(τ), τ = -far … far
    padded = np.pad(both, ((lag, lag), (0, 0), (0, 0)))
    ahead, behind = padded[2 * lag :], padded[: len(both)]  # ρ(τ + L), ρ(τ - L)
    weight = np.concatenate([counts[:0:-1], counts])[:, None] / counts[0] ** 2
    i, j = np.triu_indices(n, 1)

    def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        flat = (first.reshape(-1, n * n) * weight).T @ second.reshape(-1, n * n)
        return flat.reshape(n, n, n, n)

    R = product(both, both).transpose(0, 2, 1, 3)  # [i, k, j, l] -> [i, j, k, l]
    R = R + product(ahead, behind).transpose(0, 2, 3, 1)  # ρ_il ρ_jk: [i, l, j, k] -> [i, j, k, l]
    R = (R - R.transpose(1, 0, 2, 3)) / 2
    R = (R - R.transpose(0, 1, 3, 2)) / 2
    return R[i, j][:, i, j] if far >= 0 else R[:0, :0]


def _fitted(counts: np.ndarray, lags: int) -> np.ndarray:
    """Counts of pairs cut or padded with zeros to this number of lags."""
    return np.pad(counts[:lags].astype(float), (0, max(lags - len(counts), 0)))
