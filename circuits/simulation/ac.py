"""Covariance of the readings without sampling: one AC run per noise source, integrated over frequency.

Let z_k(f) be the response of the readings to a unit current at source k. The one-sided spectral density of the readings
is Σ_k S_k z_k z_kᴴ with S_k = 4 kT g, and the covariance is the integral of the density. In ln f the integrand is
smooth and vanishes at both ends, so the rectangle sum converges exponentially; the two tails are added as geometric
series. Below the band the density is a + b f² (a is zero where only inductors lead to ground), above the band it falls
as f⁻². The error of the integral is estimated from the same sum over every second point, and from the sum over a band
shorter by a decade at both ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Conditions, Program
from circuits.errors import SimulationError
from circuits.netlist.deck import exact_analysis
from circuits.nodal import nominal_circuit, readout_matrix, source_power, states
from circuits.ou import MOST_STATES, drift
from circuits.simulation.ngspice import run_deck

TOLERANCE = 1e-8  # largest relative error of the integration
POINTS = 40  # per decade, in the first grid
MOST_POINTS = 1280
MOST_DECADES = 24
MARGIN_LOW, MARGIN_HIGH = 1e-2, 1e3  # the grid reaches from this times the lowest to this times the highest mode
Measure = Callable[[float, float, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class ExactRun:
    """Covariance of the readings (n, n) [V²], its relative integration error, and spectra at chosen frequencies.

    `spectra` (f, n, n) [V²/Hz], one-sided, at `frequencies` (f,) [Hz], the points of the grid nearest to those wanted.
    """

    covariance: np.ndarray
    integration_error: float
    frequencies: np.ndarray
    spectra: np.ndarray


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra (f, n, n) [V²/Hz] of the readings, one-sided, at `frequencies` (f,) [Hz]."""

    frequencies: np.ndarray
    spectra: np.ndarray


@dataclass(frozen=True, eq=False)
class Integral:
    """Density (f, n, n) [V²/Hz] at `frequency` (f,) [Hz], its integral `value` (n, n) [V²], relative error of this."""

    value: np.ndarray
    error: float
    frequency: np.ndarray
    density: np.ndarray


def exact_run(
    board: Board, program: Program, circuit: str, wanted: np.ndarray, power: np.ndarray | None = None
) -> ExactRun:
    """Run the circuit part of a deck in ngspice; `wanted` (f,) [Hz] are the frequencies whose spectra are kept.

    `power` (sources,) [A² s] is kT g of every source of the copy (default: of nominal sources). SimulationError if
    ngspice fails or the integral does not converge.
    """
    own = source_power(board, program) if power is None else power
    found = converged(board, program, lambda *grid: _measure(board, circuit, own, *grid))
    nearest = _nearest(found.frequency, wanted)
    return ExactRun(found.value, found.error, found.frequency[nearest], found.density[nearest])


def spectral_run(
    board: Board, program: Program, circuit: str, wanted: np.ndarray, power: np.ndarray | None = None
) -> Spectra:
    """Run for the spectra alone, in a fraction of the time of `exact_run`: same grid, only the decades of `wanted`."""
    own = source_power(board, program) if power is None else power
    low, high = 10.0 ** np.floor(np.log10(wanted.min())), 10.0 ** (np.floor(np.log10(wanted.max())) + 1)
    frequency, density = _measure(board, circuit, own, float(low), float(high), POINTS)
    nearest = _nearest(frequency, wanted)
    return Spectra(frequency[nearest], density[nearest])


