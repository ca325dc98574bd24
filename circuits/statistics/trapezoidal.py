"""Law of readings taken with one trapezoidal step of the integrator per sample, and noise currents suited to it.

For dx = -A x dt + B i dt (x = (v, φ) of circuits.ou) the trapezoidal rule of step h is

    (I + hA/2) x_{k+1} = (I - hA/2) x_k + h B (i_k + i_{k+1})/2,

so the circuit is driven by means of neighbouring currents. Means of independent currents are correlated, which takes
power from fast modes. The means are independent if the currents are made of independent g_k, Cov(g_k) = 2Q/h, by

    i_{k+1} = 2 g_{k+1} - i_k.

With D = B 2Q Bᵀ the covariance Σ at the grid points then obeys

    (I + hA/2) Σ (I + hA/2)ᵀ = (I - hA/2) Σ (I - hA/2)ᵀ + h D,

which reduces to A Σ + Σ Aᵀ = D: Σ is the covariance under white noise, for every circuit and every h. With
F = (I + hA/2)⁻¹ (I - hA/2) the lagged covariances are ρ(τ) = H F^τ Σ Hᵀ. (The choice i_{k+1} = (1 + a) g_{k+1} - a i_k
with a < 1 would be biased: Σ = kT (C + r hG/2 + r² h²Γ/4)⁻¹ on a board of equal temperatures, r = (1 - a)/(1 + a).)

The currents alternate in sign and grow as 2 sqrt(k) times g; this part cancels in the means, and so in every reading.
A mode much faster than h becomes a slowly decaying alternating mode, whose decay time is `memory`.
"""

import numpy as np

from circuits.nodal import Circuit
from circuits.ou import MEMORY, drift, stationary_covariance

UNIT = 4096  # steps of the integers g in one standard deviation: rounding changes their variance by 5e-9, relative


def stepped_lagged_covariances(circuit: Circuit, period: float) -> np.ndarray:
    """ρ(τ) = <y(t + τ) y(t)ᵀ> at τ = 0, h, 2h, … until ρ is negligible: (lags, n, n), V²; h = `period`."""
    transition, unit = _transition(circuit, period)
    H = np.pad(circuit.readout, ((0, 0), (0, circuit.coils.shape[1])))
    state = stationary_covariance(circuit) @ H.T / unit[:, None]
    lags = int(np.ceil(MEMORY * memory(circuit, period))) + 1
    rho = np.empty((lags, len(H), len(H)))
    for k in range(lags):
        rho[k] = H @ state
        state = transition @ state
    return rho


def memory(circuit: Circuit, period: float) -> float:
    """Steps in which the slowest mode of F falls to 1/e; an eigenvalue s of A becomes (1 - hs/2)/(1 + hs/2) of F."""
    half = np.linalg.eigvals(drift(circuit)) * period / 2
    # |1 - z|² / |1 + z|² = 1 - 4 Re z / |1 + z|²: for modes far from h the difference from 1 is below rounding.
    return float((-2 / np.log1p(-4 * half.real / np.abs(1 + half) ** 2)).max())


def alternating_currents(rng: np.random.Generator, steps: int, channels: int) -> np.ndarray:
    """Currents i_0, i_1, … of independent channels, (steps, channels), integers in units of σ/UNIT, σ² = Var(g)."""
    g = np.rint(rng.standard_normal((steps, channels)) * UNIT).astype(np.int64)
    sign = np.where(np.arange(steps) % 2, -1, 1)[:, None]
    return sign * np.cumsum(2 * sign * g, axis=0)


def _transition(circuit: Circuit, period: float) -> tuple[np.ndarray, np.ndarray]:
    """F, and the units (m + l,) of the state in which F is written: nodes in volt, fluxes in volt times `period`."""
    m, coils = circuit.coils.shape
    unit = np.concatenate([np.ones(m), np.full(coils, period)])
    half = drift(circuit) * (unit / unit[:, None]) * (period / 2)
    eye = np.eye(len(unit))
    return np.linalg.solve(eye + half, eye - half), unit
