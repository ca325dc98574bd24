"""The law of readings an integrator takes with one trapezoidal step for every sample, and the currents it is fed.

For dx = -A x dt + B i dt (x = (v, φ) of circuits.ou) the trapezoidal rule of step h is

    (I + hA/2) x_{k+1} = (I - hA/2) x_k + h B (i_k + i_{k+1})/2,

so what drives it is the mean of neighbouring currents. Independent currents i would lose fast modes; their mean is
independent itself if they are made of independent g_k, Cov(g_k) = 2Q/h, by

    i_{k+1} = 2 g_{k+1} - i_k.

With D = B 2Q Bᵀ the covariance of the grid points then obeys (I + hA/2) Σ (I + hA/2)ᵀ = (I - hA/2) Σ (I - hA/2)ᵀ + h D,
in which all but A Σ + Σ Aᵀ = D cancels: it is that under white noise, for every circuit and every h. With
F = (I + hA/2)⁻¹ (I - hA/2) the lagged ones are ρ(τ) = H F^τ Σ Hᵀ. (With i_{k+1} = (1 + a) g_{k+1} - a i_k, a < 1, it
is kT (C + r hG/2 + r² h²Γ/4)⁻¹ on a board of equal temperatures, r = (1 - a)/(1 + a): a bias for nothing.)

The currents alternate in sign and grow as 2 sqrt(k) times g, which the mean, and so every reading, never sees. A mode
much faster than h becomes one that alternates too and is slow to die out: `memory` says how slow.
"""

import numpy as np

from circuits.nodal import Circuit
from circuits.ou import MEMORY, drift, stationary_covariance
from circuits.statistics.estimators import EstimateLaw, law_of_records

UNIT = 4096  # steps of the whole numbers g in one standard deviation: their variance is off by 5e-9


def stepped_lagged_covariances(circuit: Circuit, period: float) -> np.ndarray:
    """ρ(τ) = <y(t + τ) y(t)ᵀ>, τ = 0, h, 2h, … until it has died out: (lags, n, n), V²; h = `period`."""
    transition, unit = _transition(circuit, period)
    H = np.pad(circuit.readout, ((0, 0), (0, circuit.coils.shape[1])))
    state = stationary_covariance(circuit) @ H.T / unit[:, None]
    lags = int(np.ceil(MEMORY * memory(circuit, period))) + 1
    rho = np.empty((lags, len(H), len(H)))
    for k in range(lags):
        rho[k] = H @ state
        state = transition @ state
    return rho


def stepped_estimate_law(circuit: Circuit, period: float, samples: int, record: int | None = None) -> EstimateLaw:
    """Law of the sample covariance of `samples` readings in independent records of `record` each (default: one)."""
    whole, rest = divmod(samples, record or samples)
    return law_of_records(stepped_lagged_covariances(circuit, period), np.array([record or samples] * whole + [rest]))


def memory(circuit: Circuit, period: float) -> float:
    """Steps in which the slowest mode of F falls to 1/e; a mode s of A becomes (1 - hs/2)/(1 + hs/2)."""
    half = np.linalg.eigvals(drift(circuit)) * period / 2
    # |1 - z|² / |1 + z|² = 1 - 4 Re z / |1 + z|²: for modes far from h the difference from 1 is below rounding.
    return float((-2 / np.log1p(-4 * half.real / np.abs(1 + half) ** 2)).max())


def alternating_currents(rng: np.random.Generator, steps: int, channels: int) -> np.ndarray:
    """i_0, i_1, … of so many independent channels, (steps, channels), in whole numbers of σ/UNIT, σ² = Var(g)."""
    g = np.rint(rng.standard_normal((steps, channels)) * UNIT).astype(np.int64)
    sign = np.where(np.arange(steps) % 2, -1, 1)[:, None]
    return sign * np.cumsum(2 * sign * g, axis=0)


def _transition(circuit: Circuit, period: float) -> tuple[np.ndarray, np.ndarray]:
    """F for the state in units (m + l,) that make it dimensionless in time: fluxes in volt times `period`."""
    m, coils = circuit.coils.shape
    unit = np.concatenate([np.ones(m), np.full(coils, period)])
    half = drift(circuit) * (unit / unit[:, None]) * (period / 2)
    eye = np.eye(len(unit))
    return np.linalg.solve(eye + half, eye - half), unit