def converged(board: Board, program: Program, measure: Measure) -> Integral:
    """Integral of the density (f, n, n) [V²/Hz] at frequencies (f,) [Hz] that `measure`(low, high, points) returns.

    `low`, `high` [Hz] bound the band, `points` are per decade. The grid is made finer and the band wider until both
    errors are small enough. Halving the step squares the error of the sum; one more decade at both ends reduces the
    error of the tails (f⁻³ above, f⁵ below) by at least a thousand. SimulationError if the integral has not converged
    within MOST_POINTS and MOST_DECADES.
    """
    low, high = _band(board, program)
    points = POINTS
    while True:
        frequency, density = measure(low, high, points)
        whole = integrate(frequency, density)
        scale = np.linalg.norm(whole)
        step_error = (np.linalg.norm(whole - integrate(frequency[::2], density[::2])) / scale) ** 2
        inner = slice(points, -points)
        band_error = np.linalg.norm(whole - integrate(frequency[inner], density[inner])) / scale / 1000
        if step_error + band_error < TOLERANCE:
            return Integral(whole, float(step_error + band_error), frequency, density)
        if band_error > step_error:
            low, high = low / 10, high * 10
        else:
            points *= 2
        if points > MOST_POINTS or np.log10(high / low) > MOST_DECADES:
            raise SimulationError(
                f"the frequency integral did not converge: error {step_error + band_error:.1e} from {low:.0e} to "
                f"{high:.0e} Hz; is the copy close to unstable?"
            )


def integrate(frequency: np.ndarray, density: np.ndarray) -> np.ndarray:
    """∫₀^∞ density df on a grid equally spaced in ln f; density (f, n, n), real part of the integral (n, n)."""
    step = np.log(frequency[-1] / frequency[0]) / (len(frequency) - 1)
    y = density * frequency[:, None, None]
    high = y[-1] * _tail(step)  # density ~ f⁻²
    octave = max(1, round(np.log(2) / step))
    square = np.exp(2 * octave * step)
    constant = (density[0] * square - density[octave]) / (square - 1) * frequency[0]
    low = constant * _tail(step) + (y[0] - constant) * _tail(3 * step)
    total = (y.sum(axis=0) + high + low) * step
    return (total.real + total.real.T) / 2


def _nearest(frequency: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices (w,) of the points of a grid (f,) that are nearest to those wanted (w,), in the logarithm."""
    return np.abs(np.log(frequency[:, None] / wanted)).argmin(axis=0)


def _tail(step: float) -> float:
    """Σ e^{-k step}, k = 1, 2, …: rectangle sum beyond the last point, for an integrand that falls as 1/f."""
    return float(1 / np.expm1(step))


def _measure(
    board: Board, circuit: str, power: np.ndarray, low: float, high: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (f,) [Hz] and density (f, n, n) [V²/Hz] of the readings, by one AC run per noise source."""
    deck = circuit + exact_analysis(board, low, high, points, "exact")
    plots = run_deck(deck, board.nodes, "exact", len(board.sources))
    frequency = plots[0].scale
    if any(len(plot.scale) != len(frequency) for plot in plots) or not np.isclose(frequency[-1], high, rtol=1e-3):
        raise SimulationError("ngspice stopped inside an AC sweep; run it again")
    answers = np.stack([plot.voltages @ readout_matrix(board).T for plot in plots], axis=1)  # (f, source, n)
    # S_k = 4 kT g
    return frequency, np.einsum("k,fki,fkj->fij", 4 * power, answers, answers.conj(), optimize=True)


def _band(board: Board, program: Program) -> tuple[float, float]:
    """Band [Hz] in whole decades around the corners of all modes of the nominal board, with margins.

    A mode of capacitance c has its resonance at sqrt(Γ/c), and corners at Γ/G and G/c if it is overdamped; a mode of
    a resistive board has its corner at g/C. Modes due to parasitics are found from the eigenvalues of the drift.
    """
    circuit = nominal_circuit(board, program)
    if board.coupling == "resistive":
        corners = np.linalg.eigvalsh(circuit.conductance) / circuit.capacitance[0, 0]
    else:
        capacitance = np.linalg.eigvalsh(circuit.capacitance)
        stiffness, conductance = circuit.inverse_inductance[0, 0], circuit.conductance[0, 0]
        corners = np.concatenate(
            [np.sqrt(stiffness / capacitance), [stiffness / conductance], conductance / capacitance]
        )
    real = nominal_circuit(board, program, Conditions())
    if states(circuit) < states(real) <= MOST_STATES:
        corners = np.concatenate([corners, np.abs(np.linalg.eigvals(drift(real)))])
    lowest, highest = corners.min() / (2 * np.pi), corners.max() / (2 * np.pi)
    return (
        float(10.0 ** np.floor(np.log10(lowest * MARGIN_LOW))),
        float(10.0 ** np.ceil(np.log10(highest * MARGIN_HIGH))),
    )
