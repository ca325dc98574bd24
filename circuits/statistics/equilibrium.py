"""Is a record Gaussian, and as far out of equilibrium as its copy should be?

Gaussian: the excess kurtosis of every reading, k_i = <y_i⁴>/<y_i²>² - 3, is to first order the mean of the Hermite
polynomial He₄ of y_i/σ_i, and

    Cov(k_i, k_j) = (24/N²) Σ_τ c(τ) r_ij(τ)⁴,   r_ij = ρ_ij/(σ_i σ_j),   c(τ) pairs of readings τ apart.

Detailed balance: at equal temperatures nothing flows, and the lagged covariance C(L) = <y(t + L) y(t)ᵀ> is symmetric.
Unequal ones leave a part a(L) = (C - Cᵀ)/2 that is known, ρ(L) being the copy's own; by Isserlis' theorem

    Cov(C_ij, C_kl) = (1/N²) Σ_τ c(τ) [ρ_ik(τ) ρ_jl(τ) + ρ_il(τ + L) ρ_jk(τ - L)].
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

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
    """`kurtosis`: largest excess in size, `kurtosis_p` that of the χ² of all readings (None: record too short).

    `asymmetry` is ||a(L)||/||<y yᵀ>||, `predicted_asymmetry` that of the copy's law, `expected_asymmetry` its root mean
    square with the noise of the estimate, `asymmetry_p` that of the χ² of a(L) against the law (None: one cell, or the
    record is too short).
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
    """How many readings, and how many pairs `lag` apart, are 0, 1, … `lags` - 1 apart, in records of such lengths."""
    return _pairs(lags, 0, records), _pairs(lags, lag, records)


def judge_equilibrium(
    sums: Sums,
    covariance: np.ndarray,
    rho: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    effective: float = np.inf,
) -> Equilibrium:
    """Judge a record of this sample covariance (n, n) by the lagged covariances ρ (lags, n, n) of its copy.

    `pairs` are those of `pairs_of_records`, which gaps may change. The record is worth `effective` independent readings
    in the slowest direction; below LONG_RECORD there is no p.
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
    """Largest excess kurtosis, and p of all of them."""
    sigma = np.sqrt(np.diag(rho[0]))
    r = rho / (sigma[:, None] * sigma)
    weight = counts * np.where(np.arange(len(rho)) == 0, 1.0, 2.0) / counts[0] ** 2
    # <y²> is off by a_i = He₂'s mean, Var(a_i) = 2 Σ c r²/N²; in second order it takes 3 a² from the kurtosis.
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
    """Kurtoses x of `n` independent samples, in their standard deviations, as normal ones (Anscombe and Glynn 1983).

    The law of a kurtosis has a long tail to the right; that of the cube root is close to a bell.
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
    """Counts of so many lags; of those that were not counted there are none."""
    return np.pad(counts[:lags].astype(float), (0, max(lags - len(counts), 0)))


def _pairs(lags: int, lost: int, records: np.ndarray) -> np.ndarray:
    """How many pairs of entries are 0, 1, 2, … apart if every record has `lost` entries less than readings."""
    lengths, counts = np.unique(np.clip(records - lost, 0, None), return_counts=True)
    return (np.clip(lengths - np.arange(lags)[:, None], 0, None) * counts).sum(axis=1).astype(float)
