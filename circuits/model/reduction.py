"""Order reduction: a circuit of many states as a process of few, with computed errors.

    dx = (B i - A x) dt + N(0, D dt),  y = H x       A Σ + Σ Aᵀ = D,    Aᵀ W + W A = Hᵀ H

Balanced truncation: of the state, what both holds much variance (Σ) and shows in the readings (W) is kept; the rest,
switch nodes above all, follows at once and is dropped. The noise of the reduced process is chosen so that it is
stationary with the very covariance of the kept state, so no drift is made up for by noise that is not there. Whatever
the bound says, the errors are computed: of the covariance of the readings, of how it settles from rest,
Σ(t) = Σ - e^{-At} Σ e^{-Aᵀt}, and without coils of the mean H A⁻¹ B i under currents i into the cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from circuits.errors import InputError
from circuits.nodal import Circuit, states
from circuits.ou import diffusion, drift, reading_covariance

EARLIEST = 0.03  # of the fastest mode's time: from when on settling is compared
LONGEST = 8.0  # slowest time constants, until when
PER_OCTAVE = 4
_Times = tuple[tuple[float, int], ...]  # starts [s], and how many times each is doubled


@dataclass(frozen=True, eq=False)
class Reduced:
    """A process of `order` states: drift (d, d) [1/s], diffusion (d, d), readout (n, d), and what comes of them.

    `covariance` (n, n) [V²] is that of the readings, `columns` (n, n) [ohm] their means for unit currents into each
    cell, zero where coils lead to ground. States are of unit variance and the readout in V; all of them are those of
    the circuit (V and Wb). `states` is their number. The errors are relative (Frobenius): of the covariance, of
    settling the largest over time, of the final covariance, and of the columns.
    """

    drift: np.ndarray
    diffusion: np.ndarray
    readout: np.ndarray
    covariance: np.ndarray
    columns: np.ndarray
    states: int
    covariance_error: float
    settling_error: float
    mean_error: float

    @property
    def order(self) -> int:
        """Number of states d."""
        return len(self.drift)

    @property
    def settling(self) -> float:
        """The slowest time constant [s]."""
        return float(1 / np.linalg.eigvals(self.drift).real.min())

    @property
    def error(self) -> float:
        """The largest of its errors."""
        return max(self.covariance_error, self.settling_error, self.mean_error)


def check_order(circuit: Circuit, order: int) -> None:
    """Raise InputError unless the order is from the number of readings to that of all states."""
    readings, size = len(circuit.readout), states(circuit)
    if not readings <= order <= size:
        raise InputError(f"--order is from {readings} (the readings) to {size} (all states), got {order}")


def reduce_order(circuit: Circuit, order: int | None = None) -> Reduced:
    """The circuit with `order` states; as it is with None, or if it has no more.

    InputError if the order is below the number of readings, or the circuit, whole or reduced, is unstable.
    """
    if order is not None:
        check_order(circuit, min(order, states(circuit)))
    if order is not None and order < states(circuit):
        return _truncated(_whole(circuit), order)
    A = drift(circuit)
    if not np.linalg.eigvals(A).real.min() > 0:
        raise InputError("the circuit is unstable and has no stationary covariance")
    covariance, columns = reading_covariance(circuit), _columns(circuit)
    return Reduced(A, diffusion(circuit), _readout(circuit), covariance, columns, len(A), 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ChosenOrder:
    """Number of states that the copies of a device need, `errors` of that order and its neighbours (None: none exists).

    Errors are the largest of covariance, settling and mean, of the worst copy: of the step from the pair model with all
    its `states` to the order. `uncertainty` is the relative standard error of the inverse that the calibrations
    predict, the smallest of the copies. `pair_error` is that of the step before, from the whole circuit to the pair
    model, which leaves out how the parts of a pair differ: for copies drawn from the tolerances, root mean square. It
    is no part of the errors because the uncertainty holds it already. `chosen` says by what: the calibration, or a
    user. `sufficient`: the error is below the uncertainty.
    """

    order: int
    states: int
    uncertainty: float
    pair_error: float
    chosen: str
    sufficient: bool
    errors: dict[str, float | None]

    @property
    def kept(self) -> int | None:
        """The order of a device: None for all states."""
        return None if self.order == self.states else self.order

    @property
    def warning(self) -> str | None:
        """Warning about an order whose error is not below the uncertainty; None if it is below."""
        if self.sufficient:
            return None
        return (
            f"a process of {self.order} of {self.states} states is off by {self.errors[str(self.order)]:.2g}, more "
            f"than the calibration's uncertainty of {self.uncertainty:.2g}; leave out --order, or give a larger one"
        )


def choose_order(
    circuits: Sequence[Circuit], uncertainty: float, order: int | None = None, pair_error: float = 0.0
) -> ChosenOrder:
    """The smallest order whose errors are below `uncertainty` for the circuits of all copies, or a given one.

    `pair_error` is what these circuits are off by themselves, for the record. All states if no smaller order is good
    enough. InputError if the given order is out of range, or unstable.
    """
    wholes = [_whole(circuit) for circuit in circuits]
    readings, size = wholes[0].readout.shape
    if order is not None:
        check_order(circuits[0], order)
    chosen = "calibration" if order is None else "user"
    if order is None:
        tried = range(readings, size)
        order = next((k for k in tried if (_worst(wholes, k) or np.inf) <= uncertainty), size)
    else:
        for circuit in circuits:
            reduce_order(circuit, order)  # says why there is none
    near = range(max(order - 1, readings), min(order + 1, size) + 1)
    errors = {str(k): _worst(wholes, k) for k in near}
    own = errors[str(order)]
    sufficient = bool(own is not None and own <= uncertainty)
    return ChosenOrder(order, size, float(uncertainty), pair_error, chosen, sufficient, errors)


def _worst(wholes: Sequence["_Whole"], order: int) -> float | None:
    """The error of an order for the worst of the circuits; None if it has no stable process for one of them."""
    if order == len(wholes[0].drift):
        return 0.0
    try:
        found = [_truncated(whole, order) for whole in wholes]
    except InputError:
        return None
    return max(each.error for each in found)


@dataclass(frozen=True, eq=False)
class _Whole:
    """The full circuit in states of one size, and where (columns) it is balanced, most important first."""

    drift: np.ndarray
    readout: np.ndarray
    inputs: np.ndarray
    columns: np.ndarray
    covariance: np.ndarray
    balanced: np.ndarray
    times: _Times
    course: np.ndarray


def _whole(circuit: Circuit) -> _Whole:
    A, D, unit = drift(circuit), diffusion(circuit), _units(circuit)
    H, B = _readout(circuit) * unit, np.zeros((len(A), len(circuit.readout)))
    B[: len(circuit.capacitance)] = np.linalg.solve(circuit.capacitance, circuit.readout.T)
    if not np.linalg.eigvals(A).real.min() > 0:
        raise InputError("the circuit is unstable and has no stationary covariance to keep")
    A, D = A * unit / unit[:, None], D / unit / unit[:, None]
    rate = np.abs(A).max()
    covariance = solve_continuous_lyapunov(A / rate, D / rate)
    L = _root(covariance)
    values, V = np.linalg.eigh(L.T @ solve_continuous_lyapunov(A.T / rate, H.T @ H) @ L)
    times = _times(A)
    balanced, course = L @ V[:, np.argsort(-values)], _course(A, covariance, H, times)
    return _Whole(A, H, B / unit[:, None], _columns(circuit), covariance, balanced, times, course)


def _readout(circuit: Circuit) -> np.ndarray:
    """H (n, m + l): fluxes are not read."""
    return np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)


def _columns(circuit: Circuit) -> np.ndarray:
    """H G⁻¹ Hᵀ (n, n) [ohm], zero where coils lead currents to ground."""
    if circuit.coils.shape[1]:
        return np.zeros((len(circuit.readout),) * 2)
    return circuit.readout @ np.linalg.solve(circuit.conductance, circuit.readout.T)


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
    scale = np.linalg.norm(final)
    gone = (final - whole.course) - (kept - _course(a, np.eye(order), h, whole.times))
    columns, through = np.zeros_like(whole.columns), np.linalg.norm(whole.columns)
    if through:
        columns = h @ np.linalg.solve(a, back @ whole.inputs)
    # The diffusion a + aᵀ belongs to a stationary covariance of 1; rounding may leave states that hardly show below 0.
    values, V = np.linalg.eigh(a + a.T)
    return Reduced(
        a,
        (V * np.maximum(values, 0)) @ V.T,
        h,
        kept,
        columns,
        len(whole.drift),
        float(np.linalg.norm(final - kept) / scale),
        float(np.linalg.norm(gone, axis=(1, 2)).max() / scale),
        float(np.linalg.norm(columns - whole.columns) / through) if through else 0.0,
    )


def _course(A: np.ndarray, covariance: np.ndarray, H: np.ndarray, times: _Times) -> np.ndarray:
    """H e^{-At} Σ e^{-Aᵀt} Hᵀ (times, n, n): what has not settled yet."""
    found = []
    for start, doublings in times:
        step = expm(-A * start)
        for _ in range(doublings + 1):
            found.append(H @ step @ covariance @ step.T @ H.T)
            step = step @ step
    return np.array(found)


def _times(A: np.ndarray) -> _Times:
    """Times from before anything moves until all has settled, PER_OCTAVE to a factor of two."""
    rates = np.linalg.eigvals(A)
    first, last = EARLIEST / np.abs(rates).max(), LONGEST / rates.real.min()
    doublings = int(np.ceil(np.log2(last / first)))
    return tuple((first * 2 ** (k / PER_OCTAVE), doublings) for k in range(PER_OCTAVE))
