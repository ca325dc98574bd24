"""Law of an estimate: mean and scatter of the sample covariance of correlated readings, and χ² against this law.

For Gaussian readings with the lagged covariances ρ(τ) of a circuit, c(τ) pairs of N readings being τ apart (Isserlis),

    <S_ij> = ρ_ij(0),   Cov(S_ij, S_kl) = (1/N²) Σ_τ c(|τ|) [ρ_ik(τ) ρ_jl(τ) + ρ_il(τ) ρ_jk(τ)].
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from circuits.nodal import Circuit
from circuits.ou import lagged_covariances

LONG_RECORD = 100.0  # effective samples from which the joint χ² keeps its false-alarm rate


@dataclass(frozen=True, eq=False)
class EstimateLaw:
    """Law of a sample covariance of `samples` readings: mean (n, n), V², and covariance (q, q), V⁴, of its triangle."""

    mean: np.ndarray
    covariance: np.ndarray
    samples: int


def estimate_law(circuit: Circuit, period: float, samples: int, record: int | None = None) -> EstimateLaw:
    """Law of the sample covariance of `samples` readings taken every `period` under held noise.

    The samples come in independent records of `record` readings each (default: one record).
    """
    return law_of_records(lagged_covariances(circuit, period), record_lengths(samples, record))


def law_of_records(rho: np.ndarray, records: np.ndarray) -> EstimateLaw:
    """Law of the sample covariance of independent records of these lengths, for lagged covariances ρ (lags, n, n)."""
    return law_of_pairs(rho, pair_counts(len(rho), records))


def record_lengths(samples: int, record: int | None = None) -> np.ndarray:
    """Lengths of independent records of `samples` readings: `record` each (default: one record), and the rest."""
    whole, rest = divmod(samples, record or samples)
    return np.array([record or samples] * whole + [rest])


def pair_counts(lags: int, records: np.ndarray, lag: int = 0) -> np.ndarray:
    """Counts (lags,) of pairs 0, 1, 2, … periods apart in independent records of these lengths (records,).

    The pairs are of readings, or, for a `lag`, of products of two readings `lag` periods apart: `lag` fewer a record.
    """
    lengths, counts = np.unique(np.clip(records - lag, 0, None), return_counts=True)
    return (np.clip(lengths - np.arange(lags)[:, None], 0, None) * counts).sum(axis=1).astype(float)


def law_of_pairs(rho: np.ndarray, pairs: np.ndarray) -> EstimateLaw:
    """Law of the sample covariance of readings with these counts of pairs (lags,) 0, 1, 2, … periods apart.

    The record may have gaps. pairs[0] is the number of readings. Lags that ρ (lags, n, n) or `pairs` lacks count zero.
    """
    n, samples = rho.shape[1], int(pairs[0])
    rho, weight = _weighted(rho, pairs)
    flat = rho.reshape(len(rho), n * n)
    # τ and -τ: ρ(-τ) = ρ(τ)ᵀ.
    turned = rho.transpose(0, 2, 1).reshape(len(rho), n * n)
    product = ((flat * weight[:, None]).T @ flat + (turned * weight[:, None]).T @ turned) / 2
    R = product.reshape(n, n, n, n)  # R[i, k, j, l] = Σ ρ_ik ρ_jl
    full = R.transpose(0, 2, 1, 3) + R.transpose(0, 2, 3, 1)  # [i, j, k, l]
    i, j = np.triu_indices(n)
    return EstimateLaw(rho[0], full[i, j][:, i, j] / samples, samples)


def mean_covariance(rho: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """V = (1/N²) Σ_τ c(|τ|) ρ(τ), (n, n), V²: covariance of the sample mean of readings with these `pairs` (lags,)."""
    rho, weight = _weighted(rho, pairs)
    V = np.tensordot(weight, rho, 1) / pairs[0]
    return (V + V.T) / 2


def law_about_mean(rho: np.ndarray, pairs: np.ndarray) -> EstimateLaw:
    """Law of the sample covariance (1/N) Σ (y - ȳ)(y - ȳ)ᵀ about the sample mean ȳ, for pair counts (lags,).

    The mean of S is ρ(0) - V exactly. The covariance of S is that of `law_of_pairs` less V_ik V_jl + V_il V_jk, with N'
    effective samples a few parts in N'. Neglected: readings at the ends of a stretch without gaps are correlated less
    with ȳ than the others, which changes the covariance by half a part in N' at most.
    """
    law, V = law_of_pairs(rho, pairs), mean_covariance(rho, pairs)
    i, j = np.triu_indices(len(V))
    lost = V[np.ix_(i, i)] * V[np.ix_(j, j)] + V[np.ix_(i, j)] * V[np.ix_(j, i)]
    return EstimateLaw(law.mean - V, law.covariance - lost, law.samples)


def effective_samples(law: EstimateLaw) -> float:
    """Independent samples that the slowest direction u of the estimate is worth: min 2 (uᵀ Σ u)² / Var(uᵀ S u)."""
    values, U = np.linalg.eigh(law.mean)
    i, j = np.triu_indices(len(values))
    weight = np.where(i == j, 1.0, 2.0)[:, None] * U[i] * U[j]  # (q, n): uᵀ S u from the upper triangle of S
    variance = np.einsum("qa,qr,ra->a", weight, law.covariance, weight, optimize=True)
    return float((2 * values**2 / variance).min())


def joint_chi_square(estimate: np.ndarray, law: EstimateLaw) -> tuple[float, int, float | None]:
    """χ² of all distinct entries of a sample covariance against its law: (value, degrees of freedom, p).

    In short records a sample covariance S is far from Gaussian; the logarithm of S is close to Gaussian. With
    W = L⁻¹ S L⁻ᵀ, L Lᵀ = <S>, and E = W - I, the statistic is the χ² of log W + <E²>/2, whose mean is zero to second
    order, under the covariance of E. Below LONG_RECORD effective samples p is None: the logarithm is not Gaussian
    enough either.
    """
    n = len(estimate)
    i, j = np.triu_indices(n)
    if effective_samples(law) < LONG_RECORD:
        return float("nan"), len(i), None
    whiten = np.linalg.inv(np.linalg.cholesky(law.mean))
    spread = np.einsum("ia,jb,kc,ld,abcd->ijkl", *[whiten] * 4, _all_entries(law.covariance, n), optimize=True)
    values, U = np.linalg.eigh(whiten @ estimate @ whiten.T)
    deviation = ((U * np.log(values)) @ U.T + np.einsum("abbc->ac", spread) / 2)[i, j]
    value = float(deviation @ np.linalg.solve(spread[i, j][:, i, j], deviation))
    return value, len(i), float(special.chdtrc(len(i), value))


def _weighted(rho: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ρ at the lags that ρ and `pairs` both have, and the weights c(|τ|)/N, doubled for τ and -τ."""
    lags = min(len(rho), len(pairs))
    return rho[:lags], np.where(np.arange(lags) == 0, 1.0, 2.0) * pairs[:lags] / pairs[0]


def _all_entries(covariance: np.ndarray, n: int) -> np.ndarray:
    """Covariance of all entries, (n, n, n, n), from that of the upper triangle (q, q)."""
    index = np.zeros((n, n), dtype=int)
    i, j = np.triu_indices(n)
    index[i, j] = index[j, i] = np.arange(len(i))
    return covariance[index.reshape(-1, 1), index.reshape(1, -1)].reshape(n, n, n, n)
