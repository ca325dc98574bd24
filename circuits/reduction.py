"""Order reduction: a circuit of many states as a process of few, with the errors that matters here computed.

    dx = -A x dt + N(0, D dt),  y = H x        A Σ + Σ Aᵀ = D,    Aᵀ W + W A = Hᵀ H

Balanced truncation: of the state, what both holds much variance (Σ) and shows in the readings (W) is kept; the rest,
switch nodes above all, follows at once and is dropped. The noise of the reduced process is chosen so that it is
stationary with the very covariance of the kept state, so no drift is made up for by noise that is not there. Whatever
the bound says, the errors are computed: of the covariance of the readings, and of how it settles from rest,
Σ(t) = Σ - e^{-At} Σ e^{-Aᵀt}.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from circuits.assembly import Circuit
from circuits.errors import InputError
from circuits.ou import diffusion, drift

TIMES = 40  # at which settling is compared
LONGEST = 8.0  # slowest time constants


@dataclass(frozen=True, eq=False)
class Reduced:
    """A process of `order` states: drift (d, d) [1/s], diffusion (d, d), readout (n, d) [V], states of unit variance.

    `covariance_error` and `settling_error` are relative (Frobenius, the latter the largest over time, of the final
    covariance); `states` is the size of the full circuit.
    """

    drift: np.ndarray
    diffusion: np.ndarray
    readout: np.ndarray
    states: int
    covariance_error: float
    settling_error: float

    @property
    def order(self) -> int:
        """Number of states d."""
        return len(self.drift)


def reduce_order(circuit: Circuit, order: int | None = None, error: float = 1e-4) -> Reduced:
    """The circuit with `order` states, or the fewest whose covariance and settling are off by at most `error`.

    InputError if the order is not from the number of readings to that of states, or the circuit is unstable.
    """
    whole = _whole(circuit)
    readings, size = whole.readout.shape
    if order is not None:
        if not readings <= order <= size:
            raise InputError(f"--order is from {readings} (the readings) to {size} (all states), got {order}")
        return _truncated(whole, order)
    low, high = readings, size
    while low < high:  # the errors fall with the order
        middle = (low + high) // 2
        found = _truncated(whole, middle)
        low, high = (low, middle) if max(found.covariance_error, found.settling_error) <= error else (middle + 1, high)
    return _truncated(whole, low)


@dataclass(frozen=True)
class ChosenOrder:
    """How many states the copies of a device need, `errors` of that order and its neighbours (None: no such process).

    Errors are the larger one of covariance and settling, of the worst copy; `uncertainty` is the relative standard
    error of the inverse that the calibrations predict, the smallest of the copies. `chosen` says by what: the
    calibration, or a user. `sufficient`: the error is below the uncertainty.
    """

    order: int
    states: int
    uncertainty: float
    chosen: str
    sufficient: bool
    errors: dict[str, float | None]


def choose_order(circuits: Sequence[Circuit], uncertainty: float, order: int | None = None) -> ChosenOrder:
    """The smallest order whose errors are below `uncertainty` for the circuits of all copies, or a given one.

    All states if no smaller order is good enough. InputError if the given order is out of range, or unstable.
    """
    wholes = [_whole(circuit) for circuit in circuits]
    readings, size = wholes[0].readout.shape
    chosen = "calibration" if order is None else "user"
    if order is None:
        tried = range(readings, size)
        order = next((k for k in tried if (_worst(wholes, k) or np.inf) <= uncertainty), size)
    else:
        for circuit in circuits:
            reduce_order(circuit, order)
    near = range(max(order - 1, readings), min(order + 1, size) + 1)
    errors = {str(k): _worst(wholes, k) for k in near}
    own = errors[str(order)]
    return ChosenOrder(order, size, float(uncertainty), chosen, bool(own is not None and own <= uncertainty), errors)


def _worst(wholes: Sequence["_Whole"], order: int) -> float | None:
    """The error of an order for the worst of the circuits; None if it has no stable process for one of them."""
    if order == len(wholes[0].drift):
        return 0.0
    try:
        found = [_truncated(whole, order) for whole in wholes]
    except InputError:
        return None
    return max(max(each.covariance_error, each.settling_error) for each in found)


@dataclass(frozen=True, eq=False)
class _Whole:
    """The full circuit in states of one size, and where (columns) it is balanced, most important first."""

    drift: np.ndarray
    readout: np.ndarray
    covariance: np.ndarray
    balanced: np.ndarray


def _whole(circuit: Circuit) -> _Whole:
    A, D, unit = drift(circuit), diffusion(circuit), _units(circuit)
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1) * unit
    if not np.linalg.eigvals(A).real.min() > 0:
        raise InputError("the circuit is unstable and has no stationary covariance to keep")
    A, D = A * unit / unit[:, None], D / unit / unit[:, None]
    rate = np.abs(A).max()
    covariance = solve_continuous_lyapunov(A / rate, D / rate)
    L = _root(covariance)
    values, V = np.linalg.eigh(L.T @ solve_continuous_lyapunov(A.T / rate, H.T @ H) @ L)
    return _Whole(A, H, covariance, L @ V[:, np.argsort(-values)])


def _units(circuit: Circuit) -> np.ndarray:
    """Volts and webers of one kT, so that numbers are of one size."""
    energy = (np.diag(circuit.noise).sum() / np.diag(circuit.conductance).sum()) or 1.0
    volts = np.sqrt(abs(energy) / np.diag(circuit.capacitance))
    if not circuit.coils.shape[1]:
        return volts
    return np.concatenate([volts, np.sqrt(abs(energy) / np.diag(circuit.inverse_inductance))])


def _root(covariance: np.ndarray) -> np.ndarray:
    values, V = np.linalg.eigh((covariance + covariance.T) / 2)
    return V * np.sqrt(np.maximum(values, 0))


def _truncated(whole: _Whole, order: int) -> Reduced:
    """The first states of the balanced circuit, each of unit variance and uncorrelated with the others."""
    T = whole.balanced
    back = np.linalg.pinv(T, rcond=1e-12)[:order]
    a, h = back @ whole.drift @ T[:, :order], whole.readout @ T[:, :order]
    rates = np.linalg.eigvals(a).real
    if not rates.min() > 1e-9 * rates.max():
        raise InputError(f"the readings do not see {order} states, or they would be unstable; choose another --order")
    final, kept = whole.readout @ whole.covariance @ whole.readout.T, h @ h.T
    step = LONGEST / np.linalg.eigvals(whole.drift).real.min() / TIMES
    full, less = expm(-whole.drift * step), expm(-a * step)
    P, p = whole.covariance, np.eye(order)
    worst = 0.0
    for _ in range(TIMES):
        P, p = full @ P @ full.T, less @ p @ less.T
        gone = (final - whole.readout @ P @ whole.readout.T) - (kept - h @ p @ h.T)
        worst = max(worst, float(np.linalg.norm(gone)))
    scale = np.linalg.norm(final)
    # The diffusion a + aᵀ belongs to a stationary covariance of 1; rounding may leave states that hardly show below 0.
    values, V = np.linalg.eigh(a + a.T)
    return Reduced(
        a,
        (V * np.maximum(values, 0)) @ V.T,
        h,
        len(whole.drift),
        float(np.linalg.norm(final - kept) / scale),
        worst / scale,
    )
